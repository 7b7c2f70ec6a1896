//! The rights that the chart gives, against what the controller asks a real API server for: each
//! one is used, and nothing is asked for that is not given. So whichever of them is taken away, a
//! request of this life is refused.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use rds_kube::{Cluster, manifests};
use serde_json::json;

use crate::bench::*;
use crate::lab::*;

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e31";
const DRIVER: &str = "rights.example";
/// A Lease that is not there is waited for, as one that is held (9 s).
const LEADS: Duration = Duration::from_secs(20);
/// The least that may be set; the comparison of what is attached comes by itself after it.
const STALE_AFTER: &str = "10";
const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn each_right_is_used_and_no_other_asked_for() {
    let Some(cluster) = Cluster::start().unwrap() else { return };
    let (mut lab, client) = tokio::join!(Lab::start(), client(&cluster));
    lab.controller.kill();
    allow_the_controller(&client, DRIVER).await;
    let flags = ["--detach-stale-after", STALE_AFTER];
    let controller = Replica::start_with(&lab, &cluster, DRIVER, "one", &flags).await;
    controller.leads_within(LEADS).await;
    let mut request = create_request(VOLUME);
    request.volume_capabilities = vec![block(Mode::MultiNodeMultiWriter)];
    controller.volumes().create_volume(request).await.unwrap();
    let pv = json!({"metadata": {"name": VOLUME}, "spec": {
        "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "capacity": {"storage": "64Mi"},
        "csi": {"driver": DRIVER, "volumeHandle": VOLUME},
        "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "disk"}}});
    put(Api::<PersistentVolume>::all(client.clone()), pv).await.unwrap();

    // Twice the same, which makes a series of the Event.
    for _ in 0..2 {
        publish(&controller, "node-1").await.unwrap();
        controller.unpublish(VOLUME, "node-1").await.unwrap();
    }
    publish(&controller, "node-1").await.unwrap();
    // Who uses the claim is asked for before a second node is let in; nobody does.
    assert!(publish(&controller, "node-2").await.is_err());

    let granted = manifests::granted(PART).unwrap();
    let begun = Instant::now();
    loop {
        let asked = cluster.asked_by("controller").unwrap();
        let beyond: Vec<_> = asked.difference(&granted).collect();
        assert!(beyond.is_empty(), "asked for, and not in the chart's roles: {beyond:?}");
        let unused: Vec<_> = granted.difference(&asked).collect();
        if unused.is_empty() {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "in the chart's roles, and never used: {unused:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eprintln!("{} rights, all used after {:?}", granted.len(), begun.elapsed());
}

async fn publish(controller: &Replica, node: &str) -> Result<(), tonic::Status> {
    let request = publish_request(VOLUME, node, block(Mode::MultiNodeMultiWriter));
    controller.volumes().controller_publish_volume(request).await.map(drop)
}
