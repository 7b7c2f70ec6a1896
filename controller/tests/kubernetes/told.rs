//! What the cluster is told: annotations on the PV, Events on the claim.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::bench::*;
use crate::lab::*;

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
/// Longer than the tag has room for twice.
const SOURCE: &str = "worker-with-a-long-name-1";
const TARGET: &str = "worker-with-a-long-name-2";
const DRIVER: &str = "told.example";
const LISTING: &[&str] = &["--allow-host-list", "--allow-shared-block"];

struct Told {
    volumes: Api<PersistentVolume>,
    events: Api<Event>,
    claim: String,
}

impl Told {
    /// A claim and its PV, which is not named as the volume is.
    async fn new(client: &kube::Client) -> Self {
        let claim = json!({"metadata": {"name": "disk"}, "spec": {
            "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "volumeName": "by-hand",
            "resources": {"requests": {"storage": "64Mi"}}}});
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
        let claim = put(claims, claim).await.unwrap().uid().unwrap();
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let pv = json!({"metadata": {"name": "by-hand"}, "spec": {
            "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "capacity": {"storage": "64Mi"},
            "csi": {"driver": DRIVER, "volumeHandle": VOLUME},
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "disk",
                "uid": claim, "resourceVersion": "1"}}});
        put(volumes.clone(), pv).await.unwrap();
        Self { volumes, events: Api::namespaced(client.clone(), "default"), claim }
    }

    /// Waits until the PV says so.
    async fn attached_to(&self, nodes: &[&str]) {
        let begun = Instant::now();
        loop {
            let pv = self.volumes.get("by-hand").await.unwrap();
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
                    && e.reporting_controller.as_deref() == Some(DRIVER)
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
    let told = Told::new(&client).await;
    let mut replica = Replica::start_with(&lab, cluster, DRIVER, "teller", LISTING).await;
    replica.leads_within(Duration::from_secs(5)).await;
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
    replica.leads_within(Duration::from_secs(5)).await;
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
