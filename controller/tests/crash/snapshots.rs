//! Killed at each step of a snapshot's making and end, and of what is made from a snapshot or
//! from another volume; on both kinds of pool.

use std::time::Duration;

use rds_csi_proto::csi::*;
use serde_json::json;
use tonic::Status;

use super::lab::snapshots::*;
use super::lab::*;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const SOURCE: &str = "snapshot-11111111-2222-4333-8444-555555555555";
const SNAP: &str = "snap-11111111-2222-4333-8444-555555555555";
const NAME: &str = "snapshot-22222222-2222-4333-8444-555555555555";
const ANOTHER: &str = "snap-22222222-2222-4333-8444-555555555555";
const MADE: &str = "pvc-00000000-0000-4000-8000-00000000000d";
/// Two parts of a copy.
const BYTES: i64 = 41 * MIB;
const PROMPT: [&str; 2] = ["--create-delay-ms=0", "--pool"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Snapshot,
    Unsnapshot,
    Restore,
    Clone,
    /// A restore that had been begun, and is made anew.
    Again,
    Delete,
}
use Call::*;

/// On any pool. Where nothing is copied, or nothing but a file is removed, some points are not
/// passed, and are left out.
const COPIED: &[(Call, &[&str])] = &[
    (Snapshot, &["snapshot.looked", "snapshot.recorded", "copy.part", "snapshot.cut"]),
    (Snapshot, &["snapshot.ready"]),
    (Unsnapshot, &["unsnapshot.marked", "unsnapshot.file", "unsnapshot.record"]),
    (Restore, &["fill.looked", "fill.added", "copy.part", "fill.copied", "create.added"]),
    (Clone, &["fill.looked", "copy.part", "fill.copied"]),
    (Again, &["unfill.file", "unfill.item"]),
];
/// On btrfs, where subvolumes come and go too.
const SHARED: &[(Call, &[&str])] = &[
    (Snapshot, &["snapshot.recorded", "snapshot.cut", "snapshot.ready"]),
    (Unsnapshot, &["unsnapshot.marked", "unsnapshot.data", "unsnapshot.file"]),
    (Unsnapshot, &["unsnapshot.record"]),
    (Restore, &["create.prepared", "fill.added", "fill.copied"]),
    (Clone, &["create.prepared"]),
    (Again, &["unfill.home"]),
    (Delete, &["delete.marked", "delete.file", "delete.item"]),
];

fn sized(request: CreateVolumeRequest) -> CreateVolumeRequest {
    let range = CapacityRange { required_bytes: BYTES, limit_bytes: 0 };
    CreateVolumeRequest { capacity_range: Some(range), ..request }
}

async fn run(lab: &Lab, call: Call) -> Result<(), Status> {
    match call {
        Snapshot => snapshot(lab, NAME, ID).await.map(drop),
        Unsnapshot => delete_snapshot(lab, ANOTHER).await,
        Restore | Again => lab.create_with(sized(from_snapshot(MADE, SNAP))).await.map(drop),
        Clone => lab.create_with(sized(from_volume(MADE, ID))).await.map(drop),
        Delete => lab.delete(MADE).await,
    }
}

/// What is not ours, and looks like it.
async fn bystanders(lab: &Lab) {
    let uuid = "77777777-2222-4333-8444-555555555555";
    let theirs = json!({"slot": format!("snp-{uuid}"), "type": "file", "file-size": "1048576",
        "file-path": format!("{DIRECTORY}/snp-{uuid}.img"),
        "comment": format!("rds-csi v1 cluster=prod snap={uuid} of={uuid} size=4096 kind=copy \
            created=1 stage=making epoch={uuid}")});
    assert_eq!(lab.rest("POST", "/rest/disk/add", theirs).await.0, 200);
    let near = lab.path(&format!("rds/pools/raid10/volumes/{MADE}.img.bak"));
    std::fs::write(near, "x").unwrap();
}

async fn dies_anywhere(pool: &str, story: &[(Call, &[&str])]) {
    let mut lab = Lab::start_with(&[&PROMPT[..], &[pool]].concat(), |_| {}).await;
    bystanders(&lab).await;
    lab.create_with(sized(create_request(ID))).await.unwrap();
    write(&lab, ID, b"before").await;
    snapshot(&lab, SOURCE, ID).await.unwrap();
    let rest = everything(&lab).await;
    let points = story.iter().flat_map(|(call, points)| points.iter().map(|p| (*call, *p)));
    for (call, point) in points {
        for repeat in [true, false] {
            match call {
                Unsnapshot => run(&lab, Snapshot).await.unwrap(),
                Delete => run(&lab, Restore).await.unwrap(),
                Again => {
                    lab.restart_controller_at("copy.part", &[]).await;
                    run(&lab, Restore).await.unwrap_err();
                }
                _ => {}
            }
            lab.restart_controller_at(point, &[]).await;
            run(&lab, call).await.expect_err(point);
            assert!(lab.controller_log().contains(&format!("crash point {point}")), "{point}");
            lab.restart_controller(&[]).await;
            if repeat {
                run(&lab, call).await.unwrap_or_else(|e| panic!("{call:?} {point}: {e}"));
            }
            if repeat && matches!(call, Restore | Clone | Again) {
                assert_eq!(read(&lab, MADE).await, ["before", "before"], "{call:?} {point}");
            }
            if repeat && call == Snapshot {
                let made = list_one(&lab, ANOTHER).await;
                assert!(made.iter().all(|s| s.ready_to_use) && made.len() == 1, "{point}");
            }
            delete_snapshot(&lab, ANOTHER).await.unwrap();
            lab.delete(MADE).await.unwrap_or_else(|e| panic!("{call:?} {point}: {e}"));
            assert_eq!(everything(&lab).await, rest, "{call:?} {point}, repeated: {repeat}");
        }
    }
}

#[tokio::test]
async fn a_controller_that_dies_anywhere_leaves_no_copy_half_done() {
    dies_anywhere("raid10:1G", COPIED).await;
}

#[tokio::test]
async fn a_controller_that_dies_anywhere_leaves_no_subvolume_behind() {
    dies_anywhere("raid10:1G:btrfs", SHARED).await;
}

/// Killed while a change waits to be carried out, so that it still happens, after the
/// controller is gone.
#[tokio::test]
async fn a_change_that_comes_after_its_controller_is_gone() {
    let mut lab = Lab::start_with(&["--pool", "raid10:1G:btrfs"], |_| {}).await;
    lab.create_with(sized(create_request(ID))).await.unwrap();
    write(&lab, ID, b"before").await;
    snapshot(&lab, SOURCE, ID).await.unwrap();
    let rest = everything(&lab).await;
    let changes =
        [(Snapshot, "subvolume/add"), (Restore, "disk/copy"), (Unsnapshot, "subvolume/remove")];
    for (call, change) in changes {
        if call == Unsnapshot {
            run(&lab, Snapshot).await.unwrap();
        }
        lab.ctl(&["delay", "600", "--pattern", change]);
        // Given up by its caller, then killed.
        let _ = tokio::time::timeout(Duration::from_millis(400), run(&lab, call)).await;
        lab.restart_controller(&[]).await;
        lab.ctl(&["clear"]);
        tokio::time::sleep(Duration::from_millis(400)).await;
        run(&lab, call).await.unwrap_or_else(|e| panic!("{call:?} {change}: {e}"));
        if call == Restore {
            assert_eq!(read(&lab, MADE).await, ["before", "before"]);
        }
        delete_snapshot(&lab, ANOTHER).await.unwrap();
        lab.delete(MADE).await.unwrap();
        assert_eq!(everything(&lab).await, rest, "{call:?} {change}");
    }
}
