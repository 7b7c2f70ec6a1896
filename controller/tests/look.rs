//! Volumes as they are listed and looked at, and the space for more of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use lab::*;
use rds_csi_proto::csi::*;
use serde_json::json;
use tonic::Code;

fn id(n: u32) -> String {
    format!("pvc-00000000-0000-4000-8000-{n:012x}")
}

async fn page(lab: &Lab, max_entries: i32, starting_token: &str) -> ListVolumesResponse {
    let request = ListVolumesRequest { max_entries, starting_token: starting_token.into() };
    lab.volumes().list_volumes(request).await.unwrap().into_inner()
}

fn ids(page: &ListVolumesResponse) -> Vec<String> {
    page.entries.iter().map(|e| e.volume.clone().unwrap().volume_id).collect()
}

async fn get(lab: &Lab, volume: &str) -> controller_get_volume_response::VolumeStatus {
    let request = ControllerGetVolumeRequest { volume_id: volume.into() };
    let answer = lab.volumes().controller_get_volume(request).await.unwrap().into_inner();
    assert_eq!(answer.volume.unwrap().volume_id, volume);
    answer.status.unwrap()
}

#[tokio::test]
async fn pages_are_in_order_and_their_token_survives_restarts_and_changes() {
    let mut lab = Lab::start().await;
    for n in [3, 1, 5, 2] {
        lab.create(&id(n)).await.unwrap();
    }
    // Another cluster's, and something that is nobody's.
    let theirs = json!({"slot": id(4), "type": "file", "file-path": format!("{DIRECTORY}/4.img"),
        "file-size": "1048576", "comment": format!("rds-csi v1 cluster=prod vol={} stage=ready", id(4))});
    assert_eq!(lab.rest("POST", "/rest/disk/add", theirs).await.0, 200);
    let long = format!("{}.{}", "n".repeat(63), "example.".repeat(20) + "com");
    lab.publish(&id(1), "node-1").await.unwrap();
    lab.publish(&id(2), &long).await.unwrap();
    let before = lab.requests();
    let all = page(&lab, 0, "").await;
    assert_eq!(lab.requests() - before, 1, "commands for a page");
    assert_eq!(ids(&all), [id(1), id(2), id(3), id(5)]);
    assert_eq!(all.next_token, "");
    let status = |n: usize| all.entries[n].status.clone().unwrap();
    assert_eq!(status(0).published_node_ids, ["node-1"]);
    assert_eq!(status(1).published_node_ids, [long]);
    assert!(status(2).published_node_ids.is_empty());
    assert!(!status(0).volume_condition.unwrap().abnormal);
    assert_eq!(all.entries[0].volume.clone().unwrap().capacity_bytes, 64 * MIB);

    let first = page(&lab, 2, "").await;
    assert_eq!(ids(&first), [id(1), id(2)]);
    lab.restart_controller(&[]).await;
    lab.unpublish(&id(2), "").await.unwrap();
    lab.delete(&id(2)).await.unwrap();
    let second = page(&lab, 2, &first.next_token).await;
    assert_eq!((ids(&second), second.next_token.as_str()), (vec![id(3), id(5)], ""));
    let wrong = ListVolumesRequest { max_entries: 0, starting_token: "x".into() };
    refused(lab.volumes().list_volumes(wrong).await, Code::Aborted, "starting_token");
    let wrong = ListVolumesRequest { max_entries: -1, starting_token: String::new() };
    refused(lab.volumes().list_volumes(wrong).await, Code::InvalidArgument, "max_entries");
    // An empty list would mean that all of them are gone.
    lab.sim.kill();
    let listed = lab.volumes().list_volumes(ListVolumesRequest::default()).await;
    refused(listed, Code::Unavailable, "default");
}

#[tokio::test]
async fn what_is_wrong_with_a_volume_is_told() {
    let mut lab = Lab::start().await;
    let volume = id(1);
    lab.create(&volume).await.unwrap();
    assert!(!get(&lab, &volume).await.volume_condition.unwrap().abnormal);
    lab.publish(&volume, "node-1").await.unwrap();
    let status = get(&lab, &volume).await;
    assert!(!status.volume_condition.unwrap().abnormal);
    assert_eq!(status.published_node_ids, ["node-1"]);
    let told = async |lab: &Lab, what: &str| {
        let condition = get(lab, &volume).await.volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains(what), "{condition:?}");
    };
    lab.ctl(&["export-off", &volume]);
    told(&lab, "attached but not exported").await;
    lab.unpublish(&volume, "node-1").await.unwrap();
    lab.ctl(&["export-on", &volume]);
    told(&lab, "while nobody holds it").await;
    lab.ctl(&["export-off", &volume]);
    let file = lab.path(&format!("rds/pools/raid10/volumes/{volume}.img"));
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(4096).unwrap();
    told(&lab, "4096 bytes").await;
    std::fs::remove_file(&file).unwrap();
    told(&lab, "missing").await;
    let request = |volume: &str| ControllerGetVolumeRequest { volume_id: volume.into() };
    let absent = lab.volumes().controller_get_volume(request(&id(9))).await;
    refused(absent, Code::NotFound, &id(9));
    lab.sim.kill();
    let unknown = lab.volumes().controller_get_volume(request(&volume)).await;
    refused(unknown, Code::Unavailable, "not reachable");
}

#[tokio::test]
async fn capacity_is_what_is_not_promised_yet() {
    let lab = Lab::start_with(&["--pool", "raid10:1G"], |_| {}).await;
    let capacity = async |parameters: &[(&str, &str)]| {
        let parameters = parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let request = GetCapacityRequest { parameters, ..Default::default() };
        lab.volumes().get_capacity(request).await.map(|a| a.into_inner())
    };
    let before = capacity(&[]).await.unwrap();
    assert_eq!(before.available_capacity, 1 << 30);
    assert_eq!(before.maximum_volume_size, Some(1 << 30));
    assert_eq!(before.minimum_volume_size, Some(4096));
    lab.create(&id(1)).await.unwrap();
    // Not ours, and promised all the same.
    let theirs = json!({"slot": "vm", "type": "file", "file-path": "/raid10/vm.img",
        "file-size": (64 * MIB).to_string()});
    assert_eq!(lab.rest("POST", "/rest/disk/add", theirs).await.0, 200);
    let after = capacity(&[("volumePath", DIRECTORY)]).await.unwrap();
    assert_eq!(after.available_capacity, (1 << 30) - 128 * MIB);
    refused(capacity(&[("volumePath", "/x")]).await, Code::InvalidArgument, "volumePath");
    refused(capacity(&[("rds", "x")]).await, Code::InvalidArgument, "rds");
    refused(capacity(&[("sise", "1")]).await, Code::InvalidArgument, "sise");
    let mut whole = create_request(&id(2));
    whole.capacity_range =
        Some(CapacityRange { required_bytes: after.available_capacity, limit_bytes: 0 });
    lab.create_with(whole).await.unwrap();
    assert_eq!(capacity(&[]).await.unwrap().available_capacity, 0);
}

#[tokio::test]
async fn two_clusters_with_the_same_names_do_not_touch_each_other() {
    let mut lab = Lab::start().await;
    let volume = id(1);
    lab.create(&volume).await.unwrap();
    lab.publish(&volume, "node-1").await.unwrap();
    let before = lab.item(&volume).await.unwrap();
    lab.restart_controller(&["--cluster-id", "other"]).await;
    refused(lab.create(&volume).await, Code::AlreadyExists, "belongs to cluster");
    refused(lab.publish(&volume, "node-1").await, Code::FailedPrecondition, "belongs to cluster");
    refused(lab.unpublish(&volume, "").await, Code::FailedPrecondition, "belongs to cluster");
    refused(lab.delete(&volume).await, Code::FailedPrecondition, "belongs to cluster");
    let expand = ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 }),
        ..Default::default()
    };
    let grown = lab.volumes().controller_expand_volume(expand).await;
    refused(grown, Code::FailedPrecondition, "belongs to cluster");
    assert!(ids(&page(&lab, 0, "").await).is_empty());
    assert_eq!(lab.item(&volume).await.unwrap(), before);
    assert!(lab.file_exists(&volume).await);
}
