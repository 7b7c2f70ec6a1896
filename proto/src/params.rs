//! StorageClass keys: checked by the controller when a volume is created, carried to the
//! node in the volume context, and read there by the same code.
//!
//! A key that is not known is an error, not a remark in a log: a misspelt
//! `ioTimeoutSecond` would otherwise be found during the first outage.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::ids::{DEFAULT_NVME_PORT, RdsName};

/// The volume context's own keys beside the StorageClass's.
pub mod context_keys {
    /// Subsystem NQN.
    pub const NQN: &str = "nqn";
    /// File of the volume on the appliance (the Go driver wrote the whole path here).
    pub const VOLUME_PATH: &str = "volumePath";
    /// The snapshot or volume that it was made from: it carries the same file system UUID, and
    /// its file system may be smaller than it is.
    pub const MADE_FROM: &str = "madeFrom";
    /// Written by older versions.
    pub const FS_TYPE: &str = "fsType";
}

/// A file system that a volume may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FsType {
    #[default]
    Ext4,
    Ext3,
    Xfs,
    Btrfs,
}

impl FsType {
    /// Its name for mount(2), mkfs and libblkid.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Ext3 => "ext3",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// # Errors
    /// For any other name; the empty one is the default.
    pub fn parse(text: &str) -> Result<Self, ParamError> {
        match text {
            "" | "ext4" => Ok(Self::Ext4),
            "ext3" => Ok(Self::Ext3),
            "xfs" => Ok(Self::Xfs),
            "btrfs" => Ok(Self::Btrfs),
            _ => {
                Err(ParamError::bad("csi.storage.k8s.io/fstype", text, "ext4, ext3, xfs or btrfs"))
            }
        }
    }
}

/// A StorageClass parameter that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// A key that no version of this driver knows.
    #[error("unknown StorageClass parameter {key:?}; known are: {known}", known = KNOWN_KEYS.join(", "))]
    Unknown {
        /// The key as given.
        key: String,
    },
    /// A key with a value that it cannot have.
    #[error("StorageClass parameter {key} has the value {value:?}; accepted is {accepted}")]
    Malformed {
        /// Which key.
        key: &'static str,
        /// Its value as given.
        value: String,
        /// What would be right.
        accepted: &'static str,
    },
}

impl ParamError {
    fn bad(key: &'static str, value: &str, accepted: &'static str) -> Self {
        Self::Malformed { key, value: value.chars().take(80).collect(), accepted }
    }
}

/// All keys that a StorageClass may have (besides those under `csi.storage.k8s.io/`,
/// which the provisioner adds or consumes).
pub const KNOWN_KEYS: &[&str] = &[
    "rds",
    "rdsAddress",
    "nvmeAddress",
    "nvmePort",
    "volumePath",
    "fsType",
    "ctrlLossTmo",
    "reconnectDelay",
    "keepAliveTmo",
    "nrIoQueues",
    "migrationTimeoutSeconds",
    "allowSharedBlock",
    "shield",
    "ioTimeoutSeconds",
    "reattachCheckSeconds",
    "mkfsOptions",
];

/// Everything that a StorageClass can say of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeParams {
    /// Name of the appliance; the controller's main one when absent.
    pub rds: Option<RdsName>,
    /// Management address; the controller's own when absent.
    pub rds_address: Option<String>,
    /// Data portal address; the management address when absent.
    pub nvme_address: Option<IpAddr>,
    /// Data portal port.
    pub nvme_port: u16,
    /// Directory on the pool; the controller's own when absent.
    pub volume_path: Option<String>,
    /// How the kernel keeps the session.
    pub session: SessionParams,
    /// When two nodes may hold it.
    pub migration: MigrationParams,
    /// Extra arguments of mkfs, each from [`ALLOWED_MKFS_OPTIONS`]' forms.
    pub mkfs_options: Vec<String>,
}

/// The part that concerns the session on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionParams {
    /// Seconds until the kernel gives a lost controller up; -1: never.
    pub ctrl_loss_tmo: i32,
    /// Seconds between the kernel's reconnection attempts.
    pub reconnect_delay: u32,
    /// Seconds without an answer until the session counts as lost.
    pub keep_alive_tmo: u32,
    /// I/O queues, which are TCP connections; `None`: min(CPUs, 4).
    pub nr_io_queues: Option<u32>,
    /// A dm-multipath device that queues I/O while there is no session.
    pub shield: bool,
    /// After how long without a session waiting I/O fails; `None`: never.
    pub io_timeout: Option<Duration>,
    /// After how long an outage the attachment is checked before reconnecting.
    pub reattach_check: Duration,
}

impl Default for SessionParams {
    fn default() -> Self {
        Self {
            ctrl_loss_tmo: -1,
            reconnect_delay: 1,
            keep_alive_tmo: 5,
            nr_io_queues: None,
            shield: true,
            io_timeout: None,
            reattach_check: Duration::from_secs(60),
        }
    }
}

impl Default for VolumeParams {
    fn default() -> Self {
        Self {
            rds: None,
            rds_address: None,
            nvme_address: None,
            nvme_port: DEFAULT_NVME_PORT,
            volume_path: None,
            session: SessionParams::default(),
            migration: MigrationParams::default(),
            mkfs_options: Vec::new(),
        }
    }
}

/// What concerns a second node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationParams {
    /// How long two nodes may hold a volume during a live migration.
    pub timeout: Duration,
    /// Whether a second node may have a shared block volume without proof of a migration.
    pub allow_shared_block: bool,
}

impl Default for MigrationParams {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(MIGRATION_DEFAULT), allow_shared_block: false }
    }
}

/// `migrationTimeoutSeconds` when it is not given.
const MIGRATION_DEFAULT: u64 = 300;
/// What the clamp of `migrationTimeoutSeconds` allows, in seconds.
const MIGRATION_LIMITS: (u64, u64) = (30, 3600);

/// Which flags `mkfsOptions` may use: those that shape the file system. None that name
/// another device or file, force, or change what is written where.
pub const ALLOWED_MKFS_OPTIONS: &[&str] =
    &["-b", "-i", "-I", "-m", "-N", "-T", "-O", "-E", "-s", "-n", "-d", "-l", "-L"];

impl VolumeParams {
    /// Reads the parameters of a StorageClass, refusing what is not known.
    ///
    /// # Errors
    /// Names the key, its value and what is accepted.
    pub fn from_storage_class(map: &HashMap<String, String>) -> Result<Self, ParamError> {
        // The provisioner strips its own keys but --extra-create-metadata adds some.
        let foreign = |key: &str| key.starts_with("csi.storage.k8s.io/");
        let mut unknown: Vec<_> =
            map.keys().filter(|k| !foreign(k) && !KNOWN_KEYS.contains(&k.as_str())).collect();
        unknown.sort();
        if let Some(key) = unknown.first() {
            return Err(ParamError::Unknown { key: (*key).clone() });
        }
        if let Some(fs) = map.get("csi.storage.k8s.io/fstype") {
            FsType::parse(fs)?;
        }
        Self::read(map)
    }

    /// Reads a volume context: the same keys beside others, which are not ours to judge
    /// (kubelet adds pod information, older versions wrote more).
    ///
    /// # Errors
    /// If a key that is known has a value that it cannot have.
    pub fn from_volume_context(map: &HashMap<String, String>) -> Result<Self, ParamError> {
        // The volume's own path on the appliance stands under the same key there.
        match map.get("keepAliveTmo").map(String::as_str) {
            // "As the kernel has it", in each context that the Go driver wrote. No class of
            // ours can have said so.
            Some("0") => {
                let without = |(k, v): (&String, &String)| {
                    (k != "keepAliveTmo").then(|| (k.clone(), v.clone()))
                };
                Self::read(&map.iter().filter_map(without).collect())
            }
            _ => Self::read(map),
        }
    }

    /// Only what concerns a second node: older drivers wrote contexts in which other keys
    /// have forms of their own, and an attachment must not fail over those.
    ///
    /// # Errors
    /// If one of the keys has a value that it cannot have.
    pub fn migration_of_context(
        map: &HashMap<String, String>,
    ) -> Result<MigrationParams, ParamError> {
        let text = |key: &str| map.get(key).map(String::as_str).filter(|v| !v.is_empty());
        let key = "migrationTimeoutSeconds";
        let seconds = number(text(key), key, ANY)?.unwrap_or(MIGRATION_DEFAULT);
        Ok(MigrationParams {
            timeout: Duration::from_secs(seconds.clamp(MIGRATION_LIMITS.0, MIGRATION_LIMITS.1)),
            allow_shared_block: switch(text("allowSharedBlock"), "allowSharedBlock", false)?,
        })
    }

    fn read(map: &HashMap<String, String>) -> Result<Self, ParamError> {
        let text = |key: &str| map.get(key).map(String::as_str).filter(|v| !v.is_empty());
        let seconds = |key, default, range| match number(text(key), key, range) {
            Ok(v) => Ok(v.unwrap_or(default)),
            Err(e) => Err(e),
        };
        let defaults = Self::default();
        let kernel = SessionParams::default();
        if let Some(fs) = text("fsType") {
            FsType::parse(fs)?;
        }
        Ok(Self {
            rds: text("rds")
                .map(|v| v.parse().map_err(|_| ParamError::bad("rds", v, RdsName::ACCEPTED)))
                .transpose()?,
            rds_address: text("rdsAddress").map(host).transpose()?,
            nvme_address: text("nvmeAddress")
                .map(|v| {
                    v.parse().map_err(|_| {
                        ParamError::bad(
                            "nvmeAddress",
                            v,
                            "an IPv4 or IPv6 address (nodes must reach it while DNS is down)",
                        )
                    })
                })
                .transpose()?,
            nvme_port: u16::try_from(seconds("nvmePort", u64::from(defaults.nvme_port), PORTS)?)
                .unwrap_or(defaults.nvme_port),
            volume_path: text("volumePath").map(directory).transpose()?,
            session: SessionParams {
                ctrl_loss_tmo: match text("ctrlLossTmo") {
                    None => kernel.ctrl_loss_tmo,
                    Some("-1") => -1,
                    v => narrow(number(v, "ctrlLossTmo", LOSS)?).unwrap_or(kernel.ctrl_loss_tmo),
                },
                reconnect_delay: narrow(number(text("reconnectDelay"), "reconnectDelay", DELAY)?)
                    .unwrap_or(kernel.reconnect_delay),
                keep_alive_tmo: narrow(number(text("keepAliveTmo"), "keepAliveTmo", KEEP_ALIVE)?)
                    .unwrap_or(kernel.keep_alive_tmo),
                nr_io_queues: narrow(number(text("nrIoQueues"), "nrIoQueues", QUEUES)?),
                shield: switch(text("shield"), "shield", true)?,
                io_timeout: match seconds("ioTimeoutSeconds", 0, TIMEOUT)? {
                    0 => None,
                    s => Some(Duration::from_secs(s)),
                },
                reattach_check: Duration::from_secs(seconds("reattachCheckSeconds", 60, TIMEOUT)?),
            },
            migration: Self::migration_of_context(map)?,
            mkfs_options: text("mkfsOptions").map(mkfs_options).transpose()?.unwrap_or_default(),
        })
    }
}

/// An inclusive range of whole numbers, and how to say it.
type Range = (u64, u64, &'static str);
const PORTS: Range = (1, 65_535, "a number from 1 to 65535");
const LOSS: Range = (0, 2_147_483, "-1 (never give up) or seconds from 0 to 2147483");
const DELAY: Range = (1, 3_600, "seconds from 1 to 3600");
// 0 would switch keep-alive off, and a silent loss would never be noticed.
const KEEP_ALIVE: Range = (1, 3_600, "seconds from 1 to 3600");
const QUEUES: Range = (1, 128, "a number from 1 to 128");
const TIMEOUT: Range = (0, 31_536_000, "seconds from 0 to 31536000");
const ANY: Range = (0, u64::MAX, "whole seconds");

fn number(value: Option<&str>, key: &str, range: Range) -> Result<Option<u64>, ParamError> {
    let Some(value) = value else { return Ok(None) };
    let (low, high, accepted) = range;
    // Digits only: `str::parse` would take "+5".
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u64>() {
        Ok(n) if digits && (low..=high).contains(&n) => Ok(Some(n)),
        _ => {
            let key = KNOWN_KEYS.iter().find(|k| **k == key).copied().unwrap_or("parameter");
            Err(ParamError::bad(key, value, accepted))
        }
    }
}

/// The ranges above fit the narrower types; a value that does not is treated as absent,
/// which cannot happen.
fn narrow<T: TryFrom<u64>>(value: Option<u64>) -> Option<T> {
    value.and_then(|v| T::try_from(v).ok())
}

fn switch(value: Option<&str>, key: &'static str, default: bool) -> Result<bool, ParamError> {
    match value {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(v) => Err(ParamError::bad(key, v, "\"true\" or \"false\"")),
    }
}

fn host(value: &str) -> Result<String, ParamError> {
    let ok = value.parse::<IpAddr>().is_ok()
        || value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if ok {
        Ok(value.to_owned())
    } else {
        Err(ParamError::bad("rdsAddress", value, "a host name or IP address"))
    }
}

/// A directory on the appliance: absolute, plain characters, nothing that climbs.
fn directory(value: &str) -> Result<String, ParamError> {
    if is_plain_path(value) {
        Ok(value.trim_end_matches('/').to_owned())
    } else {
        Err(ParamError::bad(
            "volumePath",
            value,
            "an absolute path of letters, digits and ._- such as /raid10/volumes",
        ))
    }
}

/// Whether a path is absolute and made of components that need no quoting anywhere.
#[must_use]
pub fn is_plain_path(value: &str) -> bool {
    let plain = |c: &str| {
        !c.is_empty()
            && c != "."
            && c != ".."
            && c.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    value.strip_prefix('/').is_some_and(|rest| rest.trim_end_matches('/').split('/').all(plain))
}

fn mkfs_options(value: &str) -> Result<Vec<String>, ParamError> {
    const ACCEPTED: &str = "flags out of -b -i -I -m -N -T -O -E -s -n -d -l -L, each with a value of letters, digits and ,=._^-";
    let words: Vec<&str> = value.split_whitespace().collect();
    let plain = |w: &str| w.bytes().all(|b| b.is_ascii_alphanumeric() || b",=._^-".contains(&b));
    let pairs_up = words.len().is_multiple_of(2)
        && words.chunks(2).all(|pair| {
            matches!(pair, [flag, arg] if ALLOWED_MKFS_OPTIONS.contains(flag) && plain(arg) && !arg.starts_with('-'))
        });
    if pairs_up {
        Ok(words.into_iter().map(str::to_owned).collect())
    } else {
        Err(ParamError::bad("mkfsOptions", value, ACCEPTED))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn defaults_are_those_of_the_documented_table() {
        let p = VolumeParams::from_storage_class(&map(&[])).unwrap();
        assert_eq!(p, VolumeParams::default());
        assert_eq!(
            (p.nvme_port, p.session.ctrl_loss_tmo, p.session.reconnect_delay),
            (4420, -1, 1)
        );
        assert_eq!((p.session.keep_alive_tmo, p.session.io_timeout), (5, None));
        assert_eq!((p.migration.timeout.as_secs(), p.session.shield), (300, true));
    }

    #[test]
    fn each_bad_value_names_its_key_and_what_is_accepted() {
        for (key, value) in [
            ("nvmePort", "0"),
            ("nvmePort", "+1"),
            ("nvmeAddress", "storage.example"),
            ("ctrlLossTmo", "-2"),
            ("reconnectDelay", "0"),
            ("keepAliveTmo", "0"),
            ("nrIoQueues", "129"),
            ("shield", "yes"),
            ("allowSharedBlock", "yes"),
            ("ioTimeoutSeconds", "5s"),
            ("reattachCheckSeconds", "1e3"),
            ("migrationTimeoutSeconds", "soon"),
            ("volumePath", "/raid10/../secret"),
            ("volumePath", "raid10"),
            ("mkfsOptions", "-F"),
            ("mkfsOptions", "-E nodiscard /dev/sda"),
            ("rds", "Main"),
            ("rdsAddress", "a b"),
            ("csi.storage.k8s.io/fstype", "ntfs"),
        ] {
            let error =
                VolumeParams::from_storage_class(&map(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("accepted is"), "{key}={value}: {error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_in_a_class_and_passed_over_in_a_context() {
        let misspelt = map(&[("ioTimeoutSecond", "5")]);
        let error = VolumeParams::from_storage_class(&misspelt).unwrap_err().to_string();
        assert!(error.contains("ioTimeoutSecond") && error.contains("ioTimeoutSeconds"), "{error}");
        assert!(VolumeParams::from_volume_context(&misspelt).is_ok());
        assert!(
            VolumeParams::from_storage_class(&map(&[("csi.storage.k8s.io/pvc/name", "x")])).is_ok()
        );
    }

    /// What the Go driver of the same name writes into a PersistentVolume.
    #[test]
    fn a_context_of_the_go_driver_is_read() {
        let context = map(&[
            ("rdsAddress", "10.42.241.3"),
            ("nvmeAddress", "10.42.68.1"),
            ("nvmePort", "4420"),
            ("nqn", "nqn.2000-02.com.mikrotik:pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11"),
            ("volumePath", "/storage-pool/metal-csi/pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11.img"),
            ("ctrlLossTmo", "-1"),
            ("reconnectDelay", "5"),
            ("keepAliveTmo", "0"),
            ("migrationTimeoutSeconds", "300"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "1-2-rds.csi.srvlab.io"),
        ]);
        let read = VolumeParams::from_volume_context(&context).unwrap();
        let session = SessionParams { reconnect_delay: 5, ..SessionParams::default() };
        assert_eq!(read.session, session);
        assert_eq!(read.nvme_address, Some("10.42.68.1".parse().unwrap()));
        // In a class it is a mistake.
        assert!(VolumeParams::from_storage_class(&map(&[("keepAliveTmo", "0")])).is_err());
    }

    #[test]
    fn the_migration_timeout_is_clamped() {
        for (given, want) in [("1", 30), ("30", 30), ("4000", 3600), ("99999999999", 3600)] {
            let p = VolumeParams::from_storage_class(&map(&[("migrationTimeoutSeconds", given)]))
                .unwrap();
            assert_eq!(p.migration.timeout.as_secs(), want);
        }
    }

    proptest! {
        #[test]
        fn no_value_panics(key in 0..KNOWN_KEYS.len(), value in "\\PC{0,40}") {
            let _ = VolumeParams::from_storage_class(&map(&[(KNOWN_KEYS[key], &value)]));
        }
    }
}
