//! Volumes of the Go driver of the same name, before they are adopted: nothing is done with
//! them, and each call says what has to be done first. What comes then:
//! `kubernetes/adopt.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::process::Command;

use lab::*;
use rds_csi_proto::csi::*;
use tonic::Code;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const ADVICE: &str = "docs/switch-over.md";

#[tokio::test]
async fn what_is_not_adopted_is_refused_and_left_as_it_is() {
    let lab = Lab::start().await;
    let before = go_driver::make_disk(&lab, ID).await;
    for empty in ["comment", "nvme-tcp-server-allow-host-name"] {
        assert!(before[empty].as_str().is_none_or(str::is_empty), "{before}");
    }

    let mut publish = publish_request(ID, "node-1", mount(Mode::SingleNodeWriter));
    publish.volume_context = go_driver::attributes(ID);
    refused(lab.publish_with(publish).await, Code::FailedPrecondition, ADVICE);
    refused(lab.unpublish(ID, "node-1").await, Code::FailedPrecondition, ADVICE);
    refused(lab.unpublish(ID, "").await, Code::FailedPrecondition, ADVICE);
    refused(lab.delete(ID).await, Code::FailedPrecondition, ADVICE);
    let grow = ControllerExpandVolumeRequest {
        volume_id: ID.into(),
        capacity_range: Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 }),
        ..Default::default()
    };
    let grown = lab.volumes().controller_expand_volume(grow).await;
    refused(grown, Code::FailedPrecondition, ADVICE);
    let get = ControllerGetVolumeRequest { volume_id: ID.into() };
    let got = lab.volumes().controller_get_volume(get).await;
    refused(got, Code::FailedPrecondition, ADVICE);
    let snapshot = CreateSnapshotRequest {
        name: "snapshot-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e12".into(),
        source_volume_id: ID.into(),
        ..Default::default()
    };
    refused(lab.volumes().create_snapshot(snapshot).await, Code::FailedPrecondition, ADVICE);
    let list = lab.volumes().list_volumes(ListVolumesRequest::default()).await.unwrap();
    assert!(list.into_inner().entries.is_empty());
    // A claim whose PersistentVolume was not made yet: its volume is nobody's.
    refused(lab.create(ID).await, Code::AlreadyExists, ADVICE);

    // Neither its volumes nor their files are anybody's orphans.
    let orphans = Command::new(env!("CARGO_BIN_EXE_rds-csi-controller"))
        .args(lab.controller_args())
        .args(["--orphans", "--cluster-id", "lab"])
        .output()
        .unwrap();
    let report = String::from_utf8(orphans.stdout).unwrap();
    assert!(orphans.status.success() && !report.contains(ID), "{report}");

    assert_eq!(lab.item(ID).await.unwrap(), before);
    assert!(go_driver::has_its_data(&lab, ID));
}

#[tokio::test]
async fn its_snapshots_are_not_called_deleted() {
    let lab = Lab::start().await;
    let before = lab.requests();
    let delete = async |id: &str| {
        let request = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        lab.volumes().delete_snapshot(request).await
    };
    let theirs = format!("{}-at-3a9f8c02d1", ID.replace("pvc", "snap"));
    refused(delete(&theirs).await, Code::FailedPrecondition, "the Go driver");
    // Of any other form: never given out by either.
    for id in ["reallyfakesnapshotid", "snap-1-at-2", &format!("{theirs}!")] {
        delete(id).await.unwrap();
    }
    assert_eq!(lab.requests(), before, "the appliance was bothered");
}

#[test]
fn an_adoption_needs_kubernetes_and_is_no_sweep() {
    let usage = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rds-csi-controller"));
        command.args(["--endpoint", "unix:///run/x.sock", "--rds-url", "https://localhost:1"]);
        command.args(["--rds-credentials", "/nonexistent", "--volume-path", DIRECTORY]);
        let out = command.args(flags).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    for flags in [
        &["--adopt", "--no-kubernetes"][..],
        &["--adopt", "--orphans"],
        &["--orphans", "--known", "-", "--sweep", "--adopt"],
        &["--yes"],
    ] {
        let (code, text) = usage(flags);
        assert_eq!(code, Some(2), "{flags:?}: {text}");
    }
    // No pod, and no file: it says so, and touches nothing.
    let (code, text) = usage(&["--adopt", "--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--kubeconfig"), "{text}");
}
