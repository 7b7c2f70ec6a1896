//! Whatever bytes arrive, reading them as any request ends in an answer, never in a panic.
//!
//! tests/corpus/ holds requests as they are on the wire: good ones of each kind, and ones
//! that once did harm. They are read as they are, as every other kind, and damaged.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use prost::Message;
use rds_csi_proto::agent::{HistoryRequest, StatusRequest, VolumeRequest, WatchRequest};
use rds_csi_proto::context::PublishContext;
use rds_csi_proto::csi::volume_capability::AccessType;
use rds_csi_proto::csi::{
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use rds_csi_proto::params::{FsType, VolumeParams};
use tonic::Status;

use super::options::MountOptions;
use super::paths::GivenPath;
use super::request::{PublishRequest, StageRequest, capability, known_volume_id, volume_id};
use crate::error::{Error, Result};

/// Reads bytes as one kind of request, and checks it as its call would; whether it passed.
type Reader = fn(&[u8]) -> bool;

const READERS: [(&str, Reader); 10] = [
    ("stage", |b| {
        NodeStageVolumeRequest::decode(b).is_ok_and(|r| {
            maps(&r.publish_context, &r.volume_context);
            options(r.volume_capability.as_ref());
            passed(StageRequest::parse(&r))
        })
    }),
    ("publish", |b| {
        NodePublishVolumeRequest::decode(b).is_ok_and(|r| {
            maps(&r.publish_context, &r.volume_context);
            options(r.volume_capability.as_ref());
            passed(PublishRequest::parse(&r))
        })
    }),
    ("unstage", |b| {
        NodeUnstageVolumeRequest::decode(b).is_ok_and(|r| {
            passed(volume_id(&r.volume_id)) & path("staging_target_path", &r.staging_target_path)
        })
    }),
    ("unpublish", |b| {
        NodeUnpublishVolumeRequest::decode(b)
            .is_ok_and(|r| passed(volume_id(&r.volume_id)) & path("target_path", &r.target_path))
    }),
    ("stats", |b| {
        NodeGetVolumeStatsRequest::decode(b).is_ok_and(|r| {
            passed(known_volume_id(&r.volume_id)) & path("volume_path", &r.volume_path)
        })
    }),
    ("expand", |b| {
        NodeExpandVolumeRequest::decode(b).is_ok_and(|r| {
            let _ = capability(r.volume_capability.as_ref(), &HashMap::new()).map_err(answer);
            passed(known_volume_id(&r.volume_id)) & path("volume_path", &r.volume_path)
        })
    }),
    ("status", |b| StatusRequest::decode(b).is_ok_and(|r| passed(volume_id(&r.volume_id)))),
    ("volume", |b| VolumeRequest::decode(b).is_ok_and(|r| passed(volume_id(&r.volume_id)))),
    ("history", |b| HistoryRequest::decode(b).is_ok_and(|r| passed(volume_id(&r.volume_id)))),
    ("watch", |b| WatchRequest::decode(b).is_ok_and(|r| passed(volume_id(&r.volume_id)))),
];

/// A refusal must be one that can be sent.
fn answer(error: Error) {
    let status = Status::from(error);
    assert!(status.message().len() < 4096, "a message of {} bytes", status.message().len());
    assert!(!status.message().is_empty());
}

fn passed<T>(result: Result<T>) -> bool {
    result.map_err(answer).is_ok()
}

fn path(what: &str, text: &str) -> bool {
    passed(GivenPath::parse(what, text))
}

fn maps(publish: &HashMap<String, String>, volume: &HashMap<String, String>) {
    let _ = PublishContext::from_map(publish).map_err(|e| e.to_string());
    let _ = VolumeParams::from_volume_context(volume).map_err(|e| e.to_string());
    let _ = VolumeParams::from_storage_class(volume).map_err(|e| e.to_string());
}

fn options(given: Option<&VolumeCapability>) {
    if let Some(AccessType::Mount(mount)) = given.and_then(|c| c.access_type.as_ref()) {
        for fs_type in [FsType::Ext4, FsType::Ext3, FsType::Xfs, FsType::Btrfs] {
            let _ = MountOptions::parse(fs_type, &mount.mount_flags).map_err(answer);
        }
    }
}

fn read_as_everything(bytes: &[u8]) {
    for (_, read) in READERS {
        read(bytes);
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let read =
        |p: PathBuf| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(p).unwrap());
    files.map(read).collect()
}

#[test]
fn the_corpus_is_read_without_harm() {
    let files = corpus();
    assert!(files.len() >= 20, "the corpus is not there: {} files", files.len());
    for (_, bytes) in &files {
        read_as_everything(bytes);
    }
}

/// Otherwise the rest would only try how decoding fails.
#[test]
fn good_requests_of_each_kind_are_in_the_corpus() {
    let files = corpus();
    for (kind, read) in READERS {
        let name = format!("{kind}-good.bin");
        let (_, bytes) = files.iter().find(|(n, _)| *n == name).unwrap();
        assert!(read(bytes), "{name} is refused");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn damaged_requests(
        file in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..12),
    ) {
        let files = corpus();
        let mut bytes = files[file.index(files.len())].1.clone();
        // Reading quotes of a megabyte two thousand times over shows nothing more.
        bytes.truncate(16 << 10);
        for (at, value, kind) in damage {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes.insert(at, value),
                2 => { bytes.remove(at); }
                _ => bytes.truncate(at),
            }
        }
        read_as_everything(&bytes);
    }

    #[test]
    fn any_text_in_any_field(
        id in "\\PC{0,50}|pvc-[0-9a-f-]{36}|(\\.\\./){1,9}",
        place in "\\PC{0,50}|/[a-z/.\u{0}]{0,40}",
        map in prop::collection::hash_map("[a-zA-Z]{0,20}|\\PC{0,9}", "\\PC{0,30}|-?[0-9]{1,30}", 0..6),
        flags in prop::collection::vec("\\PC{0,20}|[a-z_]{1,12}(=[a-z0-9:]{0,9})?", 0..5),
        fs_type in "\\PC{0,8}|ext4|xfs",
        mode in any::<i32>(),
    ) {
        use rds_csi_proto::csi::volume_capability::{AccessMode, MountVolume};
        let capability = VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume { fs_type, mount_flags: flags, ..MountVolume::default() })),
            access_mode: Some(AccessMode { mode }),
        };
        let request = NodeStageVolumeRequest {
            volume_id: id,
            publish_context: map.clone(),
            staging_target_path: place,
            volume_capability: Some(capability),
            volume_context: map,
            ..NodeStageVolumeRequest::default()
        };
        read_as_everything(&request.encode_to_vec());
    }
}
