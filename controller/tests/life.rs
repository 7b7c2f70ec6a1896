//! A volume's life, from its creation to its end, against the simulated appliance.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::collections::HashMap;
use std::time::Duration;

use lab::*;
use rds_csi_proto::context::PublishContext;
use rds_csi_proto::csi::*;
use rds_csi_proto::params::VolumeParams;
use serde_json::{Value, json};
use tonic::Code;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

#[tokio::test]
async fn from_creation_to_deletion() {
    let lab = Lab::start().await;
    let mut request = create_request(ID);
    request.capacity_range = Some(CapacityRange { required_bytes: 64 * MIB + 1, limit_bytes: 0 });
    request.parameters = HashMap::from([
        ("ioTimeoutSeconds".into(), "30".into()),
        ("csi.storage.k8s.io/pvc/name".into(), "data".into()),
    ]);
    let volume = lab.create_with(request.clone()).await.unwrap();
    assert_eq!(volume.volume_id, ID);
    assert_eq!(volume.capacity_bytes, 64 * MIB + 4096);
    let context = &volume.volume_context;
    assert_eq!(context["volumePath"], format!("{DIRECTORY}/{ID}.img"));
    assert_eq!(context["nqn"], format!("nqn.2000-02.com.mikrotik:{ID}"));
    assert_eq!(
        (context["nvmeAddress"].as_str(), context["nvmePort"].as_str()),
        ("127.0.0.1", "4420")
    );
    assert_eq!(context.get("csi.storage.k8s.io/pvc/name"), None);
    let params = VolumeParams::from_volume_context(context).unwrap();
    assert_eq!(params.session.io_timeout.unwrap().as_secs(), 30);

    let item = lab.item(ID).await.unwrap();
    assert_eq!(item["size"], (64 * MIB + 4096).to_string());
    assert_eq!(item["mount-filesystem"], "false");
    assert_eq!(item["nvme-tcp-export"], "false");
    assert_ne!(item["nvme-tcp-server-allow-host-name"], "", "open to any host");
    assert!(item["comment"].as_str().unwrap().starts_with("rds-csi v1 cluster=lab vol=pvc-"));
    // Again, and the answer is the same.
    assert_eq!(lab.create_with(request).await.unwrap(), volume);

    let mut publish = publish_request(ID, "node-1", mount(Mode::SingleNodeWriter));
    publish.volume_context = volume.volume_context.clone();
    let first = lab.publish_with(publish.clone()).await.unwrap();
    let attached = PublishContext::from_map(&first).unwrap();
    let item = lab.item(ID).await.unwrap();
    assert_eq!(item["nvme-tcp-export"], "true");
    assert_eq!(item["nvme-tcp-server-allow-host-name"], attached.host_nqn.as_str());
    assert!(item["comment"].as_str().unwrap().contains(" node=node-1 "));
    assert_eq!(lab.publish_with(publish).await.unwrap(), first, "not the same attachment");

    refused(lab.publish(ID, "node-2").await, Code::FailedPrecondition, "attached to node node-1");
    refused(lab.delete(ID).await, Code::FailedPrecondition, "attached to node node-1");

    lab.unpublish(ID, "node-2").await.unwrap();
    assert_eq!(lab.item(ID).await.unwrap()["nvme-tcp-export"], "true", "someone else's was taken");
    lab.unpublish(ID, "node-1").await.unwrap();
    let item = lab.item(ID).await.unwrap();
    assert_eq!(item["nvme-tcp-export"], "false");
    let closed = item["nvme-tcp-server-allow-host-name"].as_str().unwrap();
    assert!(!closed.is_empty() && closed != attached.host_nqn.as_str());
    lab.unpublish(ID, "node-1").await.unwrap();

    let second = PublishContext::from_map(&lab.publish(ID, "node-2").await.unwrap()).unwrap();
    assert_ne!(second.host_nqn, attached.host_nqn, "an old epoch came back");
    // No node means all of them.
    lab.unpublish(ID, "").await.unwrap();
    assert_eq!(lab.item(ID).await.unwrap()["nvme-tcp-export"], "false");

    assert!(lab.file_exists(ID).await);
    lab.delete(ID).await.unwrap();
    assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await);
    lab.delete(ID).await.unwrap();
    lab.unpublish(ID, "node-1").await.unwrap();
}

#[tokio::test]
async fn attachments_survive_the_controller() {
    let mut lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    let long = format!("{}.{}", "n".repeat(63), "example.".repeat(20) + "com");
    let before = lab.publish(ID, &long).await.unwrap();
    lab.restart_controller(&[]).await;
    refused(lab.publish(ID, "node-2").await, Code::FailedPrecondition, "attached to node nnnn");
    assert_eq!(lab.publish(ID, &long).await.unwrap(), before);
    lab.unpublish(ID, &long).await.unwrap();
    lab.publish(ID, "node-2").await.unwrap();
}

#[tokio::test]
async fn a_shared_block_volume_goes_from_node_to_node() {
    let mut lab = Lab::start_with(&["--allow-host-list"], |_| {}).await;
    let listing = ["--allow-host-list"];
    lab.restart_controller(&listing).await;
    let mut request = create_request(ID);
    request.volume_capabilities = vec![block(Mode::MultiNodeMultiWriter)];
    lab.create_with(request).await.unwrap();
    let on = |node| publish_request(ID, node, block(Mode::MultiNodeMultiWriter));
    let waived = |node, limit: &str| {
        let mut request = on(node);
        request.volume_context = HashMap::from([
            ("allowSharedBlock".into(), "true".into()),
            ("migrationTimeoutSeconds".into(), limit.into()),
        ]);
        request
    };
    let exported = async |lab: &Lab| lab.item(ID).await.unwrap()["nvme-tcp-export"] == "true";
    let first = lab.publish_with(on("node-1")).await.unwrap();
    // Without proof of a migration there is no second node, and the message says the way.
    refused(lab.publish_with(on("node-2")).await, Code::FailedPrecondition, "allowSharedBlock");
    refused(
        lab.publish_with(waived("node-2", "soon")).await,
        Code::InvalidArgument,
        "migrationTimeoutSeconds",
    );
    let second = lab.publish_with(waived("node-2", "1")).await.unwrap();
    assert_ne!(second, first, "each is a host of its own");
    let third = lab.publish_with(waived("node-3", "1")).await;
    refused(third, Code::FailedPrecondition, "nodes node-1 and node-2");
    refused(lab.delete(ID).await, Code::FailedPrecondition, "attached to");
    // The clock is on the appliance: 1 s is clamped to 30.
    let comment = lab.item(ID).await.unwrap()["comment"].as_str().unwrap().to_owned();
    assert!(comment.ends_with("+30"), "{comment}");
    lab.restart_controller(&listing).await;
    let third = lab.publish_with(waived("node-3", "1")).await;
    refused(third, Code::FailedPrecondition, "two is the most");
    assert_eq!(lab.publish_with(on("node-1")).await.unwrap(), first);
    // A migration that began long ago, as an earlier controller may have left it.
    let since = comment.rsplit_once("since=").unwrap().1;
    let old = json!({".id": ID, "comment": comment.replace(since, "1700000000+30")});
    lab.rest("POST", "/rest/disk/set", old).await;
    let third = lab.publish_with(waived("node-3", "1")).await;
    refused(third, Code::FailedPrecondition, "its limit is 30 s");
    assert!(lab.publish_with(on("node-2")).await.is_ok() && exported(&lab).await);
    // The source leaves, the target stays; and back.
    lab.unpublish(ID, "node-1").await.unwrap();
    lab.unpublish(ID, "node-1").await.unwrap();
    assert!(exported(&lab).await);
    assert_eq!(lab.publish_with(on("node-2")).await.unwrap(), second);
    // What node-1 queued when it had the volume before is not let in again.
    let again = lab.publish_with(waived("node-1", "30")).await.unwrap();
    assert!(again != first && again != second);
    lab.unpublish(ID, "").await.unwrap();
    assert!(!exported(&lab).await);

    // As the same host, two nodes are not let in.
    lab.restart_controller(&[]).await;
    lab.publish_with(on("node-1")).await.unwrap();
    let second = lab.publish_with(waived("node-2", "30")).await;
    refused(second, Code::FailedPrecondition, "--allow-host-list");
    let other_terms = publish_request(ID, "node-1", block(Mode::SingleNodeWriter));
    refused(lab.publish_with(other_terms).await, Code::AlreadyExists, "another access mode");
    let exclusive = publish_request(ID, "node-2", block(Mode::SingleNodeWriter));
    refused(lab.publish_with(exclusive).await, Code::FailedPrecondition, "node node-1");
}

#[tokio::test]
async fn names_of_any_form_become_volumes() {
    let lab = Lab::start().await;
    let volume = lab.create("my volume/..%2f\"; /system/reset").await.unwrap();
    assert!(volume.volume_id.starts_with("pvc-"));
    assert_eq!(lab.create("my volume/..%2f\"; /system/reset").await.unwrap(), volume);
    let mut bigger = create_request(&volume.volume_id);
    bigger.capacity_range = Some(CapacityRange { required_bytes: 65 * MIB, limit_bytes: 0 });
    refused(lab.create_with(bigger).await, Code::AlreadyExists, "its size is 67108864 bytes");
    let mut other = create_request(&volume.volume_id);
    other.parameters.insert("shield".into(), "false".into());
    refused(lab.create_with(other).await, Code::AlreadyExists, "other StorageClass parameters");
}

#[tokio::test]
async fn capabilities_are_what_is_built() {
    let lab = Lab::start().await;
    let info = lab.identity().get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, rds_csi_proto::DRIVER_NAME);
    assert!(!info.vendor_version.is_empty());
    let probe = lab.identity().probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));
    let modified = ControllerModifyVolumeRequest { volume_id: ID.into(), ..Default::default() };
    let modified = lab.volumes().controller_modify_volume(modified).await;
    refused(modified, Code::Unimplemented, "ControllerModifyVolume");

    lab.create(ID).await.unwrap();
    let validate = |volume: &str, capability| ValidateVolumeCapabilitiesRequest {
        volume_id: volume.into(),
        volume_capabilities: vec![capability],
        ..Default::default()
    };
    let good = validate(ID, block(Mode::MultiNodeMultiWriter));
    let confirmed = lab.volumes().validate_volume_capabilities(good).await.unwrap().into_inner();
    assert!(confirmed.confirmed.is_some());
    let shared = validate(ID, mount(Mode::MultiNodeMultiWriter));
    let answer = lab.volumes().validate_volume_capabilities(shared).await;
    refused(answer, Code::InvalidArgument, "volumeMode: Block");
    let unknown = validate("nobody", block(Mode::SingleNodeWriter));
    let answer = lab.volumes().validate_volume_capabilities(unknown).await;
    refused(answer, Code::NotFound, "nobody");
}

#[tokio::test]
async fn a_lost_answer_is_read_back() {
    let lab = Lab::start().await;
    for (verb, step) in [("disk/add", 0), ("disk/set", 1), ("disk/set", 2)] {
        lab.ctl(&["lose-answer", verb]);
        match step {
            0 => drop(lab.create(ID).await.unwrap()),
            1 => drop(lab.publish(ID, "node-1").await.unwrap()),
            _ => lab.unpublish(ID, "node-1").await.unwrap(),
        }
    }
    assert_eq!(lab.item(ID).await.unwrap()["nvme-tcp-export"], "false");
    lab.ctl(&["lose-answer", "file/remove"]);
    lab.delete(ID).await.unwrap();
    assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await);
}

#[tokio::test]
async fn a_deletion_that_stopped_half_way_is_finished() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.ctl(&["reject", "disk/remove"]);
    refused(lab.delete(ID).await, Code::Unavailable, "call again to finish it");
    assert!(lab.item(ID).await.unwrap()["comment"].as_str().unwrap().ends_with("stage=deleting"));
    // Over SSH they go in one line, of which nothing was done.
    assert_eq!(lab.file_exists(ID).await, VIA == Via::Ssh);
    refused(lab.publish(ID, "node-1").await, Code::FailedPrecondition, "being deleted");
    refused(lab.create(ID).await, Code::FailedPrecondition, "being deleted");
    lab.delete(ID).await.unwrap();
    assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await);
}

#[tokio::test]
async fn a_publish_that_stopped_half_way_is_finished_or_undone() {
    let mut lab = Lab::start_with(&["--export-delay-ms", "3000"], |_| {}).await;
    lab.create(ID).await.unwrap();
    // Killed after the attachment was recorded, while the export comes up.
    let mut client = lab.volumes();
    let request = publish_request(ID, "node-1", mount(Mode::SingleNodeWriter));
    let call = tokio::spawn(async move { client.controller_publish_volume(request).await });
    let recorded = loop {
        let item = lab.item(ID).await.unwrap();
        if item["comment"].as_str().unwrap().contains(" node=node-1 ") {
            break item;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    lab.restart_controller(&[]).await;
    call.await.unwrap().unwrap_err();
    refused(lab.publish(ID, "node-2").await, Code::FailedPrecondition, "node-1");
    let again = lab.publish(ID, "node-1").await.unwrap();
    assert_eq!(again["hostNqn"], recorded["nvme-tcp-server-allow-host-name"]);
    lab.unpublish(ID, "node-1").await.unwrap();
    assert_eq!(lab.item(ID).await.unwrap()["nvme-tcp-export"], "false");
}

#[tokio::test]
async fn what_was_changed_by_hand_is_put_right() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    let first = lab.publish(ID, "node-1").await.unwrap();
    lab.ctl(&["export-off", ID]);
    assert_eq!(lab.publish(ID, "node-1").await.unwrap(), first);
    // The allow list emptied: any host could connect. The epoch on record is put back.
    let open = json!({".id": ID, "nvme-tcp-server-allow-host-name": ""});
    lab.rest("POST", "/rest/disk/set", open).await;
    assert_eq!(lab.publish(ID, "node-1").await.unwrap(), first);
    let item = lab.item(ID).await.unwrap();
    assert_eq!(item["nvme-tcp-server-allow-host-name"], first["hostNqn"].as_str());
    assert_eq!(item["nvme-tcp-export"], "true");
    lab.unpublish(ID, "node-1").await.unwrap();
    // Exported with nobody on record: unpublish still promises that no node has it.
    lab.ctl(&["export-on", ID]);
    refused(lab.delete(ID).await, Code::FailedPrecondition, "is exported");
    lab.unpublish(ID, "node-1").await.unwrap();
    assert_eq!(lab.item(ID).await.unwrap()["nvme-tcp-export"], "false");
    lab.ctl(&["export-on", ID]);
    assert_ne!(lab.publish(ID, "node-2").await.unwrap()["hostNqn"], first["hostNqn"]);
}

#[tokio::test]
async fn a_full_pool_leaves_nothing_behind() {
    let lab = Lab::start_with(&["--pool", "raid10:1G"], |_| {}).await;
    let mut request = create_request(ID);
    request.capacity_range = Some(CapacityRange { required_bytes: 1 << 40, limit_bytes: 0 });
    refused(lab.create_with(request).await, Code::ResourceExhausted, "1099511627776 bytes");
    assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await);
    lab.create(ID).await.unwrap();
}

#[tokio::test]
async fn others_items_are_never_touched() {
    let lab = Lab::start().await;
    for (comment, why) in [
        (String::new(), "no owner tag"),
        (format!("rds-csi v1 cluster=prod vol={ID} stage=ready"), "cluster"),
    ] {
        let path = format!("{DIRECTORY}/{ID}.img");
        let theirs = json!({"slot": ID, "type": "file", "file-path": path, "file-size": "1048576",
            "mount-filesystem": "no", "nvme-tcp-export": "yes", "comment": comment});
        let (status, body) = lab.rest("POST", "/rest/disk/add", theirs).await;
        assert_eq!(status, 200, "{body}");
        tokio::time::sleep(Duration::from_millis(600)).await;
        let before = lab.item(ID).await.unwrap();
        refused(lab.create(ID).await, Code::AlreadyExists, why);
        refused(lab.delete(ID).await, Code::FailedPrecondition, why);
        refused(lab.publish(ID, "node-1").await, Code::FailedPrecondition, why);
        refused(lab.unpublish(ID, "node-1").await, Code::FailedPrecondition, why);
        assert_eq!(lab.item(ID).await.unwrap(), before);
        assert!(lab.file_exists(ID).await);
        let (status, _) =
            lab.rest("POST", "/rest/disk/remove", json!({".id": before[".id"]})).await;
        assert_eq!(status, 200);
        // The item is gone, the file is not: still not ours.
        refused(lab.create(ID).await, Code::FailedPrecondition, "without a disk item");
        refused(lab.delete(ID).await, Code::FailedPrecondition, "nothing proves");
        let file = json!({".id": format!("raid10/volumes/{ID}.img")});
        lab.rest("POST", "/rest/file/remove", file).await;
    }
    assert!(!lab.file_exists(ID).await);
}

#[tokio::test]
async fn a_file_that_another_item_uses_is_kept() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    let path = format!("{DIRECTORY}/{ID}.img");
    let second = json!({"slot": "backup", "type": "file", "file-path": path});
    let (status, body) = lab.rest("POST", "/rest/disk/add", second).await;
    assert_eq!(status, 200, "{body}");
    refused(lab.delete(ID).await, Code::FailedPrecondition, "also used by");
    let (_, all) = lab.rest("GET", "/rest/disk?slot=backup", Value::Null).await;
    lab.rest("POST", "/rest/disk/remove", json!({".id": all[0][".id"]})).await;
    lab.delete(ID).await.unwrap();
}
