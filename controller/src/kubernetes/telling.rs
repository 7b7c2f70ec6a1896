//! Writes what is to be told of one volume.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource, ResourceExt};
use rds_csi_proto::ids::{NodeName, VolumeId};
use serde_json::json;
use tokio::time::timeout;

use super::Cluster;
use super::cache::Cache;
use super::story::{Notes, Pending};
use super::tale::{Tale, holders};
use crate::rules::owner::{NodeKey, Stage};

/// An Event is not worth more.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

const NODE: &str = "rds.csi.srvlab.io/attached-node";
const NODES: &str = "rds.csi.srvlab.io/attached-nodes";
const SINCE: &str = "rds.csi.srvlab.io/attached-at";

/// Why something was not told.
pub(super) enum Failure {
    /// It may be later.
    Later(String),
    /// It will not be.
    Refused(String),
}

/// Values of [`NODE`], [`NODES`], [`SINCE`]; none where the annotation is not to be.
type Annotations = [Option<String>; 3];

/// Writes to the cluster.
pub(crate) struct Teller {
    cache: Cache,
    volumes: Api<PersistentVolume>,
    recorder: Recorder,
    /// What was written last: the cache may not show it yet.
    written: HashMap<VolumeId, Annotations>,
}

impl Teller {
    pub(crate) fn new(cluster: &Cluster, cache: Cache, driver: &str, pod: &str) -> Self {
        let reporter = Reporter { controller: driver.to_owned(), instance: Some(pod.to_owned()) };
        Self {
            cache,
            volumes: Api::all(cluster.client.clone()),
            recorder: Recorder::new(cluster.client.clone(), reporter),
            written: HashMap::new(),
        }
    }

    /// Before that, nothing is known to be missing.
    pub(super) async fn ready(&self) {
        self.cache.ready().await;
    }

    /// What was told is taken out of the news.
    pub(super) async fn tell(
        &mut self,
        notes: &Notes,
        volume: &VolumeId,
        news: &mut Pending,
    ) -> Result<(), Failure> {
        let Some(pv) = self.cache.volume(volume) else {
            self.written.remove(volume);
            // The provisioner makes the PV after the volume, and our copy is later still.
            return match (&news.stage, news.tales.is_empty()) {
                (Some(Stage::Ready) | None, true) => Ok(()),
                _ => Err(Failure::Later("its PV is not known".into())),
            };
        };
        let names = |key: &NodeKey| notes.name(key).or_else(|| remembered(&pv, key));
        let about = subject(&pv);
        while let Some(tale) = news.tales.first() {
            within(self.recorder.publish(&event(tale, names), &about)).await?;
            news.tales.remove(0);
        }
        if let Some(stage) = &news.stage {
            let wanted = annotations(stage, names);
            if self.written.get(volume).unwrap_or(&found(&pv)) != &wanted {
                let [node, nodes, since] = &wanted;
                let all = json!({NODE: node, NODES: nodes, SINCE: since});
                let patch = Patch::Merge(json!({"metadata": {"annotations": all}}));
                let params = PatchParams::default();
                within(self.volumes.patch_metadata(&pv.name_any(), &params, &patch)).await?;
            }
            self.written.insert(volume.clone(), wanted);
        }
        Ok(())
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(REQUEST_LIMIT, request).await {
        Ok(Ok(done)) => Ok(done),
        // Not allowed, not valid, not there: it will be the same next time.
        Ok(Err(kube::Error::Api(status)))
            if (400..500).contains(&status.code) && ![408, 409, 429].contains(&status.code) =>
        {
            Err(Failure::Refused(status.to_string()))
        }
        Ok(Err(error)) => Err(Failure::Later(error.to_string())),
        Err(_) => Err(Failure::Later("the API server does not answer".into())),
    }
}

/// Whom Events are about: the claim, or the PV if it has none.
fn subject(pv: &PersistentVolume) -> ObjectReference {
    let claim = pv.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
    match claim {
        Some(claim) => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            // That of when it was bound, which makes of each Event another one.
            resource_version: None,
            ..claim
        },
        None => pv.object_ref(&()),
    }
}

fn event(tale: &Tale, names: impl Fn(&NodeKey) -> Option<NodeName>) -> Event {
    let (reason, warning) = tale.reason();
    let name = |key: &NodeKey| names(key).map_or_else(|| key.to_string(), |name| name.to_string());
    Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.into(),
        note: Some(tale.note(name)),
        action: reason.into(),
        // Events that differ in nothing but their text count as repetitions of the first.
        secondary: tale.node().map(|key| ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name(key)),
            ..ObjectReference::default()
        }),
    }
}

fn annotations(stage: &Stage, names: impl Fn(&NodeKey) -> Option<NodeName>) -> Annotations {
    let Stage::Attached(held) = stage else { return [None, None, None] };
    let name = |key: &NodeKey| names(key).map_or_else(|| key.to_string(), |name| name.to_string());
    let nodes: Vec<String> = holders(stage).iter().map(name).collect();
    let since = i64::try_from(held.since).ok().and_then(|s| Timestamp::from_second(s).ok());
    let list = json!(nodes).to_string();
    [nodes.into_iter().next(), Some(list), since.map(|s| s.to_string())]
}

/// What the PV says.
fn found(pv: &PersistentVolume) -> Annotations {
    [NODE, NODES, SINCE].map(|key| pv.annotations().get(key).cloned())
}

/// A node's whole name, from the annotations that an earlier leader wrote.
fn remembered(pv: &PersistentVolume, key: &NodeKey) -> Option<NodeName> {
    let list: Vec<NodeName> = serde_json::from_str(pv.annotations().get(NODES)?).ok()?;
    list.into_iter().find(|name| NodeKey::of(name) == *key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::owner::{Attachment, Sharing};
    use rds_csi_proto::ids::HostNqn;

    #[test]
    fn two_nodes_are_a_list_with_the_first_by_itself() {
        let names = ["a-node-with-a-long-name-1", "a-node-with-a-long-name-2"];
        let [a, b] = names.map(|n| NodeKey::of(&n.parse().unwrap()));
        let two = Attachment::new(a, HostNqn::random(), Sharing::Shared, 0).joined_by(b, 300, 60);
        let list = json!(names).to_string();
        let pv: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "x", "annotations": {NODES: list}},
            "spec": {"claimRef": {"name": "c", "namespace": "n", "uid": "u"}},
        }))
        .unwrap();
        // The record has both names shortened; those that were written before have them whole.
        let parsed: Attachment = {
            let text = Stage::Attached(two);
            let Stage::Attached(held) = text else { panic!() };
            held
        };
        let shown = annotations(&Stage::Attached(parsed), |key| remembered(&pv, &key.short()));
        let since = "1970-01-01T00:01:00Z".to_owned();
        assert_eq!(shown, [Some(names[0].into()), Some(list), Some(since)]);
        assert_eq!(annotations(&Stage::Ready, |_| None), [None, None, None]);
        assert_eq!(subject(&pv).kind.as_deref(), Some("PersistentVolumeClaim"));
    }
}
