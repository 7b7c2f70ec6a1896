//! Whether this node still has a volume, by what Kubernetes says of it. No I/O in here.
//!
//! Gone and unknown are far apart: the first ends a pod's I/O, the second lets it wait or go on.
//! So gone takes proof.

use std::collections::HashMap;

use rds_csi_proto::agent::{AttachmentAnswer, AttachmentQuestion, AttachmentVerdict};
use rds_csi_proto::context;
use rds_csi_proto::ids::NodeName;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The attachment is there, complete, and not being ended.
    Exists,
    /// It is not, or not that one.
    Gone(String),
    /// Nobody knows, and why.
    Unknown(String),
}

impl Verdict {
    /// Its form on the wire.
    #[must_use]
    pub fn answer(self, id: u64) -> AttachmentAnswer {
        let (verdict, reason) = match self {
            Self::Exists => (AttachmentVerdict::Exists, String::new()),
            Self::Gone(why) => (AttachmentVerdict::Gone, why),
            Self::Unknown(why) => (AttachmentVerdict::Unknown, why),
        };
        AttachmentAnswer { id, verdict: verdict.into(), reason }
    }
}

/// On whose behalf is asked.
#[derive(Debug, Clone)]
pub struct Who {
    /// The name of the driver, to Kubernetes.
    pub driver: String,
    /// The name of the node, to Kubernetes; to CSI too.
    pub node: NodeName,
}

impl Who {
    /// The name of the VolumeAttachment of a volume and this node: kube-controller-manager makes
    /// it, kubelet looks it up by it (kubernetes, pkg/volume/csi, `getAttachmentName`).
    #[must_use]
    pub fn attachment_name(&self, volume: &str) -> String {
        let hash = Sha256::new()
            .chain_update(volume)
            .chain_update(&self.driver)
            .chain_update(self.node.as_str())
            .finalize();
        format!("csi-{}", hex::encode(hash))
    }
}

/// What is read of a `storage.k8s.io/v1` VolumeAttachment.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeAttachment {
    metadata: Metadata,
    spec: Spec,
    status: Option<Status>,
}

impl VolumeAttachment {
    /// The volume that it attaches, unless that is in a pod's own definition.
    #[must_use]
    pub fn persistent_volume(&self) -> Option<&str> {
        self.spec.source.persistent_volume_name.as_deref()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    attacher: String,
    node_name: String,
    #[serde(default)]
    source: Source,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    persistent_volume_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    attached: bool,
    #[serde(default)]
    attachment_metadata: HashMap<String, String>,
}

/// What is read of a `storage.k8s.io/v1` CSINode.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CsiNode {
    spec: CsiNodeSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CsiNodeSpec {
    /// `null` as long as there is none.
    drivers: Option<Vec<CsiNodeDriver>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CsiNodeDriver {
    name: String,
    #[serde(rename = "nodeID")]
    node_id: String,
}

/// Judges the VolumeAttachment that has the right name.
#[must_use]
pub fn of_found(found: &VolumeAttachment, who: &Who, question: &AttachmentQuestion) -> Verdict {
    let name = &found.metadata.name;
    if found.spec.attacher != who.driver || found.spec.node_name != who.node.as_str() {
        return Verdict::Unknown(format!(
            "VolumeAttachment {name} is of driver {} and node {}, not {} and {}",
            found.spec.attacher, found.spec.node_name, who.driver, who.node
        ));
    }
    if let Some(since) = &found.metadata.deletion_timestamp {
        return Verdict::Gone(format!("VolumeAttachment {name} is being deleted since {since}"));
    }
    let Some(status) = found.status.as_ref().filter(|s| s.attached) else {
        return Verdict::Unknown(format!("VolumeAttachment {name} is not attached yet"));
    };
    same(&status.attachment_metadata, &question.identity, name)
}

/// Whether it is the attachment under which the volume was staged, and not a later one.
fn same(now: &HashMap<String, String>, then: &HashMap<String, String>, name: &str) -> Verdict {
    if !then.contains_key(context::HOST_NQN) {
        return Verdict::Unknown(
            "the agent does not say under which attachment it has the volume: are agent and shim \
             of the same release?"
                .into(),
        );
    }
    let mut keys: Vec<_> = then.iter().collect();
    keys.sort();
    if let Some((key, _)) = keys.iter().find(|(k, v)| now.get(*k).is_some_and(|n| n != *v)) {
        return Verdict::Gone(format!(
            "the node was given the volume anew meanwhile (another {key} in the status of \
             VolumeAttachment {name})"
        ));
    }
    match keys.iter().find(|(k, _)| !now.contains_key(*k)) {
        None => Verdict::Exists,
        Some((key, _)) => Verdict::Unknown(format!(
            "the status of VolumeAttachment {name} has no {key}, so it cannot be told whether it \
             is the attachment under which the volume was staged"
        )),
    }
}

/// There is no VolumeAttachment of that name. That is only worth something if the name is the
/// one that Kubernetes would use: kubelet has registered this driver on a node of that name.
#[must_use]
pub fn of_missing(volume: &str, who: &Who, node: Option<&CsiNode>) -> Verdict {
    let (name, Who { driver, node: node_name }) = (who.attachment_name(volume), who);
    let drivers = node.and_then(|n| n.spec.drivers.as_deref()).unwrap_or_default();
    if drivers.iter().any(|d| d.name == *driver && d.node_id == node_name.as_str()) {
        return Verdict::Gone(format!("there is no VolumeAttachment {name} any more"));
    }
    Verdict::Unknown(format!(
        "there is no VolumeAttachment {name}, but the CSINode {node_name} {}: is --node-name the \
         node's name in Kubernetes, and --driver-name the driver's?",
        if node.is_some() {
            format!("does not have the driver {driver} with that node id")
        } else {
            "does not exist either".to_owned()
        }
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e21";

    fn who() -> Who {
        Who { driver: "rds.csi.srvlab.io".into(), node: "node-1".parse().unwrap() }
    }

    fn question() -> AttachmentQuestion {
        let identity = [("nqn", "n"), ("hostNqn", "h"), ("arrival", "a")];
        let identity = identity.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        AttachmentQuestion { id: 1, volume_id: VOLUME.into(), identity, timeout_ms: 5_000 }
    }

    fn attachment(metadata: &str, spec: &str, status: &str) -> Verdict {
        let text = format!(
            r#"{{"apiVersion":"storage.k8s.io/v1","kind":"VolumeAttachment",
            "metadata":{{"name":"csi-1","uid":"u"{metadata}}},
            "spec":{{"attacher":"rds.csi.srvlab.io","nodeName":"node-1",
                     "source":{{"persistentVolumeName":"pv"}}{spec}}}{status}}}"#
        );
        of_found(&serde_json::from_str(&text).unwrap(), &who(), &question())
    }

    fn attached(pairs: &str) -> String {
        format!(r#","status":{{"attached":true,"attachmentMetadata":{{{pairs}}}}}"#)
    }

    const NAME: &str = "csi-997dffc1ef8b33bcf6d4e16ec42e0ce528420918b337862c31d961406c3b561c";
    const GIVEN: &str = r#""nqn":"n","hostNqn":"h","nvmeAddress":"10.0.0.2","arrival":"a""#;

    /// As `printf %s VOLUME DRIVER NODE | sha256sum` gives it.
    #[test]
    fn the_name_is_the_one_that_kubernetes_uses() {
        assert_eq!(who().attachment_name(VOLUME), NAME);
    }

    #[test]
    fn only_a_complete_attachment_that_is_the_same_one_exists() {
        assert_eq!(attachment("", "", &attached(GIVEN)), Verdict::Exists);
        let deleted = r#","deletionTimestamp":"2026-11-26T19:00:00Z""#;
        let gone = attachment(deleted, "", &attached(GIVEN));
        assert!(matches!(&gone, Verdict::Gone(why) if why.contains("2026-11-26")), "{gone:?}");
        for later in [GIVEN.replace(r#""a""#, r#""b""#), GIVEN.replace(r#""h""#, r#""i""#)] {
            let gone = attachment("", "", &attached(&later));
            assert!(matches!(&gone, Verdict::Gone(why) if why.contains("anew")), "{gone:?}");
        }
    }

    #[test]
    fn whatever_is_not_proven_is_unknown() {
        let unfinished = ["", r#","status":{"attached":false}"#, r#","status":{"attached":true}"#]
            .map(String::from);
        let without = [GIVEN.replace(r#","arrival":"a""#, ""), r#""arrival":"a""#.into()];
        for status in unfinished.into_iter().chain(without.map(|w| attached(&w))) {
            let unknown = attachment("", "", &status);
            assert!(matches!(unknown, Verdict::Unknown(_)), "{status}: {unknown:?}");
        }
        let text =
            r#"{"metadata":{"name":"csi-1"},"spec":{"attacher":"other","nodeName":"node-1"}}"#;
        let other = of_found(&serde_json::from_str(text).unwrap(), &who(), &question());
        assert!(matches!(other, Verdict::Unknown(_)));
        // One who does not say which attachment is meant must not hear that it exists.
        let text = attached(GIVEN);
        let whole = format!(
            r#"{{"metadata":{{"name":"c"}},"spec":{{"attacher":"rds.csi.srvlab.io","nodeName":"node-1"}}{text}}}"#
        );
        let vague = AttachmentQuestion { identity: HashMap::new(), ..question() };
        let verdict = of_found(&serde_json::from_str(&whole).unwrap(), &who(), &vague);
        assert!(matches!(verdict, Verdict::Unknown(_)));
    }

    #[test]
    fn a_missing_attachment_is_gone_only_if_its_name_is_proven() {
        let node = |drivers: &str| -> CsiNode {
            serde_json::from_str(&format!(r#"{{"spec":{{"drivers":{drivers}}}}}"#)).unwrap()
        };
        let ours = node(r#"[{"name":"rds.csi.srvlab.io","nodeID":"node-1","topologyKeys":null}]"#);
        assert!(matches!(of_missing(VOLUME, &who(), Some(&ours)), Verdict::Gone(_)));
        let mut unknown = vec![of_missing(VOLUME, &who(), None)];
        for drivers in [
            "null",
            "[]",
            r#"[{"name":"other","nodeID":"node-1"}]"#,
            r#"[{"name":"rds.csi.srvlab.io","nodeID":"node-2"}]"#,
        ] {
            unknown.push(of_missing(VOLUME, &who(), Some(&node(drivers))));
        }
        for verdict in unknown {
            assert!(matches!(&verdict, Verdict::Unknown(why) if why.contains("--node-name")));
        }
    }
}
