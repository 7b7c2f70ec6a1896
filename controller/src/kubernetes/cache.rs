//! Objects of the cluster, followed by a watch and kept in memory.
//!
//! They are as old as the way here is long, and older while the API server is away: enough to
//! tell people something, never enough to let a node have a volume.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use rds_csi_proto::ids::VolumeId;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::Cluster;

/// How long one watch lasts, by the server's clock. A connection that died without a word is
/// noticed soon after.
pub(crate) const WATCH_SECONDS: u32 = 60;

/// What is followed. Clones share it.
#[derive(Clone)]
pub(crate) struct Cache {
    driver: Arc<str>,
    volumes: Store<PersistentVolume>,
}

impl Cache {
    /// Begins to follow, until told to stop.
    pub(crate) fn start(cluster: &Cluster, driver: &str, stop: &CancellationToken) -> Self {
        let client = || cluster.client.clone();
        Self { driver: driver.into(), volumes: follow(Api::all(client()), stop) }
    }

    /// Returns when everything was read once.
    pub(crate) async fn ready(&self) {
        // An error says that nobody follows any more: we are ending.
        self.volumes.wait_until_ready().await.ok();
    }

    /// The volume's PV, if it is known.
    pub(crate) fn volume(&self, volume: &VolumeId) -> Option<Arc<PersistentVolume>> {
        let ours = |pv: &PersistentVolume| is_of(pv, &self.driver, volume);
        // The provisioner names both alike; what was made by hand may be called anything.
        let named = self.volumes.get(&ObjectRef::new(volume.as_str()));
        named.filter(|pv| ours(pv)).or_else(|| self.volumes.find(ours))
    }
}

fn is_of(pv: &PersistentVolume, driver: &str, volume: &VolumeId) -> bool {
    let source = pv.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    source.is_some_and(|csi| csi.driver == driver && csi.volume_handle == volume.as_str())
}

/// Follows all objects of a kind. Errors are tried again with a growing pause, for ever.
pub(crate) fn follow<K>(api: Api<K>, stop: &CancellationToken) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let events = watcher(api, config)
        .default_backoff()
        // Half of most objects, and of no use here.
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .take_until(stop.clone().cancelled_owned());
    tokio::spawn(events.for_each(|event| async {
        if let Err(error) = event {
            tracing::warn!(kind = %K::kind(&()), "cannot follow the cluster's objects: {error}");
        }
    }));
    reader
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pv_is_the_volumes_by_driver_and_handle() {
        let volume = VolumeId::from_request_name("v");
        let pv = |driver: &str, handle: &str| {
            let csi = json!({"driver": driver, "volumeHandle": handle});
            serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": {"csi": csi}}))
        };
        for (driver, handle, is) in
            [("d", volume.as_str(), true), ("e", volume.as_str(), false), ("d", "other", false)]
        {
            assert_eq!(pv(driver, handle).is_ok_and(|pv| is_of(&pv, "d", &volume)), is);
        }
    }
}
