//! Random requests, from a seed: the same seed gives the same requests.
//!
//! None of them may be right in all fields: a caller that may mount can of course mount. So
//! paths are never usable ones, and a publish context is never whole.

use std::collections::HashMap;

use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use rds_csi_proto::agent::{HistoryRequest, StatusRequest, VolumeRequest, WatchRequest};
use rds_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use rds_csi_proto::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};

use crate::csi::Volume;

/// Where requests want to write. Nothing may ever appear in it.
pub(super) const SANDBOX: &str = "/scratch/hostile";

const IDS: [&str; 12] = [
    "",
    "raid10",
    "pvc-",
    "../../etc",
    "pvc-../../../../etc/passwd",
    "pvc-3F1E1C0A-9D6E-4A3C-8F54-0C7A6A0B7E11",
    "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11\0",
    "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11/..",
    "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11",
    "pvc-00000000-0000-0000-0000-000000000000",
    "$(touch /scratch/hostile/x)",
    "pvc-\u{202e}\u{1f4a9}\u{0301}",
];
const PATHS: [&str; 14] = [
    "",
    "/",
    "//",
    ".",
    "relative/path",
    "/scratch/hostile/../../etc",
    "/scratch/hostile/a/b/c/d",
    "/scratch/hostile/a\0b",
    "/proc/self/root/../x",
    "/dev/null/x",
    "/etc/passwd/x",
    "/scratch/hostile/missing/deeper/\u{1f4a9}",
    "/sys/class/nvme/x/y",
    "\u{feff}/x",
];
const KEYS: [&str; 16] = [
    "hostNqn",
    "nqn",
    "nvmeAddress",
    "nvmePort",
    "shield",
    "ctrlLossTmo",
    "reconnectDelay",
    "keepAliveTmo",
    "nrIoQueues",
    "ioTimeoutSeconds",
    "reattachCheckSeconds",
    "mkfsOptions",
    "volumePath",
    "fsType",
    "",
    "csi.storage.k8s.io/fstype",
];
const VALUES: [&str; 16] = [
    "",
    "-1",
    "0",
    "18446744073709551616",
    "-9223372036854775809",
    "1e999",
    "NaN",
    "true\0",
    "10.99.0.2,hostnqn=x",
    "nqn.2000-02.com.mikrotik:x,traddr=1.2.3.4",
    "nqn.2014-08.org.nvmexpress:uuid:nonsense",
    "[::]",
    "0x1144",
    "-O quota /dev/vda",
    "\u{0660}",
    "; rm -rf /",
];
const FLAGS: [&str; 9] =
    ["", "ro", "noatime", "journal_path=/dev/vda", "errors=panic", "loop", "bind", "a,b", "=\0"];

/// Makes requests.
pub(super) struct Generator<'a> {
    pub(super) rng: StdRng,
    /// The volume that is really there.
    pub(super) volume: &'a Volume,
}

impl Generator<'_> {
    fn pick<'s>(&mut self, from: &[&'s str]) -> &'s str {
        from.choose(&mut self.rng).copied().unwrap_or_default()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn long(&mut self) -> String {
        let length = *[300, 5_000, 70_000].choose(&mut self.rng).unwrap_or(&300);
        let unit = self.pick(&["a", "/", "../", "\u{1f4a9}", "%s"]);
        unit.repeat(length)
    }

    /// An id: of nobody's volume, of ours, or of no form at all.
    fn id(&mut self, ours_too: bool) -> String {
        match self.rng.random_range(0..10) {
            0 => self.long(),
            1..4 if ours_too => self.volume.id.clone(),
            _ => self.pick(&IDS).to_owned(),
        }
    }

    fn path(&mut self) -> String {
        if self.one_in(10) { format!("/{}", self.long()) } else { self.pick(&PATHS).to_owned() }
    }

    /// Never one that could be connected with: it always lacks the host NQN, or has a wrong one.
    fn context(&mut self) -> HashMap<String, String> {
        let mut map =
            if self.one_in(2) { self.volume.publish_context.clone() } else { HashMap::new() };
        for _ in 0..self.rng.random_range(0..6) {
            let (key, value) = (self.pick(&KEYS).to_owned(), self.value());
            map.insert(key, value);
        }
        if self.one_in(2) {
            map.remove("hostNqn");
        } else {
            map.insert("hostNqn".into(), self.pick(&VALUES).to_owned());
        }
        map
    }

    fn value(&mut self) -> String {
        if self.one_in(20) { self.long() } else { self.pick(&VALUES).to_owned() }
    }

    fn map(&mut self) -> HashMap<String, String> {
        (0..self.rng.random_range(0..8))
            .map(|_| (self.pick(&KEYS).to_owned(), self.value()))
            .collect()
    }

    fn capability(&mut self) -> Option<VolumeCapability> {
        if self.one_in(8) {
            return None;
        }
        let access_type = match self.rng.random_range(0..4) {
            0 => None,
            1 => Some(AccessType::Block(BlockVolume {})),
            _ => Some(AccessType::Mount(MountVolume {
                fs_type: self.pick(&["", "ext4", "xfs", "ntfs", "../../x", "ext4\0"]).to_owned(),
                mount_flags: (0..self.rng.random_range(0..4))
                    .map(|_| self.pick(&FLAGS).to_owned())
                    .collect(),
                volume_mount_group: self.pick(&["", "", "0", "\0"]).to_owned(),
            })),
        };
        let mode = if self.one_in(4) { self.rng.random() } else { self.rng.random_range(0..8) };
        Some(VolumeCapability {
            access_type,
            access_mode: (!self.one_in(8)).then_some(AccessMode { mode }),
        })
    }

    fn number(&mut self) -> i64 {
        *[0, 1, -1, i64::MAX, i64::MIN, 1 << 62, 512].choose(&mut self.rng).unwrap_or(&0)
    }

    /// The message for a method.
    pub(super) fn message(&mut self, method: &str) -> Vec<u8> {
        if self.one_in(5) {
            return self.garbage();
        }
        let name = method.rsplit('/').next().unwrap_or_default();
        let mut bytes = self.well_formed(name);
        if self.one_in(4) {
            self.damage(&mut bytes);
        }
        bytes
    }

    fn well_formed(&mut self, name: &str) -> Vec<u8> {
        match name {
            "NodeStageVolume" => NodeStageVolumeRequest {
                volume_id: self.id(true),
                publish_context: self.context(),
                staging_target_path: self.path(),
                volume_capability: self.capability(),
                volume_context: self.map(),
                secrets: self.map(),
            }
            .encode_to_vec(),
            "NodeUnstageVolume" => NodeUnstageVolumeRequest {
                volume_id: self.id(true),
                staging_target_path: self.path(),
            }
            .encode_to_vec(),
            "NodePublishVolume" => NodePublishVolumeRequest {
                volume_id: self.id(true),
                publish_context: self.context(),
                staging_target_path: self.path(),
                target_path: self.path(),
                volume_capability: self.capability(),
                readonly: self.rng.random(),
                secrets: self.map(),
                volume_context: self.map(),
            }
            .encode_to_vec(),
            "NodeUnpublishVolume" => {
                NodeUnpublishVolumeRequest { volume_id: self.id(true), target_path: self.path() }
                    .encode_to_vec()
            }
            "NodeGetVolumeStats" => NodeGetVolumeStatsRequest {
                volume_id: self.id(true),
                volume_path: self.path(),
                staging_target_path: self.path(),
            }
            .encode_to_vec(),
            "NodeExpandVolume" => NodeExpandVolumeRequest {
                volume_id: self.id(true),
                volume_path: self.path(),
                capacity_range: Some(CapacityRange {
                    required_bytes: self.number(),
                    limit_bytes: self.number(),
                }),
                staging_target_path: self.path(),
                volume_capability: self.capability(),
                secrets: self.map(),
            }
            .encode_to_vec(),
            "Status" => StatusRequest { volume_id: self.id(true) }.encode_to_vec(),
            "Watch" => WatchRequest { volume_id: self.id(true) }.encode_to_vec(),
            "History" => HistoryRequest { volume_id: self.id(true), limit: self.rng.random() }
                .encode_to_vec(),
            // These are orders: of our own volume they would be obeyed.
            "Reconnect" | "Rescan" | "Fail" => {
                VolumeRequest { volume_id: self.id(false) }.encode_to_vec()
            }
            _ => self.garbage(),
        }
    }

    /// Bytes that are no message.
    pub(super) fn garbage(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(0..2_000)];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// Changes a few bytes. What is left may be valid, but is nobody's path: a damaged path of
    /// ours is not among what it is made from.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.rng.random_range(1..8) {
            if bytes.is_empty() {
                return;
            }
            let at = self.rng.random_range(0..bytes.len());
            match self.rng.random_range(0..3) {
                0 => bytes[at] ^= 1 << self.rng.random_range(0..8),
                1 => {
                    bytes.remove(at);
                }
                _ => bytes.truncate(at),
            }
        }
    }
}
