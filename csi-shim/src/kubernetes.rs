//! What the shim asks of the Kubernetes API: two kinds of objects, one at a time, by name.
//!
//! The client is made when it is first needed and thrown away whenever it fails, so that the
//! shim starts while the API server is away, and a rotated certificate or a connection that
//! hangs costs one answer. Service account tokens are read anew by the client itself.
//!
//! Rights needed: `get` of `volumeattachments` and `csinodes` in `storage.k8s.io`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rds_csi_proto::agent::AttachmentQuestion;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::codegen::http;

use crate::verdict::{self, Verdict, Who};

/// A TCP and TLS handshake with an API server that is there.
const CONNECT: Duration = Duration::from_secs(2);
/// The API group of both.
const STORAGE: &str = "/apis/storage.k8s.io/v1";

/// Where the API server is, and how to log in there.
#[derive(Debug, Clone)]
pub enum Source {
    /// As a pod: the service account that is mounted into it.
    ServiceAccount,
    /// A kubeconfig file; its current context.
    Kubeconfig(PathBuf),
}

/// The API server. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    source: Source,
    client: Arc<Mutex<Option<Client>>>,
}

impl Kubernetes {
    /// Nothing is read or connected yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source, client: Arc::default() }
    }

    /// What became of an attachment. Never fails: what cannot be known is unknown.
    pub async fn judge(
        &self,
        who: &Who,
        question: &AttachmentQuestion,
        patience: Duration,
    ) -> Verdict {
        let looked = timeout(patience, self.look(who, question)).await.unwrap_or_else(|_| {
            Err(format!("the Kubernetes API has not answered within {patience:?}"))
        });
        looked.unwrap_or_else(|why| {
            // Whatever it was: the next question begins with a new client.
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
            Verdict::Unknown(why)
        })
    }

    async fn look(&self, who: &Who, question: &AttachmentQuestion) -> Result<Verdict, String> {
        let name = who.attachment_name(&question.volume_id);
        if let Some(found) = self.get("volumeattachments", &name).await? {
            return Ok(verdict::of_found(&found, who, question));
        }
        let node = self.get("csinodes", who.node.as_str()).await?;
        Ok(verdict::of_missing(&question.volume_id, who, node.as_ref()))
    }

    /// Reads one object. Without a resourceVersion the answer is what etcd's majority has, not
    /// what some cache had (Kubernetes API concepts, "Resource versions").
    async fn get<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<Option<T>, String> {
        let what = || format!("get {kind} {name} from the Kubernetes API");
        let client = self.client().await?;
        let request = http::Request::get(format!("{STORAGE}/{kind}/{name}"))
            .body(Vec::new())
            .map_err(|e| format!("{}: {e}", what()))?;
        match client.request(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if is_absent(&status, kind, name) => Ok(None),
            Err(kube::Error::Api(status)) => Err(format!(
                "{}: {} {} {}",
                what(),
                status.code,
                status.reason,
                first_line(&status.message)
            )),
            Err(error) => Err(format!("{}: {}", what(), innermost(&error))),
        }
    }

    async fn client(&self) -> Result<Client, String> {
        let lock = || self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = lock().as_ref() {
            return Ok(client.clone());
        }
        let mut config = self.source.config().await?;
        config.connect_timeout = Some(CONNECT);
        let client = Client::try_from(config)
            .map_err(|e| format!("make a Kubernetes client: {}", innermost(&e)))?;
        *lock() = Some(client.clone());
        Ok(client)
    }
}

impl Source {
    async fn config(&self) -> Result<Config, String> {
        match self {
            Self::ServiceAccount => Config::incluster().map_err(|e| {
                format!(
                    "log in to Kubernetes with the pod's service account: {}; outside of a pod: \
                     --kubeconfig, or --no-kubernetes",
                    innermost(&e)
                )
            }),
            Self::Kubeconfig(path) => {
                let fail = |e: kube::config::KubeconfigError| {
                    format!("use the kubeconfig {}: {}", path.display(), innermost(&e))
                };
                let file = Kubeconfig::read_from(path).map_err(fail)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(fail)
            }
        }
    }
}

/// Only the API server itself says that there is no such object, and names it. Any other 404
/// comes from something on the way.
fn is_absent(status: &kube::core::Status, kind: &str, name: &str) -> bool {
    let of_it = |d: &kube::core::response::StatusDetails| d.kind == kind && d.name == name;
    status.code == 404 && status.reason == "NotFound" && status.details.as_ref().is_some_and(of_it)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn absent(text: &str) -> bool {
        is_absent(&serde_json::from_str(text).unwrap(), "volumeattachments", "csi-1")
    }

    #[test]
    fn only_the_api_servers_own_404_about_that_object_is_absence() {
        let own = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"volumeattachments.storage.k8s.io \"csi-1\" not found","reason":"NotFound",
            "details":{"name":"csi-1","group":"storage.k8s.io","kind":"volumeattachments"},
            "code":404}"#;
        assert!(absent(own));
        for (from, to) in [
            (r#""name":"csi-1""#, r#""name":"csi-2""#),
            (r#""kind":"volumeattachments""#, r#""kind":"nodes""#),
            (r#""reason":"NotFound""#, r#""reason":"Forbidden""#),
            ("404", "403"),
        ] {
            assert!(!absent(&own.replace(from, to)), "{to}");
        }
        // As the client makes it of a proxy's page.
        assert!(!absent(
            r#"{"status":"Failure","message":"<html>","reason":"Failed to parse error data","code":404}"#
        ));
    }
}
