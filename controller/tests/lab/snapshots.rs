//! Snapshots and what is made from them, as the sidecars ask for them, and the data in the
//! files behind them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rds_csi_proto::csi::*;
use serde_json::Value;
use tonic::Status;

use super::{Lab, create_request};

pub fn snapshot_request(name: &str, volume: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        name: name.into(),
        source_volume_id: volume.into(),
        ..Default::default()
    }
}

pub async fn snapshot(lab: &Lab, name: &str, volume: &str) -> Result<Snapshot, Status> {
    let answer = lab.volumes().create_snapshot(snapshot_request(name, volume)).await?;
    Ok(answer.into_inner().snapshot.unwrap())
}

pub async fn delete_snapshot(lab: &Lab, id: &str) -> Result<(), Status> {
    let request = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
    lab.volumes().delete_snapshot(request).await.map(drop)
}

pub async fn list(lab: &Lab) -> Vec<Snapshot> {
    let answer = lab.volumes().list_snapshots(ListSnapshotsRequest::default()).await.unwrap();
    answer.into_inner().entries.into_iter().map(|e| e.snapshot.unwrap()).collect()
}

pub async fn list_one(lab: &Lab, id: &str) -> Vec<Snapshot> {
    let request = ListSnapshotsRequest { snapshot_id: id.into(), ..Default::default() };
    let answer = lab.volumes().list_snapshots(request).await.unwrap();
    answer.into_inner().entries.into_iter().map(|e| e.snapshot.unwrap()).collect()
}

pub fn from_snapshot(name: &str, snapshot: &str) -> CreateVolumeRequest {
    let source = volume_content_source::SnapshotSource { snapshot_id: snapshot.into() };
    let source = volume_content_source::Type::Snapshot(source);
    let source = VolumeContentSource { r#type: Some(source) };
    CreateVolumeRequest { volume_content_source: Some(source), ..create_request(name) }
}

pub fn from_volume(name: &str, volume: &str) -> CreateVolumeRequest {
    let source = volume_content_source::VolumeSource { volume_id: volume.into() };
    let source = volume_content_source::Type::Volume(source);
    let source = VolumeContentSource { r#type: Some(source) };
    CreateVolumeRequest { volume_content_source: Some(source), ..create_request(name) }
}

/// Where the simulator keeps the file that an item stands for.
pub async fn host_file(lab: &Lab, slot: &str) -> PathBuf {
    let item = lab.item(slot).await.unwrap();
    lab.path("rds/pools").join(item["file-path"].as_str().unwrap().trim_start_matches('/'))
}

pub async fn write(lab: &Lab, slot: &str, text: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(host_file(lab, slot).await).unwrap();
    file.write_all_at(text, 0).unwrap();
    file.write_all_at(text, 40 << 20).unwrap();
}

pub async fn read(lab: &Lab, slot: &str) -> [String; 2] {
    let file = std::fs::File::open(host_file(lab, slot).await).unwrap();
    [0, 40 << 20].map(|at| {
        let mut text = [0; 6];
        file.read_exact_at(&mut text, at).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// All that is on the appliance: slots and files, without the pool itself.
pub async fn everything(lab: &Lab) -> Vec<String> {
    let (_, disks) = lab.rest("GET", "/rest/disk?type=file", Value::Null).await;
    let (_, files) = lab.rest("GET", "/rest/file", Value::Null).await;
    let (_, subvolumes) = lab.rest("GET", "/rest/disk/btrfs/subvolume", Value::Null).await;
    let names = |list: Value, key: &str| -> Vec<String> {
        let all = list.as_array().cloned().unwrap_or_default();
        all.iter().map(|i| format!("{key} {}", i[key].as_str().unwrap_or_default())).collect()
    };
    let mut all = names(disks, "slot");
    all.extend(names(files, "name"));
    all.extend(names(subvolumes, "fullname").into_iter().filter(|n| n != "fullname "));
    all.sort();
    all
}
