//! Which volumes the cluster has by its PersistentVolumes, and who could be using one: asked
//! for when a volume of another driver is taken over, which cuts off whoever is connected.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use rds_csi_proto::ids::VolumeId;
use rds_csi_proto::params::context_keys;

use super::users::{Users, claim_of, uses};
use crate::rules::adopt::Attributes;

/// For all questions about one volume together.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks for PersistentVolumes and their users.
pub(crate) struct Bound {
    users: Users,
}

/// A PersistentVolume of this driver.
#[derive(Debug)]
pub(crate) struct Pv {
    pub(crate) name: String,
    pub(crate) volume: VolumeId,
    pub(crate) says: Attributes,
    /// Namespace and name.
    claim: Option<(String, String)>,
}

impl Bound {
    pub(crate) fn new(users: Users) -> Self {
        Self { users }
    }

    pub(crate) fn driver(&self) -> &str {
        self.users.driver()
    }

    /// All PersistentVolumes of this driver, in the order of their volumes.
    pub(crate) async fn all(&self) -> anyhow::Result<Vec<Pv>> {
        let api: Api<PersistentVolume> = Api::all(self.users.client());
        let everything = ListParams::default();
        let pvs = tokio::time::timeout(LIMIT, api.list(&everything)).await??;
        let mut pvs: Vec<Pv> = pvs.iter().filter_map(|pv| self.read(pv)).collect();
        pvs.sort_by(|a, b| (&a.volume, &a.name).cmp(&(&b.volume, &b.name)));
        Ok(pvs)
    }

    fn read(&self, pv: &PersistentVolume) -> Option<Pv> {
        let volume = self.users.handle(pv)?;
        let attributes = pv.spec.as_ref()?.csi.as_ref()?.volume_attributes.as_ref();
        let text = |key: &str| {
            attributes.and_then(|a| a.get(key)).filter(|text| !text.is_empty()).cloned()
        };
        let says =
            Attributes { nqn: text(context_keys::NQN), path: text(context_keys::VOLUME_PATH) };
        Some(Pv { name: pv.name_any(), volume, says, claim: claim_of(pv) })
    }

    /// Who has the volume, or may have it; nobody only if the cluster says so.
    pub(crate) async fn users_of(&self, pv: &Pv) -> anyhow::Result<Vec<String>> {
        tokio::time::timeout(LIMIT, self.ask(pv)).await?
    }

    async fn ask(&self, pv: &Pv) -> anyhow::Result<Vec<String>> {
        let api: Api<VolumeAttachment> = Api::all(self.users.client());
        let attachments = api.list(&ListParams::default()).await?;
        let mut found: Vec<String> = attachments
            .iter()
            .filter(|va| va.spec.source.persistent_volume_name.as_ref() == Some(&pv.name))
            .filter(|va| va.spec.attacher == self.driver() && is_attached(va))
            .map(|va| format!("VolumeAttachment {} to {}", va.name_any(), va.spec.node_name))
            .collect();
        if let Some((namespace, claim)) = &pv.claim {
            let pods = self.users.pods(namespace).await?;
            let on = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            found.extend(pods.iter().filter(|pod| uses(pod, claim) && may_have_begun(pod)).map(
                |pod| {
                    let node = on(pod).unwrap_or_else(|| "no node".into());
                    format!("pod {namespace}/{} on {node}", pod.name_any())
                },
            ));
        }
        Ok(found)
    }
}

/// Whether the node has it by a driver's word. One that is being detached goes by itself, or
/// waits for nothing but the adoption.
fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.metadata.deletion_timestamp.is_none()
        && attachment.status.as_ref().is_some_and(|status| status.attached)
}

/// Whether any container of a pod may have run, and so have written. A pod that only waits for
/// its volumes is no obstacle: it may be waiting for this one.
fn may_have_begun(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let begun = |statuses: &Option<Vec<ContainerStatus>>| {
        let has_id =
            |s: &ContainerStatus| s.container_id.as_deref().is_some_and(|id| !id.is_empty());
        statuses.iter().flatten().any(has_id)
    };
    !matches!(status.phase.as_deref(), None | Some("Pending"))
        || begun(&status.container_statuses)
        || begun(&status.init_container_statuses)
        || begun(&status.ephemeral_container_statuses)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    #[test]
    fn only_a_pod_that_waits_has_not_begun() {
        let containers = |key: &str, id: &str| {
            json!({"phase": "Pending", key: [{"name": "c", "image": "i", "imageID": "",
                "ready": false, "restartCount": 0, "containerID": id}]})
        };
        assert!(!may_have_begun(&pod(json!({}))));
        assert!(!may_have_begun(&pod(json!({"phase": "Pending"}))));
        assert!(!may_have_begun(&pod(containers("containerStatuses", ""))));
        for phase in ["Running", "Unknown", "Something"] {
            assert!(may_have_begun(&pod(json!({"phase": phase}))), "{phase}");
        }
        // A pod is Pending until the last of its init containers has ended.
        for key in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
            assert!(may_have_begun(&pod(containers(key, "containerd://1"))), "{key}");
        }
    }

    #[test]
    fn what_is_attached_and_stays_so_is_in_use() {
        let attachment = |attached: bool, deleted: Value| -> VolumeAttachment {
            serde_json::from_value(json!({
                "metadata": {"name": "csi-1", "deletionTimestamp": deleted},
                "spec": {"attacher": "d", "nodeName": "n", "source": {}},
                "status": {"attached": attached},
            }))
            .unwrap()
        };
        assert!(is_attached(&attachment(true, Value::Null)));
        assert!(!is_attached(&attachment(false, Value::Null)));
        assert!(!is_attached(&attachment(true, json!("2026-01-01T00:00:00Z"))));
    }
}
