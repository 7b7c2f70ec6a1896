//! Expansion: to the byte, online, from any half-done point.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use lab::*;
use rds_csi_proto::csi::*;
use tonic::{Code, Status};

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

async fn expand(lab: &Lab, required: i64, limit: i64) -> Result<i64, Status> {
    let request = ControllerExpandVolumeRequest {
        volume_id: ID.into(),
        capacity_range: Some(CapacityRange { required_bytes: required, limit_bytes: limit }),
        ..Default::default()
    };
    let answer = lab.volumes().controller_expand_volume(request).await?.into_inner();
    assert!(answer.node_expansion_required);
    Ok(answer.capacity_bytes)
}

async fn shown(lab: &Lab) -> (i64, String, String) {
    let item = lab.item(ID).await.unwrap();
    let text = |key: &str| item[key].as_str().unwrap().to_owned();
    (text("size").parse().unwrap(), text("nvme-tcp-export"), text("comment"))
}

#[tokio::test]
async fn what_is_returned_is_what_is_there() {
    let lab = Lab::start().await;
    refused(expand(&lab, 128 * MIB, 0).await, Code::NotFound, ID);
    lab.create(ID).await.unwrap();
    assert_eq!(expand(&lab, 64 * MIB + 1, 0).await.unwrap(), 64 * MIB + 4096);
    assert_eq!(shown(&lab).await.0, 64 * MIB + 4096);
    // Again, smaller, and with a limit: nothing is ever made smaller.
    for (required, limit) in [(64 * MIB + 1, 0), (MIB, 0), (MIB, 65 * MIB)] {
        assert_eq!(expand(&lab, required, limit).await.unwrap(), 64 * MIB + 4096);
    }
    refused(expand(&lab, MIB, 2 * MIB).await, Code::OutOfRange, "never made smaller");
    refused(expand(&lab, 0, 0).await, Code::InvalidArgument, "size 0");
    assert_eq!(shown(&lab).await.1, "false");
    // A full pool changes nothing.
    refused(expand(&lab, 1 << 40, 0).await, Code::ResourceExhausted, "1099511627776 bytes");
    assert_eq!(shown(&lab).await.0, 64 * MIB + 4096);
    lab.ctl(&["export-on", ID]);
    refused(expand(&lab, 128 * MIB, 0).await, Code::FailedPrecondition, "nobody is on record");
}

#[tokio::test]
async fn an_attached_volume_grows_and_its_export_is_renewed() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    let context = lab.publish(ID, "node-1").await.unwrap();
    let toggles = |lab: &Lab| lab.ctl(&["stats"])["total"].as_u64().unwrap();
    assert_eq!(expand(&lab, 128 * MIB, 0).await.unwrap(), 128 * MIB);
    let (size, export, comment) = shown(&lab).await;
    assert_eq!((size, export.as_str()), (128 * MIB, "true"));
    assert!(comment.contains("node=node-1") && !comment.contains("opt="), "{comment}");
    let log = std::fs::read_to_string(lab.path("rds/requests.jsonl")).unwrap();
    assert!(log.lines().filter(|l| l.contains("disk/set") || l.contains("PATCH")).count() >= 4);
    let before = toggles(&lab);
    assert_eq!(expand(&lab, 128 * MIB, 0).await.unwrap(), 128 * MIB);
    assert!(toggles(&lab) - before <= 3, "a repeated call toggled the export");
    // The attachment is the same: its node reconnects as whom it was.
    assert_eq!(lab.publish(ID, "node-1").await.unwrap(), context);
    // A full pool is found out before anybody's I/O waits.
    refused(expand(&lab, 1 << 40, 0).await, Code::ResourceExhausted, "not grown");
    let (size, export, _) = shown(&lab).await;
    assert_eq!((size, export.as_str()), (128 * MIB, "true"));
}

#[tokio::test]
async fn an_appliance_that_does_not_grow_what_is_exported_is_asked_again_without() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    // Over REST a refusal is heard twice: without its reason, and with it.
    let times = if VIA == Via::Rest { "--times=2" } else { "--times=1" };
    let why = "failure: can not do that while exported";
    lab.ctl(&["reject", "disk/set", times, "--detail", why]);
    assert_eq!(expand(&lab, 128 * MIB, 0).await.unwrap(), 128 * MIB);
    assert!(lab.controller_log().contains("while exported): turning the export off first"));
    let (size, export, comment) = shown(&lab).await;
    assert_eq!((size, export.as_str()), (128 * MIB, "true"));
    assert!(!comment.contains("opt="), "{comment}");
}

#[tokio::test]
async fn an_answer_that_was_lost_is_read_back() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    lab.ctl(&["lose-answer", "disk/set"]);
    assert_eq!(expand(&lab, 128 * MIB, 0).await.unwrap(), 128 * MIB);
    assert_eq!(shown(&lab).await.1, "true");
}

#[tokio::test]
async fn without_a_shield_only_what_is_detached_grows() {
    let lab = Lab::start().await;
    let mut request = create_request(ID);
    request.parameters.insert("shield".into(), "false".into());
    lab.create_with(request).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    refused(expand(&lab, 128 * MIB, 0).await, Code::FailedPrecondition, "End the pods");
    let (size, export, _) = shown(&lab).await;
    assert_eq!((size, export.as_str()), (64 * MIB, "true"));
    lab.unpublish(ID, "node-1").await.unwrap();
    assert_eq!(expand(&lab, 128 * MIB, 0).await.unwrap(), 128 * MIB);
}

/// From one byte to 16 TiB, odd values among them: what is returned is what exists.
#[tokio::test]
async fn sizes_are_exact() {
    let lab = Lab::start_with(&["--pool", "raid10:64T"], |_| {}).await;
    const TIB: i64 = 1 << 40;
    let wanted = [
        1,
        511,
        512,
        513,
        4095,
        4096,
        4097,
        1_000_000,
        MIB - 1,
        MIB,
        1_000_000_007,
        1_610_612_736,
        (1 << 31) + 1,
        (1 << 32) - 1,
        1_000_000_000_000,
        TIB - 1,
        TIB,
        TIB + 1,
        7 * TIB + 12_345,
        16 * TIB - 4096,
    ];
    for (n, required) in wanted.into_iter().enumerate() {
        let name = format!("pvc-00000000-0000-4000-8000-{n:012x}");
        let mut request = create_request(&name);
        request.capacity_range = Some(CapacityRange { required_bytes: required, limit_bytes: 0 });
        let made = lab.create_with(request).await.unwrap();
        let item = lab.item(&name).await.unwrap();
        let file = lab.path(&format!("rds/pools/raid10/volumes/{name}.img"));
        let bytes = i64::try_from(std::fs::metadata(file).unwrap().len()).unwrap();
        assert_eq!(made.capacity_bytes, bytes, "{required}");
        assert_eq!(item["size"], bytes.to_string(), "{required}");
        assert!(bytes >= required && bytes - required < 4096 && bytes % 4096 == 0, "{required}");
        lab.delete(&name).await.unwrap();
    }
}
