//! Who uses a volume's claim: asked for when it matters, never taken from a cache.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use rds_csi_proto::ids::{NodeName, VolumeId};

use super::Cluster;
use crate::rules::attach::MayShare;
use crate::rules::kubevirt::{Owner, User, one_machine};

/// For all questions of one call together. The sidecar gives a call some 15 s.
const LIMIT: Duration = Duration::from_secs(8);
/// KubeVirt's API group.
const KUBEVIRT: &str = "kubevirt.io/";

/// Asks for the users of volumes.
#[derive(Clone)]
pub(crate) struct Users {
    client: Client,
    driver: String,
}

impl Users {
    pub(crate) fn new(cluster: &Cluster, driver: &str) -> Self {
        Self { client: cluster.client.clone(), driver: driver.to_owned() }
    }

    /// Whether `node` may be the second one to have the volume: only if all that use its claim
    /// are one machine of KubeVirt.
    pub(crate) async fn may_share(&self, volume: &VolumeId, node: &NodeName) -> MayShare {
        match tokio::time::timeout(LIMIT, self.ask(volume, node)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => MayShare::Unproven(format!(
                "whether its users are one machine of KubeVirt cannot be asked: {e}"
            )),
            Err(_) => MayShare::Unproven(format!(
                "whether its users are one machine of KubeVirt is not known: the Kubernetes API \
                 did not answer within {} s",
                LIMIT.as_secs()
            )),
        }
    }

    async fn ask(&self, volume: &VolumeId, node: &NodeName) -> Result<MayShare, kube::Error> {
        let claim = match self.persistent_volume(volume).await? {
            None => return Ok(MayShare::Unproven("no PersistentVolume has it".into())),
            Some(pv) => claim_of(&pv),
        };
        let Some((namespace, claim)) = claim else {
            return Ok(MayShare::Unproven("no claim is bound to it".into()));
        };
        let pods = self.pods(&namespace).await?;
        let users: Vec<_> = pods.iter().filter(|p| uses(p, &claim)).map(user).collect();
        let launchers: Vec<_> =
            pods.iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, user(pod)))).collect();
        Ok(one_machine(&users, &launchers, node.as_str()))
    }

    /// The PV of a volume, if there is one. The provisioner names it as the volume; one that
    /// was made by hand may have any name.
    pub(crate) async fn persistent_volume(
        &self,
        volume: &VolumeId,
    ) -> Result<Option<PersistentVolume>, kube::Error> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let ours = |pv: &PersistentVolume| self.handle(pv).as_ref() == Some(volume);
        if let Some(pv) = api.get_opt(volume.as_str()).await?.filter(ours) {
            return Ok(Some(pv));
        }
        Ok(api.list(&ListParams::default()).await?.items.into_iter().find(ours))
    }

    /// Which volume of this driver a PV is of.
    pub(crate) fn handle(&self, pv: &PersistentVolume) -> Option<VolumeId> {
        let csi = pv.spec.as_ref()?.csi.as_ref()?;
        (csi.driver == self.driver).then(|| csi.volume_handle.parse().ok())?
    }

    /// All pods of a namespace that have not ended, as they are now (no resource version is
    /// asked for, so it is what the cluster agreed on last).
    pub(crate) async fn pods(&self, namespace: &str) -> Result<Vec<Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut pods = api.list(&ListParams::default()).await?.items;
        pods.retain(|pod| !ended(pod));
        Ok(pods)
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn driver(&self) -> &str {
        &self.driver
    }
}

/// Namespace and name of the claim that a PV is bound to.
pub(crate) fn claim_of(pv: &PersistentVolume) -> Option<(String, String)> {
    let ObjectReference { namespace, name, .. } = pv.spec.as_ref()?.claim_ref.clone()?;
    Some((namespace?, name?))
}

/// Its containers have ended for good: kubelet lets go of its volumes.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod uses a claim of its namespace, also one that was made for just this pod
/// (a generic ephemeral volume's claim is called POD-VOLUME).
pub(crate) fn uses(pod: &Pod, claim: &str) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| {
        let named = volume.persistent_volume_claim.as_ref();
        named.is_some_and(|source| source.claim_name == claim)
            || (volume.ephemeral.is_some()
                && claim == format!("{}-{}", pod.name_any(), volume.name))
    })
}

fn user(pod: &Pod) -> User {
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let owner = owner.map(|owner| match owner.kind.as_str() {
        "VirtualMachineInstance" if owner.api_version.starts_with(KUBEVIRT) => {
            Owner::Instance(owner.uid.clone())
        }
        "Pod" if owner.api_version == "v1" => Owner::Pod(owner.uid.clone()),
        kind => Owner::Other(kind.to_owned()),
    });
    User {
        pod: pod.name_any(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        label: pod.labels().get("vm.kubevirt.io/name").cloned(),
        owner,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_claim_is_used_by_name_and_by_origin() {
        let volumes = json!([
            {"name": "a", "emptyDir": {}},
            {"name": "b", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "c", "ephemeral": {"volumeClaimTemplate": {"spec": {
                "accessModes": [], "resources": {}}}}},
        ]);
        let pod = pod(json!({"metadata": {"name": "p"},
            "spec": {"containers": [], "volumes": volumes}}));
        for (claim, is) in
            [("data", true), ("p-c", true), ("a", false), ("p-a", false), ("c", false)]
        {
            assert_eq!(uses(&pod, claim), is, "{claim}");
        }
    }

    #[test]
    fn a_pods_owner_counts_only_if_it_controls_it_and_is_of_the_group() {
        let of = |version: &str, kind: &str, controller: bool| {
            user(&pod(json!({"metadata": {"name": "p", "ownerReferences": [{
                "apiVersion": version, "kind": kind, "name": "x", "uid": "1",
                "controller": controller}]}})))
            .owner
        };
        let instance = "VirtualMachineInstance";
        assert_eq!(of("kubevirt.io/v1", instance, true), Some(Owner::Instance("1".into())));
        assert_eq!(of("kubevirt.io/v1", instance, false), None);
        assert_eq!(of("mine/v1", instance, true), Some(Owner::Other(instance.into())));
        assert_eq!(of("v1", "Pod", true), Some(Owner::Pod("1".into())));
    }

    #[test]
    fn only_a_pod_that_ended_uses_nothing() {
        for (phase, is) in [("Running", false), ("Pending", false), ("Failed", true)] {
            assert_eq!(ended(&pod(json!({"metadata": {}, "status": {"phase": phase}}))), is);
        }
        // Being deleted is not ended: it may run on for a long time.
        assert!(!ended(&pod(json!({"metadata": {
            "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}))));
    }
}
