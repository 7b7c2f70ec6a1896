//! Who uses a claim, and what is still asked for, as a real API server tells it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::bench::*;
use crate::lab::*;

fn id(n: u32) -> String {
    format!("pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b{n:04}")
}

/// Of one driver; the others of this file have their own.
struct World {
    client: Client,
    driver: &'static str,
    lab: Lab,
    controller: Replica,
}

impl World {
    async fn start(driver: &'static str, flags: &[&str]) -> Option<Self> {
        let cluster = cluster()?;
        let (mut lab, client) =
            tokio::join!(Lab::start_with(&["--allow-host-list"], |_| {}), client(cluster));
        lab.controller.kill();
        free_lease(&client, driver).await;
        let controller = Replica::start_with(&lab, cluster, driver, "one", flags).await;
        controller.leads_within(Duration::from_secs(10)).await;
        Some(Self { client, driver, lab, controller })
    }

    async fn make<K>(&self, api: Api<K>, object: Value)
    where
        K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let object = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// A volume on the appliance, and its PV bound to the claim of that name.
    async fn volume(&self, volume: &str, claim: &str) {
        let mut request = create_request(volume);
        request.volume_capabilities = vec![block(Mode::MultiNodeMultiWriter)];
        self.controller.volumes().create_volume(request).await.unwrap();
        let pv = json!({"metadata": {"name": volume}, "spec": {
            "capacity": {"storage": "64Mi"},
            "accessModes": ["ReadWriteMany"],
            "volumeMode": "Block",
            "csi": {"driver": self.driver, "volumeHandle": volume},
            "claimRef": {"namespace": "default", "name": claim},
        }});
        self.make(Api::<PersistentVolume>::all(self.client.clone()), pv).await;
    }

    /// A pod for a node, with a claim, an owner and further labels.
    async fn pod(&self, name: &str, node: &str, claim: &str, owner: Value, labels: Value) {
        let owners = if owner.is_null() { json!([]) } else { json!([owner]) };
        let pod = json!({
            "metadata": {"name": name, "ownerReferences": owners, "labels": labels},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "i",
                    "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}]}],
                "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": claim}}],
            },
        });
        self.make(self.pods(), pod).await;
    }

    async fn launcher(&self, name: &str, node: &str, claim: &str, uid: &str) {
        let owner = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "name": "db", "uid": uid, "controller": true});
        self.pod(name, node, claim, owner, json!({"vm.kubevirt.io/name": "db"})).await;
    }

    async fn gone(&self, pod: &str) {
        self.pods().delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    async fn attachment(&self, name: &str, volume: &str, node: &str) {
        let attachment = json!({"metadata": {"name": name}, "spec": {
            "attacher": self.driver, "nodeName": node,
            "source": {"persistentVolumeName": volume}}});
        self.make(Api::<VolumeAttachment>::all(self.client.clone()), attachment).await;
    }

    async fn publish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = publish_request(volume, node, block(Mode::MultiNodeMultiWriter));
        self.controller.volumes().controller_publish_volume(request).await.map(drop)
    }

    async fn exported(&self, volume: &str) -> bool {
        self.lab.item(volume).await.unwrap()["nvme-tcp-export"] == "true"
    }
}

#[tokio::test]
async fn a_second_node_comes_only_for_one_machine() {
    let Some(world) = World::start("users.example", &["--allow-host-list"]).await else { return };
    let refuses = async |said: &str| {
        refused(world.publish(&id(1), "node-2").await, Code::FailedPrecondition, said);
    };
    refused(world.publish(&id(1), "node-1").await, Code::NotFound, "does not exist");
    world.volume(&id(1), "disk-1").await;
    world.publish(&id(1), "node-1").await.unwrap();
    refuses("no pod uses the claim").await;
    world.launcher("source", "node-1", "disk-1", "1").await;
    refuses("no pod that uses the claim is for node node-2").await;
    // The same name, and another machine.
    world.launcher("restarted", "node-2", "disk-1", "2").await;
    refuses("two instances of the machine db").await;
    world.gone("restarted").await;
    world
        .pod("backup", "node-2", "disk-1", Value::Null, json!({"vm.kubevirt.io/name": "db"}))
        .await;
    refuses("pod backup belongs to no machine").await;
    world.gone("backup").await;
    // Another claim's pods are none of its users.
    world.pod("other", "node-2", "disk-2", Value::Null, json!({})).await;
    world.launcher("target", "node-2", "disk-1", "1").await;
    world.publish(&id(1), "node-2").await.unwrap();
    refused(world.publish(&id(1), "node-3").await, Code::FailedPrecondition, "two is the most");
    let item = world.lab.item(&id(1)).await.unwrap();
    let comment = item["comment"].as_str().unwrap();
    assert!(comment.contains("node-1") && comment.contains("node-2"), "{comment}");
}

#[tokio::test]
async fn only_what_nothing_asks_for_is_detached() {
    let flags = ["--detach-stale-after", "10", "--metrics-addr", "127.0.0.1:0"];
    let Some(world) = World::start("stale.example", &flags).await else { return };
    for (n, claim) in [(11, "asked"), (12, "used"), (13, "stale")] {
        world.volume(&id(n), claim).await;
    }
    world.attachment("csi-11", &id(11), "node-1").await;
    world.pod("user", "node-1", "used", Value::Null, json!({})).await;
    // On another node, so it says nothing of this one.
    world.pod("elsewhere", "node-2", "stale", Value::Null, json!({})).await;
    // Without a PersistentVolume here: perhaps another cluster's.
    world.controller.volumes().create_volume(create_request(&id(14))).await.unwrap();
    world.controller.publish(&id(14), "node-1").await.unwrap();
    for n in [11, 12, 13] {
        world.publish(&id(n), "node-1").await.unwrap();
    }
    // That a node's object goes proves nothing.
    let nodes = Api::<Node>::all(world.client.clone());
    world.make(nodes.clone(), json!({"metadata": {"name": "node-1"}})).await;
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    let begun = Instant::now();
    let detached = async |volume: &str| {
        while world.exported(volume).await {
            let log = tail(&world.controller.log);
            assert!(begun.elapsed() < Duration::from_secs(60), "{volume} is still attached: {log}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        begun.elapsed()
    };
    let took = detached(&id(13)).await;
    assert!(took >= Duration::from_secs(9), "after {took:?} already");
    // To the end of a look: it takes what it finds in any order.
    let looks = async || world.controller.number("reconciles_total{result=\"ok\"}").await;
    let before = looks().await;
    while looks().await == before {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", tail(&world.controller.log));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let said = std::fs::read_to_string(&world.controller.log).unwrap();
    for kept in ["pod default/user there uses it", "it may be another cluster's"] {
        assert!(said.contains(kept), "{kept}: {}", tail(&world.controller.log));
    }
    assert!(world.exported(&id(11)).await && world.exported(&id(12)).await);
    let other = world.controller.publish(&id(14), "node-2").await;
    refused(other, Code::FailedPrecondition, "node-1");
    // Removed by force, with its finalizers, as far as the controller can tell.
    let attachments = Api::<VolumeAttachment>::all(world.client.clone());
    attachments.delete("csi-11", &DeleteParams::default()).await.unwrap();
    detached(&id(11)).await;
    assert!(world.exported(&id(12)).await && world.exported(&id(14)).await);
}
