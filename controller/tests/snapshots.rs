//! Snapshots, restores and clones against the simulated appliance, with data in the files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::time::Duration;

use lab::snapshots::*;
use lab::*;
use rds_csi_proto::csi::*;
use serde_json::json;
use tonic::Code;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const OTHER: &str = "pvc-7d0c2a64-1f3b-4c58-9a7e-5b2f8c9d0e12";
const NAME: &str = "snapshot-11111111-2222-4333-8444-555555555555";
const SNAP: &str = "snap-11111111-2222-4333-8444-555555555555";
const RECORD: &str = "snp-11111111-2222-4333-8444-555555555555";
const BTRFS: [&str; 2] = ["--pool", "raid10:1G:btrfs"];
/// 64 MiB in two seconds: long enough to do something meanwhile.
const SLOW: [&str; 2] = ["--copy-bytes-per-second", "32M"];

/// The whole life, on either kind of pool.
async fn life(flags: &[&str], copy_on_write: bool) {
    let lab = Lab::start_with(flags, |_| {}).await;
    let empty = everything(&lab).await;
    lab.create(ID).await.unwrap();
    write(&lab, ID, b"before").await;
    let made = snapshot(&lab, NAME, ID).await.unwrap();
    assert_eq!((made.snapshot_id.as_str(), made.size_bytes), (SNAP, 64 * MIB));
    assert!(made.ready_to_use);
    assert_eq!(made.source_volume_id, ID);
    let comment = lab.item(RECORD).await.unwrap()["comment"].as_str().unwrap().to_owned();
    assert!(comment.ends_with("stage=ready"), "{comment}");
    assert!(comment.contains(if copy_on_write { "kind=cow" } else { "kind=copy" }), "{comment}");
    // Again, later: the same answer, not another moment.
    write(&lab, ID, b"after!").await;
    assert_eq!(snapshot(&lab, NAME, ID).await.unwrap(), made);
    lab.create(OTHER).await.unwrap();
    refused(snapshot(&lab, NAME, OTHER).await, Code::AlreadyExists, ID);
    assert_eq!(list(&lab).await, std::slice::from_ref(&made));

    // Attached or not: a restore reads the snapshot alone.
    lab.publish(ID, "node-1").await.unwrap();
    let restored = lab.create_with(from_snapshot("restored", SNAP)).await.unwrap();
    let id = restored.volume_id.clone();
    assert_eq!(restored.content_source, from_snapshot("restored", SNAP).volume_content_source);
    assert_eq!(restored.volume_context["madeFrom"], SNAP);
    assert_eq!(read(&lab, &id).await, ["before", "before"]);
    assert_eq!(lab.create_with(from_snapshot("restored", SNAP)).await.unwrap(), restored);
    refused(lab.create("restored").await, Code::AlreadyExists, "from another source");
    refused(
        lab.create_with(from_volume("restored", OTHER)).await,
        Code::AlreadyExists,
        "from another source",
    );
    lab.publish(&id, "node-2").await.unwrap();
    lab.unpublish(&id, "node-2").await.unwrap();

    // Sizes: as large without a wish, larger with one, never smaller.
    let mut sized = from_snapshot("sized", SNAP);
    sized.capacity_range = None;
    let same = lab.create_with(sized.clone()).await.unwrap();
    assert_eq!(same.capacity_bytes, 64 * MIB);
    assert_eq!(lab.create_with(sized).await.unwrap(), same);
    let mut larger = from_snapshot("larger", SNAP);
    larger.capacity_range = Some(CapacityRange { required_bytes: 96 * MIB, limit_bytes: 0 });
    let larger = lab.create_with(larger).await.unwrap();
    assert_eq!(larger.capacity_bytes, 96 * MIB);
    assert_eq!(lab.item(&larger.volume_id).await.unwrap()["size"], (96 * MIB).to_string());
    assert_eq!(read(&lab, &larger.volume_id).await, ["before", "before"]);
    let mut smaller = from_snapshot("smaller", SNAP);
    smaller.capacity_range = Some(CapacityRange { required_bytes: 32 * MIB, limit_bytes: 0 });
    refused(lab.create_with(smaller).await, Code::OutOfRange, "67108864 bytes");

    // Either may go first.
    lab.unpublish(ID, "node-1").await.unwrap();
    let clone = lab.create_with(from_volume("clone", ID)).await.unwrap();
    assert_eq!(read(&lab, &clone.volume_id).await, ["after!", "after!"]);
    lab.delete(ID).await.unwrap();
    assert_eq!(list(&lab).await.len(), 1);
    assert_eq!(snapshot(&lab, NAME, ID).await.unwrap(), made);
    delete_snapshot(&lab, SNAP).await.unwrap();
    delete_snapshot(&lab, SNAP).await.unwrap();
    assert_eq!(read(&lab, &id).await, ["before", "before"]);
    for volume in [OTHER, &id, &same.volume_id, &larger.volume_id, &clone.volume_id] {
        lab.delete(volume).await.unwrap();
    }
    assert_eq!(everything(&lab).await, empty, "something was left behind");
}

#[tokio::test]
async fn the_life_of_a_full_copy() {
    life(&[], false).await;
}

#[tokio::test]
async fn the_life_of_a_subvolume_snapshot() {
    life(&BTRFS, true).await;
}

#[tokio::test]
async fn a_parent_known_by_its_path_only() {
    life(&[&BTRFS[..], &["--subvolume-reference", "fullname"]].concat(), true).await;
}

#[tokio::test]
async fn an_attached_volume_has_a_snapshot_only_where_it_is_atomic() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    let before = everything(&lab).await;
    refused(snapshot(&lab, NAME, ID).await, Code::FailedPrecondition, "detach it first");
    let clone = lab.create_with(from_volume("clone", ID)).await;
    refused(clone, Code::FailedPrecondition, "is no clone");
    assert_eq!(everything(&lab).await, before);

    let lab = Lab::start_with(&BTRFS, |_| {}).await;
    lab.create(ID).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    write(&lab, ID, b"before").await;
    assert!(snapshot(&lab, NAME, ID).await.unwrap().ready_to_use);
    write(&lab, ID, b"after!").await;
    let restored = lab.create_with(from_snapshot("restored", SNAP)).await.unwrap();
    assert_eq!(read(&lab, &restored.volume_id).await, ["before", "before"]);
}

#[tokio::test]
async fn an_old_routeros_says_what_it_needs() {
    let lab = Lab::start_with(&["--version", "7.22"], |_| {}).await;
    lab.create(ID).await.unwrap();
    refused(snapshot(&lab, NAME, ID).await, Code::FailedPrecondition, "since 7.23");
    let clone = lab.create_with(from_volume("clone", ID)).await;
    refused(clone, Code::FailedPrecondition, "since 7.23");
    assert_eq!(list(&lab).await, []);
}

#[tokio::test]
async fn what_does_not_exist() {
    let lab = Lab::start().await;
    refused(snapshot(&lab, NAME, ID).await, Code::NotFound, ID);
    refused(snapshot(&lab, NAME, "nobody").await, Code::NotFound, "nobody");
    refused(snapshot(&lab, "", ID).await, Code::InvalidArgument, "name");
    refused(snapshot(&lab, NAME, "").await, Code::InvalidArgument, "source_volume_id");
    for source in [SNAP, "nobody"] {
        let made = lab.create_with(from_snapshot("restored", source)).await;
        refused(made, Code::NotFound, source);
    }
    for source in [ID, "nobody"] {
        refused(lab.create_with(from_volume("clone", source)).await, Code::NotFound, source);
    }
    refused(delete_snapshot(&lab, "").await, Code::InvalidArgument, "snapshot_id");
    delete_snapshot(&lab, SNAP).await.unwrap();
    delete_snapshot(&lab, "nobody").await.unwrap();
}

/// Attached in the middle of its copy: what was copied so far is not one moment of it.
#[tokio::test]
async fn a_volume_that_is_attached_while_it_is_copied_gives_no_snapshot() {
    let lab = Lab::start_with(&SLOW, |_| {}).await;
    lab.create(ID).await.unwrap();
    let before = everything(&lab).await;
    let mut client = lab.volumes();
    let request = snapshot_request(NAME, ID);
    let call = tokio::spawn(async move { client.create_snapshot(request).await });
    while lab.item(RECORD).await.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Off again before the copy can see it: the closed host is another one.
    lab.publish(ID, "node-1").await.unwrap();
    lab.unpublish(ID, "node-1").await.unwrap();
    refused(call.await.unwrap(), Code::FailedPrecondition, "was attached");
    assert_eq!(everything(&lab).await, before);
    assert!(snapshot(&lab, NAME, ID).await.unwrap().ready_to_use);
}

#[tokio::test]
async fn a_lost_answer_to_a_copy_throws_the_copy_away() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    write(&lab, ID, b"before").await;
    let before = everything(&lab).await;
    lab.ctl(&["lose-answer", "disk/copy"]);
    let lost = snapshot(&lab, NAME, ID).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost}");
    assert_eq!(everything(&lab).await, before);
    lab.ctl(&["reject", "disk/copy"]);
    assert!(snapshot(&lab, NAME, ID).await.is_err());
    assert_eq!(everything(&lab).await, before);
    for lost in ["disk/add", "disk/set"] {
        lab.ctl(&["lose-answer", lost]);
        assert!(snapshot(&lab, NAME, ID).await.unwrap().ready_to_use);
        let volume = lab.create_with(from_snapshot("r", SNAP)).await.unwrap().volume_id;
        assert_eq!(read(&lab, &volume).await, ["before", "before"]);
        lab.delete(&volume).await.unwrap();
        delete_snapshot(&lab, SNAP).await.unwrap();
    }
    assert_eq!(everything(&lab).await, before);
}

/// The appliance reboots in the middle of the copy, and leaves a part of it.
#[tokio::test]
async fn a_copy_that_a_reboot_interrupted_is_never_taken_for_whole() {
    let lab = Lab::start_with(&SLOW, |_| {}).await;
    lab.create(ID).await.unwrap();
    write(&lab, ID, b"before").await;
    let before = everything(&lab).await;
    let mut client = lab.volumes();
    let request = snapshot_request(NAME, ID);
    let call = tokio::spawn(async move { client.create_snapshot(request).await });
    while lab.item(RECORD).await.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    lab.ctl(&["reboot", "--down", "0.2", "--wait"]);
    let failed = call.await.unwrap().unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed}");
    assert!(list(&lab).await.iter().all(|s| !s.ready_to_use));
    let ready = async {
        loop {
            match snapshot(&lab, NAME, ID).await {
                Ok(made) if made.ready_to_use => break made,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready).await.unwrap();
    let restored = lab.create_with(from_snapshot("r", SNAP)).await.unwrap().volume_id;
    assert_eq!(read(&lab, &restored).await, ["before", "before"]);
    lab.delete(&restored).await.unwrap();
    delete_snapshot(&lab, SNAP).await.unwrap();
    assert_eq!(everything(&lab).await, before);
}

#[tokio::test]
async fn a_long_copy_is_not_ready_until_it_is() {
    let lab = Lab::start_with(&["--copy-bytes-per-second", "8M"], |_| {}).await;
    let mut large = create_request(ID);
    large.capacity_range = Some(CapacityRange { required_bytes: 160 * MIB, limit_bytes: 0 });
    lab.create_with(large).await.unwrap();
    let first = snapshot(&lab, NAME, ID).await.unwrap();
    assert!(!first.ready_to_use);
    assert_eq!(list(&lab).await, std::slice::from_ref(&first));
    refused(
        lab.create_with(from_snapshot("r", SNAP)).await,
        Code::FailedPrecondition,
        "not ready to use",
    );
    refused(delete_snapshot(&lab, SNAP).await, Code::Aborted, "CreateSnapshot of");
    let ready = async {
        while !snapshot(&lab, NAME, ID).await.unwrap().ready_to_use {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready).await.unwrap();
    let last = snapshot(&lab, NAME, ID).await.unwrap();
    assert_eq!(last, Snapshot { ready_to_use: true, ..first }, "creation_time moved");
}

#[tokio::test]
async fn a_full_pool_leaves_nothing_behind() {
    let lab = Lab::start_with(&["--pool", "raid10:100M"], |_| {}).await;
    lab.create(ID).await.unwrap();
    let before = everything(&lab).await;
    refused(snapshot(&lab, NAME, ID).await, Code::ResourceExhausted, "67108864 bytes");
    let clone = lab.create_with(from_volume("clone", ID)).await;
    refused(clone, Code::ResourceExhausted, "67108864 bytes");
    assert_eq!(everything(&lab).await, before);
}

#[tokio::test]
async fn a_snapshot_that_is_being_restored_stays() {
    let lab = Lab::start_with(&SLOW, |_| {}).await;
    lab.create(ID).await.unwrap();
    snapshot(&lab, NAME, ID).await.unwrap();
    let mut client = lab.volumes();
    let call = tokio::spawn(async move { client.create_volume(from_snapshot(OTHER, SNAP)).await });
    while lab.item(OTHER).await.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    refused(delete_snapshot(&lab, SNAP).await, Code::FailedPrecondition, OTHER);
    refused(lab.publish(OTHER, "node-1").await, Code::Aborted, "CreateVolume of");
    let told = async {
        loop {
            let again = lab.create_with(from_snapshot(OTHER, SNAP)).await.unwrap_err();
            assert_eq!(again.code(), Code::Aborted);
            if again.message().contains("% of 67108864 bytes are copied") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
    call.await.unwrap().unwrap();
    delete_snapshot(&lab, SNAP).await.unwrap();
}

#[tokio::test]
async fn another_clusters_snapshots_are_not_ours() {
    let mut lab = Lab::start_with(&BTRFS, |_| {}).await;
    lab.create(ID).await.unwrap();
    snapshot(&lab, NAME, ID).await.unwrap();
    let before = everything(&lab).await;
    lab.restart_controller(&["--cluster-id", "other"]).await;
    assert_eq!(list(&lab).await, []);
    refused(snapshot(&lab, NAME, ID).await, Code::FailedPrecondition, "belongs to cluster");
    refused(delete_snapshot(&lab, SNAP).await, Code::FailedPrecondition, "belongs to cluster");
    let restore = lab.create_with(from_snapshot("r", SNAP)).await;
    refused(restore, Code::FailedPrecondition, "belongs to cluster");
    assert_eq!(everything(&lab).await, before);
}

#[tokio::test]
async fn what_is_in_the_way_is_left_alone() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    let path = format!("{DIRECTORY}/{RECORD}.img");
    let theirs = json!({"slot": "backup", "type": "file", "file-path": path,
        "file-size": "1048576", "mount-filesystem": "no"});
    let (status, body) = lab.rest("POST", "/rest/disk/add", theirs).await;
    assert_eq!(status, 200, "{body}");
    let before = everything(&lab).await;
    refused(snapshot(&lab, NAME, ID).await, Code::FailedPrecondition, "not touched");
    assert_eq!(everything(&lab).await, before);
}
