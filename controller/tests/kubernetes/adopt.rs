//! `--adopt`: volumes of the Go driver of the same name become ours, if a PersistentVolume names
//! them and nobody uses them, as a real API server tells it. Over both transports. What is done
//! with them before: `switch_over.rs`.

use std::process::Command;

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use rds_csi_proto::csi::*;
use rds_kube::Cluster;
use serde_json::{Value, json};
use tonic::Code;

use crate::bench::*;
use crate::lab::*;

/// One driver's world, in a cluster that other tests use too.
struct World {
    cluster: &'static Cluster,
    client: Client,
    driver: &'static str,
    prefix: &'static str,
    lab: Lab,
}

impl World {
    async fn start(via: Via, driver: &'static str, prefix: &'static str) -> Option<Self> {
        let cluster = cluster()?;
        let client = client(cluster).await;
        allow_the_controller(&client, driver).await;
        let lab = Lab::start_via(via, &[], |_| {}).await;
        Some(Self { cluster, client, driver, prefix, lab })
    }

    fn id(&self, n: u32) -> String {
        format!("pvc-{}-9d6e-4a3c-8f54-0c7a6a0b{n:04}", self.prefix)
    }

    /// Exit code and report.
    fn adopt(&self, flags: &[&str]) -> (Option<i32>, String) {
        let out = Command::new(CONTROLLER)
            .args(self.lab.controller_args())
            .args(["--adopt", "--driver-name", self.driver, "--cluster-id", "lab"])
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig_of("controller"))
            .args(flags)
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        println!("{text}{}", String::from_utf8_lossy(&out.stderr));
        (out.status.code(), text)
    }

    async fn pv(&self, n: u32) {
        let pv = go_driver::persistent_volume(self.driver, &self.id(n), &self.claim(n));
        put(Api::<PersistentVolume>::all(self.client.clone()), pv).await.unwrap();
    }

    fn claim(&self, n: u32) -> String {
        format!("{}-{n}", self.prefix)
    }

    async fn pod(&self, n: u32, status: Value) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let name = self.claim(n);
        let pod = json!({"metadata": {"name": name}, "spec": {
            "nodeName": "worker-1",
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}});
        put(pods.clone(), pod).await.unwrap();
        let status = Patch::Merge(json!({"status": status}));
        pods.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
    }

    async fn attachment(&self, n: u32, attached: bool) {
        let all: Api<VolumeAttachment> = Api::all(self.client.clone());
        let name = format!("csi-{}", self.claim(n));
        let object = json!({"metadata": {"name": name}, "spec": {
            "attacher": self.driver, "nodeName": "worker-1",
            "source": {"persistentVolumeName": self.id(n)}}});
        put(all.clone(), object).await.unwrap();
        let status = Patch::Merge(json!({"status": {"attached": attached}}));
        all.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
    }
}

/// An export takes a moment to show.
async fn settled() {
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
}

#[track_caller]
fn says(text: &str, volume: &str, what: &str) {
    let line = text.lines().find(|line| line.starts_with(volume)).expect(volume);
    assert!(line.contains(what), "{line}");
}

#[tokio::test]
async fn volumes_of_the_go_driver_become_ours_when_asked() {
    let Some(world) = World::start(Via::Rest, "adopt-rest.example", "00000001").await else {
        return;
    };
    become_ours(&world).await;
}

#[tokio::test]
async fn volumes_of_the_go_driver_become_ours_over_ssh() {
    let Some(world) = World::start(Via::Ssh, "adopt-ssh.example", "00000002").await else {
        return;
    };
    become_ours(&world).await;
}

async fn become_ours(world: &World) {
    let (lab, id) = (&world.lab, |n| world.id(n));
    // None at all would be another driver's cluster, or too few rights.
    assert_eq!(world.adopt(&["--yes"]).0, Some(1));
    let mut before = Vec::new();
    for n in 1..=8 {
        let item = go_driver::make_disk(lab, &id(n)).await;
        if n != 5 {
            world.pv(n).await;
        }
        before.push((n, item));
    }
    // 1: free. 2: attached, by the other driver's word. 3: in a pod, from before that driver
    // had attachments. 4: somebody has written on it. 5: without a PersistentVolume.
    // 6: waited for by a pod. 7: half adopted. 8: in an init container. 9: not there.
    world.attachment(2, true).await;
    world.pod(3, json!({"phase": "Running"})).await;
    world.attachment(6, false).await;
    world.pod(6, json!({"phase": "Pending"})).await;
    let init = json!([{"name": "c", "image": "i", "imageID": "", "ready": false,
        "restartCount": 0, "containerID": "containerd://1"}]);
    world.pod(8, json!({"phase": "Pending", "initContainerStatuses": init})).await;
    world.pv(9).await;
    let set = async |n: u32, properties: Value| {
        let mut properties = properties;
        properties[".id"] = lab.item(&id(n)).await.unwrap()[".id"].clone();
        assert_eq!(lab.rest("POST", "/rest/disk/set", properties).await.0, 200);
    };
    set(4, json!({"comment": "the shop's"})).await;
    set(
        7,
        json!({"nvme-tcp-export": "no",
        "nvme-tcp-server-allow-host-name": rds_csi_proto::ids::HostNqn::closed().to_string()}),
    )
    .await;
    settled().await;
    for (n, item) in &mut before {
        *item = lab.item(&id(*n)).await.unwrap();
    }

    let unchanged = async |which: &[u32]| {
        for (n, item) in before.iter().filter(|(n, _)| which.contains(n)) {
            assert_eq!(lab.item(&id(*n)).await.unwrap(), *item, "{n}");
        }
    };
    let refusals = [
        (2, "in use by VolumeAttachment"),
        (3, "in use by pod default/"),
        (4, "the shop's"),
        (5, "no PersistentVolume here names it"),
        (8, "in use by pod default/"),
        (9, "no appliance has it"),
    ];
    let (code, text) = world.adopt(&[]);
    assert_eq!(code, Some(1), "not all can be");
    says(&text, &id(1), "to be adopted; exported to any host");
    says(&text, &id(6), "to be adopted; exported to any host");
    says(&text, &id(7), "to be adopted; not exported");
    for (n, why) in refusals {
        says(&text, &id(n), why);
    }
    unchanged(&[1, 2, 3, 4, 5, 6, 7, 8]).await;

    let (code, text) = world.adopt(&["--yes"]);
    assert_eq!(code, Some(1));
    for n in [1, 6, 7] {
        says(&text, &id(n), "ADOPTED");
        let item = lab.item(&id(n)).await.unwrap();
        assert_eq!(item["comment"], format!("rds-csi v1 cluster=lab vol={} stage=ready", id(n)));
        assert_eq!(
            (&item["nvme-tcp-export"], &item["mount-filesystem"]),
            (&json!("false"), &json!("false"))
        );
        let host = item["nvme-tcp-server-allow-host-name"].as_str().unwrap();
        assert!(host.parse::<rds_csi_proto::ids::HostNqn>().unwrap().is_closed(), "{host}");
        assert!(go_driver::has_its_data(lab, &id(n)));
    }
    for (n, why) in refusals {
        says(&text, &id(n), why);
    }
    unchanged(&[2, 3, 4, 5, 8]).await;

    life(world, 1).await;

    // What was in the way is gone. The rest is as it was.
    let attachments: Api<VolumeAttachment> = Api::all(world.client.clone());
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let at_once = DeleteParams::default().grace_period(0);
    attachments.delete(&format!("csi-{}", world.claim(2)), &at_once).await.unwrap();
    pods.delete(&world.claim(3), &at_once).await.unwrap();
    let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status(&world.claim(8), &PatchParams::default(), &ended).await.unwrap();
    set(4, json!({"comment": ""})).await;
    let pvs: Api<PersistentVolume> = Api::all(world.client.clone());
    for n in [1, 9] {
        // No controller is here that would let go of it.
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        pvs.patch(&id(n), &PatchParams::default(), &free).await.unwrap();
        pvs.delete(&id(n), &DeleteParams::default()).await.unwrap();
    }
    let (code, text) = world.adopt(&["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    for n in [2, 3, 4, 8] {
        says(&text, &id(n), "ADOPTED");
    }
    says(&text, &id(6), "ours");
    unchanged(&[5]).await;
    refused(lab.delete(&id(5)).await, Code::FailedPrecondition, "docs/switch-over.md");

    // Back to the other driver, as the document says.
    let back = json!({"comment": "", "nvme-tcp-server-allow-host-name": "",
        "mount-filesystem": "yes", "nvme-tcp-export": "yes"});
    set(2, back).await;
    settled().await;
    unchanged(&[2]).await;
}

/// All that is done with a volume, with the attributes that its PersistentVolume has.
async fn life(world: &World, n: u32) {
    let (lab, volume) = (&world.lab, world.id(n));
    let request = |node: &str| ControllerPublishVolumeRequest {
        volume_context: go_driver::attributes(&volume),
        ..publish_request(&volume, node, mount(Mode::SingleNodeWriter))
    };
    let context = lab.publish_with(request("worker-1")).await.unwrap();
    assert_eq!(context["nqn"], go_driver::nqn(&volume));
    assert_eq!(
        (context["nvmeAddress"].as_str(), context["nvmePort"].as_str()),
        ("10.42.68.1", "4420")
    );
    let item = lab.item(&volume).await.unwrap();
    assert_eq!(item["nvme-tcp-server-allow-host-name"], context["hostNqn"]);
    assert_eq!(item["nvme-tcp-export"], "true");
    refused(lab.publish_with(request("worker-2")).await, Code::FailedPrecondition, "worker-1");
    refused(lab.delete(&volume).await, Code::FailedPrecondition, "worker-1");
    let grow = ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 }),
        ..Default::default()
    };
    let grown = lab.volumes().controller_expand_volume(grow).await.unwrap().into_inner();
    assert_eq!(grown.capacity_bytes, 128 * MIB);
    assert_eq!(lab.publish_with(request("worker-1")).await.unwrap(), context);
    let list = lab.volumes().list_volumes(ListVolumesRequest::default()).await.unwrap();
    let listed: Vec<_> = list.into_inner().entries;
    let ids: Vec<_> = listed.iter().filter_map(|e| e.volume.as_ref()).collect();
    let ids: Vec<_> = ids.iter().map(|v| v.volume_id.clone()).collect();
    assert_eq!(ids, [world.id(1), world.id(6), world.id(7)]);
    lab.unpublish(&volume, "worker-1").await.unwrap();
    let get = ControllerGetVolumeRequest { volume_id: volume.clone() };
    let got = lab.volumes().controller_get_volume(get).await.unwrap().into_inner();
    assert!(!got.status.unwrap().volume_condition.unwrap().abnormal);
    assert!(go_driver::has_its_data(lab, &volume));
    let name = volume.replace("pvc", "snapshot");
    let taken = snapshots::snapshot(lab, &name, &volume).await.unwrap();
    assert_eq!(taken.size_bytes, 128 * MIB);
    let delete = DeleteSnapshotRequest { snapshot_id: taken.snapshot_id, ..Default::default() };
    lab.volumes().delete_snapshot(delete).await.unwrap();
    // Adopted, and so of unknown age: never swept, whoever lists it or not.
    let known = lab.path("known");
    std::fs::write(&known, world.id(6)).unwrap();
    let sweep = Command::new(CONTROLLER)
        .args(lab.controller_args())
        .args(["--cluster-id", "lab", "--orphans", "--sweep", "--yes", "--known"])
        .arg(&known)
        .output()
        .unwrap();
    says(&String::from_utf8(sweep.stdout).unwrap(), &volume, "age unknown, never swept");
    lab.delete(&volume).await.unwrap();
    assert!(lab.item(&volume).await.is_none() && !lab.file_exists(&volume).await);
}
