//! What keeps a volume's session alive.
//!
//! [`machine`] is the pure state machine; [`keeper`] owns one task a volume, which feeds
//! it and carries out what it asks for; [`shield`] is the device that holds I/O.

mod actions;
pub mod answerers;
pub mod beat;
mod cause;
pub mod content;
pub mod copy;
pub mod keeper;
pub mod machine;
mod portal;
pub mod record;
pub mod rpc;
pub mod shield;
pub mod stall;
pub mod stalls;
pub mod sweeper;
mod task;
mod telemetry;

use std::path::PathBuf;

use rds_csi_proto::agent::State;
use rds_csi_proto::context::Arrival;
use rds_csi_proto::ids::{HostNqn, Nqn, Portal, VolumeId};
use serde::{Deserialize, Serialize};

use crate::kernel::DeviceNumber;

/// Everything that is needed to connect to a volume, as the attachment gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// Which volume.
    pub volume: VolumeId,
    /// Its subsystem.
    pub nqn: Nqn,
    /// As whom to connect: this attachment's epoch.
    pub host_nqn: HostNqn,
    /// Where.
    pub portal: Portal,
    /// Seconds until the kernel gives a lost controller up; -1: never.
    pub ctrl_loss_tmo: i32,
    /// Seconds between the kernel's own attempts.
    pub reconnect_delay: u32,
    /// Seconds.
    pub keep_alive_tmo: u32,
    /// I/O queues.
    pub nr_io_queues: u32,
    /// Whether a dm-multipath device stands between the namespace and its users.
    pub shield: bool,
    /// Seconds without a session after which waiting I/O fails; 0: never.
    pub io_timeout_secs: u64,
    /// Seconds of outage after which the attachment is checked before reconnecting.
    pub reattach_check_secs: u64,
    /// Given if other nodes connect as the same host. Then the attachment is checked after
    /// every loss, and the kernel never reconnects by itself.
    #[serde(default)]
    pub arrival: Option<Arrival>,
}

/// A volume's device, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// What its users get: `/dev/dm-N`, or the bare namespace without a shield.
    pub path: PathBuf,
    /// Its number; with a shield it stays the same for as long as the volume is staged.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// What identifies a volume's content, recorded while it was healthy and compared before
/// a new namespace is mapped in place of a lost one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nothing was written yet, as far as is known: nothing to compare.
    Unknown,
    /// A file system made or found by us.
    Filesystem {
        /// As libblkid names it.
        fs_type: String,
        /// Its UUID as libblkid prints it.
        uuid: String,
    },
    /// A raw block volume, whose content belongs to its user: checked by sampled blocks.
    Raw,
}

/// A snapshot of a session, for CSI calls, the command line and metrics.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// How to connect to it.
    pub spec: SessionSpec,
    /// Where the machine stands.
    pub state: State,
    /// Since when, milliseconds since the Unix epoch.
    pub since_unix_ms: i64,
    /// Why, for people.
    pub reason: String,
    /// Its device, once it has one.
    pub device: Option<Attached>,
    /// The namespace that I/O goes to at present (`nvme0n1`).
    pub namespace: Option<String>,
    /// Its controller (`nvme0`).
    pub controller: Option<String>,
    /// Whether the device fails I/O instead of queueing it.
    pub failing_io: bool,
    /// Losses since the volume was attached.
    pub outages: u32,
    /// How long the last one took, in milliseconds.
    pub last_outage_ms: u64,
    /// Connection attempts since it was last live.
    pub attempts: u32,
}
