//! What the cluster is told: annotations on the PV, Events on the claim.

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::bench::*;
use crate::lab::*;
use crate::wire::{State, Wire};

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
/// Longer than the tag has room for twice.
const SOURCE: &str = "worker-with-a-long-name-1";
const TARGET: &str = "worker-with-a-long-name-2";
const DRIVER: &str = "told.example";
const LISTING: &[&str] = &["--allow-host-list", "--allow-shared-block"];

struct Told {
    driver: &'static str,
    /// Of the claim and of its PV, which is not named as the volume is.
    name: &'static str,
    volumes: Api<PersistentVolume>,
    events: Api<Event>,
    claim: String,
}

impl Told {
    async fn new(client: &kube::Client, driver: &'static str, name: &'static str) -> Self {
        let claim = json!({"metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "volumeName": name,
            "resources": {"requests": {"storage": "64Mi"}}}});
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
        let claim = put(claims, claim).await.unwrap().uid().unwrap();
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let pv = json!({"metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "capacity": {"storage": "64Mi"},
            "csi": {"driver": driver, "volumeHandle": VOLUME},
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": name,
                "uid": claim, "resourceVersion": "1"}}});
        put(volumes.clone(), pv).await.unwrap();
        Self { driver, name, volumes, events: Api::namespaced(client.clone(), "default"), claim }
    }

    async fn annotation(&self, key: &str) -> Option<String> {
        let pv = self.volumes.get(self.name).await.unwrap();
        pv.annotations().get(&format!("rds.csi.srvlab.io/{key}")).cloned()
    }

    /// Waits until the PV says so.
    async fn attached_to(&self, nodes: &[&str]) {
        let begun = Instant::now();
        loop {
            let pv = self.volumes.get(self.name).await.unwrap();
            let says = |key: &str| {
                pv.annotations().get(&format!("rds.csi.srvlab.io/{key}")).map(String::as_str)
            };
            let list = (!nodes.is_empty()).then(|| json!(nodes).to_string());
            let since =
                says("attached-at").is_some_and(|t| t.starts_with("20") && t.ends_with('Z'));
            if says("attached-node") == nodes.first().copied()
                && says("attached-nodes") == list.as_deref()
                && since != nodes.is_empty()
            {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(8), "{nodes:?}: {:?}", pv.annotations());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for an Event on the claim, and gives its text.
    async fn event(&self, reason: &str, node: Option<&str>) -> String {
        let begun = Instant::now();
        loop {
            let all = self.events.list(&Default::default()).await.unwrap();
            let is_it = |e: &&Event| {
                let related = e.related.as_ref().and_then(|r| r.name.as_deref());
                let about = e.regarding.as_ref().and_then(|r| r.uid.as_deref());
                e.reason.as_deref() == Some(reason)
                    && related == node
                    && about == Some(self.claim.as_str())
                    && e.reporting_controller.as_deref() == Some(self.driver)
            };
            if let Some(found) = all.iter().find(is_it) {
                return found.note.clone().unwrap();
            }
            let seen: Vec<_> = all.iter().map(|e| (&e.reason, &e.note)).collect();
            assert!(begun.elapsed() < Duration::from_secs(8), "no {reason} of {node:?}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_migration_is_told_on_the_claim_and_on_the_pv() {
    let Some(cluster) = cluster() else { return };
    let (mut lab, client) = tokio::join!(Lab::start_with(&LISTING[..1], |_| {}), client(cluster));
    lab.controller.kill();
    free_lease(&client, DRIVER).await;
    let told = Told::new(&client, DRIVER, "by-hand").await;
    let mut replica = Replica::start_with(&lab, cluster, DRIVER, "teller", LISTING).await;
    replica.leads_within(Duration::from_secs(10)).await;
    let mut request = create_request(VOLUME);
    request.volume_capabilities = vec![block(Mode::MultiNodeMultiWriter)];
    replica.volumes().create_volume(request).await.unwrap();
    let on = |node| publish_request(VOLUME, node, block(Mode::MultiNodeMultiWriter));

    replica.volumes().controller_publish_volume(on(SOURCE)).await.unwrap();
    told.attached_to(&[SOURCE]).await;
    told.event("VolumeAttached", Some(SOURCE)).await;

    replica.volumes().controller_publish_volume(on(TARGET)).await.unwrap();
    told.attached_to(&[SOURCE, TARGET]).await;
    let text = told.event("MigrationStarted", Some(TARGET)).await;
    assert!(text.contains(SOURCE) && text.contains("300 s"), "{text}");

    // The next leader, which has heard of neither node, goes on with the story.
    assert_eq!(replica.process.terminate().await, Some(0));
    let replica = Replica::start_with(&lab, cluster, DRIVER, "next", LISTING).await;
    replica.leads_within(Duration::from_secs(10)).await;
    replica.unpublish(VOLUME, SOURCE).await.unwrap();
    told.attached_to(&[TARGET]).await;
    told.event("FencedNode", Some(SOURCE)).await;
    told.event("VolumeDetached", Some(SOURCE)).await;
    let text = told.event("MigrationCompleted", Some(TARGET)).await;
    assert!(text.contains(SOURCE) && text.contains(TARGET), "{text}");

    // Somebody turns the export off by hand.
    let off = json!({".id": lab.item(VOLUME).await.unwrap()[".id"], "nvme-tcp-export": "no"});
    assert_eq!(lab.rest("POST", "/rest/disk/set", off).await.0, 200);
    let off = async || lab.item(VOLUME).await.unwrap()["nvme-tcp-export"] == "false";
    while !off().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    replica.volumes().controller_publish_volume(on(TARGET)).await.unwrap();
    let text = told.event("ExportRepaired", None).await;
    assert!(text.contains("turned on again"), "{text}");

    replica.unpublish(VOLUME, TARGET).await.unwrap();
    told.attached_to(&[]).await;
    told.event("VolumeDetached", Some(TARGET)).await;
}

#[tokio::test]
async fn no_call_waits_for_the_cluster_to_be_told_and_it_is_told_when_it_answers() {
    const SILENT: &str = "silent.example";
    let Some(cluster) = cluster() else { return };
    let (mut lab, client) = tokio::join!(Lab::start(), client(cluster));
    lab.controller.kill();
    let leases = free_lease(&client, SILENT).await;
    let told = Told::new(&client, SILENT, "unheard").await;
    let wire = Wire::to(cluster).await;
    let mut command = Command::new(CONTROLLER);
    command.arg("--kubeconfig").arg(wire.kubeconfig(&lab, cluster));
    let mut replica = Replica::spawn(&lab, SILENT, "one", command).await;
    replica.leads_within(Duration::from_secs(10)).await;
    replica.create(VOLUME).await.unwrap();
    replica.publish(VOLUME, SOURCE).await.unwrap();
    told.attached_to(&[SOURCE]).await;
    let renewed = async || leases.get(SILENT).await.unwrap().spec.unwrap().renew_time;
    let renewal = async || {
        let (begun, before) = (Instant::now(), renewed().await);
        while renewed().await == before {
            assert!(begun.elapsed() < Duration::from_secs(8), "{}", tail(&replica.log));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };

    // Shorter than a lease: beyond that it does not lead any more (election.rs).
    renewal().await;
    wire.is(State::Silent);
    let begun = Instant::now();
    replica.unpublish(VOLUME, SOURCE).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "waited: {:?}", begun.elapsed());
    assert_eq!(lab.item(VOLUME).await.unwrap()["nvme-tcp-export"], "false");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(told.annotation("attached-node").await.as_deref(), Some(SOURCE), "not silent");
    wire.is(State::Open);
    told.event("VolumeDetached", Some(SOURCE)).await;
    told.attached_to(&[]).await;

    renewal().await;
    wire.is(State::Cut);
    let begun = Instant::now();
    replica.publish(VOLUME, TARGET).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "waited: {:?}", begun.elapsed());
    // Long enough to have failed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(told.annotation("attached-node").await, None, "not cut");
    wire.is(State::Open);
    told.event("VolumeAttached", Some(TARGET)).await;
    told.attached_to(&[TARGET]).await;
    assert!(replica.leads().await && replica.process.ended().is_none());
}
