//! Objects of any kind, as JSON, and waiting for them.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use serde_json::{Value, json};

/// Controllers that retry double their pauses, and emulated nodes and busy machines are slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(100);

/// `apiVersion` and `kind`.
pub(crate) type Kind = (&'static str, &'static str);
pub(crate) const CLAIM: Kind = ("v1", "PersistentVolumeClaim");
pub(crate) const VOLUME: Kind = ("v1", "PersistentVolume");
pub(crate) const POD: Kind = ("v1", "Pod");
pub(crate) const NODE: Kind = ("v1", "Node");
pub(crate) const NAMESPACE: Kind = ("v1", "Namespace");
pub(crate) const EVENT: Kind = ("v1", "Event");
pub(crate) const LEASE: Kind = ("coordination.k8s.io/v1", "Lease");
pub(crate) const ATTACHMENT: Kind = ("storage.k8s.io/v1", "VolumeAttachment");

#[derive(Clone)]
pub(crate) struct Kube(Client);

impl Kube {
    pub(crate) async fn new(kubeconfig: &Path) -> anyhow::Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    pub(crate) fn client(&self) -> Client {
        self.0.clone()
    }

    fn api(&self, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.0.clone(), namespace, &resource),
            None => Api::all_with(self.0.clone(), &resource),
        }
    }

    fn api_of(&self, object: &Value) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let version = word(&object["apiVersion"]).context("no apiVersion")?;
        let kind = word(&object["kind"]).context("no kind")?;
        let name = word(&object["metadata"]["name"]).context("no name")?;
        Ok((self.api(&version, &kind, object["metadata"]["namespace"].as_str()), name))
    }

    /// As `kubectl apply --server-side`; waits for the kind to be served.
    pub(crate) async fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let (api, name) = self.api_of(object)?;
        let params = PatchParams::apply("rds-e2e").force();
        let begun = Instant::now();
        loop {
            match api.patch(&name, &params, &Patch::Apply(object)).await {
                Err(kube::Error::Api(s)) if s.code == 404 && begun.elapsed() < LIMIT => {
                    tokio::time::sleep(PAUSE).await;
                }
                done => {
                    return done
                        .map(drop)
                        .with_context(|| format!("cannot apply {} {name}", object["kind"]));
                }
            }
        }
    }

    pub(crate) async fn set_status(&self, object: &Value) -> anyhow::Result<()> {
        let (api, name) = self.api_of(object)?;
        let patch = Patch::Merge(json!({"status": object["status"]}));
        api.patch_status(&name, &PatchParams::default(), &patch)
            .await
            .map(drop)
            .with_context(|| format!("cannot write the status of {name}"))
    }

    pub(crate) async fn patch(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        patch: Value,
    ) -> anyhow::Result<()> {
        let api = self.api(kind.0, kind.1, namespace);
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
            .with_context(|| format!("cannot change {} {name}", kind.1))
    }

    pub(crate) async fn get(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> anyhow::Result<Option<Value>> {
        let found = self.api(kind.0, kind.1, namespace).get_opt(name).await;
        let found = found.with_context(|| format!("cannot read {} {name}", kind.1))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    pub(crate) async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let found = self.api(kind.0, kind.1, namespace).list(&ListParams::default()).await;
        let found = found.with_context(|| format!("cannot list {}", kind.1))?;
        found.items.into_iter().map(|o| Ok(serde_json::to_value(o)?)).collect()
    }

    /// At once, as kubelet does when a pod has ended; what is not there is no error.
    pub(crate) async fn delete(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> anyhow::Result<()> {
        let api = self.api(kind.0, kind.1, namespace);
        let params =
            if kind == POD { DeleteParams::default().grace_period(0) } else { Default::default() };
        match api.delete(name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => done.map(drop).with_context(|| format!("cannot delete {} {name}", kind.1)),
        }
    }

    /// With the time that it asks for.
    pub(crate) async fn delete_softly(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<()> {
        let api = self.api(kind.0, kind.1, Some(namespace));
        let done = api.delete(name, &DeleteParams::default()).await;
        done.map(drop).with_context(|| format!("cannot delete {} {name}", kind.1))
    }

    /// Until the object is there and as wanted.
    pub(crate) async fn until(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let begun = Instant::now();
        loop {
            let found = self.get(kind, namespace, name).await?;
            match found {
                Some(object) if wanted(&object) => return Ok(object),
                seen if begun.elapsed() > LIMIT => {
                    let mut seen = seen.unwrap_or_default();
                    seen["metadata"]["managedFields"] = Value::Null;
                    bail!("{} {name} is not {what} after {LIMIT:?}: {seen}", kind.1)
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    pub(crate) async fn until_gone(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> anyhow::Result<()> {
        eventually(&format!("{} {name} gone", kind.1), || async {
            Ok(self.get(kind, namespace, name).await?.is_none().then_some(()))
        })
        .await
    }
}

/// Until there is something.
pub(crate) async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if begun.elapsed() > LIMIT {
            bail!("not after {LIMIT:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
