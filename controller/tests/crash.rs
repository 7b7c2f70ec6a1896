//! The controller is killed at each step of a volume's making, attachment, growth and end; the next one
//! finishes the call, or deletes what is there, and nothing is left or touched that must not.
//! Needs the feature `crash-points`.
#![cfg(feature = "crash-points")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;
#[path = "crash/snapshots.rs"]
mod snapshots;

use lab::deaths::each_death;
use lab::*;
use rds_csi_proto::csi::*;
use serde_json::{Value, json};

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const POINTS: &[&str] = &[
    "create.looked",
    "create.added",
    "create.sized",
    "publish.attach.before",
    "publish.attach.after",
    "unpublish.detach.before",
    "unpublish.detach.after",
    "unpublish.clear.before",
    "unpublish.clear.after",
    "expand.looked",
    "expand.grown",
    "expand.off",
    "expand.sized",
    "expand.done",
    "delete.looked",
    "delete.marked",
    "delete.file",
    "delete.item",
];

async fn expand(lab: &Lab) -> Result<i64, tonic::Status> {
    let request = ControllerExpandVolumeRequest {
        volume_id: ID.into(),
        capacity_range: Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 }),
        ..Default::default()
    };
    Ok(lab.volumes().controller_expand_volume(request).await?.into_inner().capacity_bytes)
}

/// Everything on the appliance besides the volume.
async fn bystanders(lab: &Lab) -> (Vec<Value>, Vec<Value>) {
    let list = async |path: &str| {
        let (_, body) = lab.rest("GET", path, Value::Null).await;
        let mut rows = body.as_array().unwrap().clone();
        rows.retain(|r| !r.to_string().contains(ID) && !r.to_string().contains("\"raid\""));
        rows.iter_mut().for_each(|r| drop(r.as_object_mut().unwrap().remove("last-modified")));
        rows
    };
    (list("/rest/disk").await, list("/rest/file?type=.img%20file").await)
}

#[tokio::test]
async fn a_controller_that_dies_anywhere_leaves_nothing_undone() {
    for point in POINTS {
        for repeat in [true, false] {
            let mut lab = Lab::start().await;
            // Another cluster's volume, and a file that only looks like one of ours.
            let theirs = format!("pvc-00000000-0000-4000-8000-{:012x}", 7);
            let item = json!({"slot": theirs, "type": "file", "file-size": "1048576",
                "file-path": format!("{DIRECTORY}/{theirs}.img"),
                "comment": format!("rds-csi v1 cluster=prod vol={theirs} stage=deleting")});
            assert_eq!(lab.rest("POST", "/rest/disk/add", item).await.0, 200);
            std::fs::write(lab.path(&format!("rds/pools/raid10/volumes/{ID}.img.bak")), "x")
                .unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let before = bystanders(&lab).await;
            let (operation, _) = point.split_once('.').unwrap();
            if operation != "create" {
                lab.create(ID).await.unwrap();
            }
            if ["expand", "unpublish"].contains(&operation) {
                lab.publish(ID, "node-1").await.unwrap();
            }
            let run = async |lab: &Lab| match operation {
                "create" => lab.create(ID).await.map(drop),
                "publish" => lab.publish(ID, "node-1").await.map(drop),
                "unpublish" => lab.unpublish(ID, "node-1").await,
                "expand" => expand(lab).await.map(drop),
                _ => lab.delete(ID).await,
            };
            lab.restart_controller_at(point, &[]).await;
            run(&lab).await.unwrap_err();
            let log = lab.controller_log();
            assert!(log.contains(&format!("crash point {point}")), "{point} was not passed");
            lab.restart_controller(&[]).await;
            if repeat {
                run(&lab).await.unwrap_or_else(|e| panic!("{point}: {e}"));
            }
            if operation == "expand" && repeat {
                let item = lab.item(ID).await.unwrap();
                assert_eq!(item["size"], (128 * MIB).to_string(), "{point}");
                assert_eq!(item["nvme-tcp-export"], "true", "{point}");
                assert!(!item["comment"].as_str().unwrap().contains("opt="), "{point}: {item}");
            }
            lab.unpublish(ID, "node-1").await.unwrap();
            lab.delete(ID).await.unwrap_or_else(|e| panic!("{point}: {e}"));
            assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await, "{point}: leaked");
            assert_eq!(bystanders(&lab).await, before, "{point}");
        }
    }
}

/// Whoever is on record afterwards has the volume, and nobody else gets it. With another one that
/// takes over: kubernetes/failover.rs.
#[tokio::test]
async fn a_controller_that_dies_in_an_attachment_lets_nobody_else_in() {
    const LISTING: &[&str] = &["--allow-host-list", "--allow-shared-block"];
    each_death(24, &LISTING[..1], |death, mut lab| async move {
        let point = death.point();
        lab.restart_controller_at(&point, LISTING).await;
        death.prepare(&lab, &lab.volumes()).await;
        death.call(&lab.volumes()).await.expect_err(&point);
        let log = lab.controller_log();
        assert!(log.contains(&format!("crash point {point}")), "{point} was not passed");
        lab.restart_controller(LISTING).await;
        death.rules_hold(&lab, &lab.volumes()).await;
    })
    .await;
}
