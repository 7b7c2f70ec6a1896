//! Objects as the Go driver of the same name leaves them.
#![allow(unreachable_pub)]

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{DIRECTORY, Lab};

/// What the disks hold that are made here.
pub const DATA: &[u8] = b"a table, two chairs";
/// Its `file-size=64M`, in bytes.
pub const BYTES: i64 = 64 << 20;

pub fn nqn(volume: &str) -> String {
    format!("nqn.2000-02.com.mikrotik:{volume}")
}

/// A disk, by the properties of its one `/disk add`: exported to any host from the start, and
/// without a comment.
pub async fn make_disk(lab: &Lab, volume: &str) -> Value {
    let item = json!({
        "type": "file",
        "file-path": format!("{DIRECTORY}/{volume}.img"),
        "file-size": "64M",
        "slot": volume,
        "nvme-tcp-export": "yes",
        "nvme-tcp-server-port": "4420",
        "nvme-tcp-server-nqn": nqn(volume),
    });
    let (status, body) = lab.rest("POST", "/rest/disk/add", item).await;
    assert_eq!(status, 200, "{body}");
    for _ in 0..100 {
        let item = lab.item(volume).await.unwrap();
        if item["size"].as_str().and_then(|text| text.parse().ok()) == Some(BYTES)
            && item["nvme-tcp-export"] == "true"
        {
            write_data(lab, volume);
            return item;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{volume} is not there: {:?}", lab.item(volume).await);
}

fn file(lab: &Lab, volume: &str) -> std::path::PathBuf {
    lab.path(&format!("rds/pools/raid10/volumes/{volume}.img"))
}

fn write_data(lab: &Lab, volume: &str) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(file(lab, volume)).unwrap();
    file.write_all_at(DATA, 4096).unwrap();
}

pub fn has_its_data(lab: &Lab, volume: &str) -> bool {
    use std::os::unix::fs::FileExt;
    let mut read = vec![0; DATA.len()];
    let file = std::fs::File::open(file(lab, volume)).unwrap();
    file.read_exact_at(&mut read, 4096).is_ok() && read == DATA
}

/// The volume attributes that it puts into a PersistentVolume.
pub fn attributes(volume: &str) -> HashMap<String, String> {
    [
        ("rdsAddress", "10.42.241.3".to_owned()),
        ("nvmeAddress", "10.42.68.1".to_owned()),
        ("nvmePort", "4420".to_owned()),
        ("nqn", nqn(volume)),
        ("volumePath", format!("{DIRECTORY}/{volume}.img")),
        ("ctrlLossTmo", "-1".to_owned()),
        ("reconnectDelay", "5".to_owned()),
        ("keepAliveTmo", "0".to_owned()),
        ("migrationTimeoutSeconds", "300".to_owned()),
        (
            "storage.kubernetes.io/csiProvisionerIdentity",
            "1763000000000-1-rds.csi.srvlab.io".into(),
        ),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// Its PersistentVolume, bound to a claim.
pub fn persistent_volume(driver: &str, volume: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume,
            "annotations": {
                "pv.kubernetes.io/provisioned-by": driver,
                "rds.csi.srvlab.io/attached-at": "2026-01-05T10:00:00.000000Z",
                "rds.csi.srvlab.io/attached-node": "worker-1",
            },
        },
        "spec": {
            "capacity": {"storage": "64Mi"},
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "rds-nvme",
            "csi": {
                "driver": driver,
                "volumeHandle": volume,
                "fsType": "ext4",
                "volumeAttributes": attributes(volume),
            },
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": claim},
        },
    })
}
