//! NodeGetVolumeStats: how full a volume is, and how its session fares.
//!
//! Asked of every volume every minute, also of dead ones, so it must never hang and never
//! pile up threads that do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rds_csi_proto::agent::{NoticeKind, State};
use rds_csi_proto::csi::volume_usage::Unit;
use rds_csi_proto::csi::{NodeGetVolumeStatsResponse, VolumeCondition, VolumeUsage};
use rds_csi_proto::ids::VolumeId;
use rustix::fs::StatVfs;

use super::paths::GivenPath;
use super::sessions::{self, Sessions};
use super::{LOCAL, Node};
use crate::error::{Error, Result};
use crate::kernel::mounts::{Mount, MountTable};
use crate::kernel::soundness::{self, Effort};
use crate::kernel::{DeviceNumber, blocking};
use crate::session::SessionView;

/// statfs answers from memory; a file system that does not is stuck.
const STATFS: Duration = Duration::from_secs(5);

/// What is to be measured.
enum Seen {
    /// `writable` is a mount of the whole file system that may write, if it was meant to.
    Filesystem {
        path: PathBuf,
        writable: Option<Box<Mount>>,
    },
    Block,
}

/// Measures a volume.
///
/// # Errors
/// [`Error::NotFound`] if it is not at that path on this node.
pub(crate) async fn stats<S: Sessions>(
    node: &Node<S>,
    volume: VolumeId,
    path: &str,
) -> Result<NodeGetVolumeStatsResponse> {
    let missing = || Error::NotFound(format!("volume {volume} is not at {path:?} on this node"));
    let view = node.sessions.view(&volume).ok_or_else(missing)?;
    let device = sessions::device(&view)?;
    let given = GivenPath::parse("volume_path", path).map_err(|_| missing())?;
    let writable = node.records.peek(volume.as_str()).await?.is_none_or(|r| !r.read_only);
    let seen =
        blocking("reading the mount table", LOCAL, move || see(&given, device.number, writable))
            .await?
            .ok_or_else(missing)?;
    let mut condition = condition(&view);
    let usage = match seen {
        Seen::Block => vec![bytes(device.size_bytes, None)],
        Seen::Filesystem { path, writable } => {
            let measured = measure(node, &volume, path, writable, device.number).await?;
            let (usage, complaint) = measured.map_or_else(
                || (Vec::new(), Some("the file system does not answer".to_owned())),
                |m| {
                    let complaint = m.fault.map(complaint);
                    if let Some(text) = &complaint {
                        tell(node, &volume, text.clone());
                    }
                    (m.usage, complaint)
                },
            );
            // What is wrong with the session comes first: it explains the rest.
            if let Some(complaint) = complaint.filter(|_| !condition.abnormal) {
                condition = abnormal(complaint);
            }
            usage
        }
    };
    Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) })
}

fn see(given: &GivenPath, number: DeviceNumber, writable: bool) -> Result<Option<Seen>> {
    let Some(path) = given.resolve()? else { return Ok(None) };
    let table = MountTable::read()?;
    let layers = table.at(&path);
    let Some(top) = layers.last() else { return Ok(None) };
    if top.is_of(number) {
        let writable = table.writable(number).filter(|_| writable).cloned().map(Box::new);
        return Ok(Some(Seen::Filesystem { path, writable }));
    }
    let is_node =
        top.fs_type == "devtmpfs" && DeviceNumber::of_path(&path).is_ok_and(|n| n == number);
    Ok(is_node.then_some(Seen::Block))
}

struct Measured {
    usage: Vec<VolumeUsage>,
    fault: Option<&'static str>,
}

/// `None` if the file system does not answer.
async fn measure<S>(
    node: &Node<S>,
    volume: &VolumeId,
    path: PathBuf,
    writable: Option<Box<Mount>>,
    number: DeviceNumber,
) -> Result<Option<Measured>> {
    let what = format!("statfs of {}", path.display());
    node.measuring
        .look(volume, what, STATFS, move || {
            let fault = match writable {
                Some(mount) => soundness::fault(&mount, number, Effort::Look)?,
                None => None,
            };
            let answer = rustix::fs::statvfs(&path).map_err(io::Error::from);
            let usage = match answer {
                Ok(answer) => usage(&answer),
                // One that has stopped may refuse this too.
                Err(_) if fault.is_some() => Vec::new(),
                Err(error) => return Err(Error::kernel("measure", path.display())(error)),
            };
            Ok(Measured { usage, fault })
        })
        .await
}

fn usage(s: &StatVfs) -> Vec<VolumeUsage> {
    let total = s.f_blocks.saturating_mul(s.f_frsize);
    let free = s.f_bfree.saturating_mul(s.f_frsize);
    let available = s.f_bavail.saturating_mul(s.f_frsize);
    let inodes = VolumeUsage {
        available: signed(s.f_ffree),
        total: signed(s.f_files),
        used: signed(s.f_files.saturating_sub(s.f_ffree)),
        unit: Unit::Inodes.into(),
    };
    vec![bytes(total, Some((available, total.saturating_sub(free)))), inodes]
}

fn bytes(total: u64, available_and_used: Option<(u64, u64)>) -> VolumeUsage {
    let (available, used) = available_and_used.unwrap_or_default();
    VolumeUsage {
        available: signed(available),
        total: signed(total),
        used: signed(used),
        unit: Unit::Bytes.into(),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// That a file system takes no writes any more.
pub(super) fn tell<S: Sessions>(node: &Node<S>, volume: &VolumeId, complaint: String) {
    node.sessions.notices().found(volume, NoticeKind::VolumeReadOnly, complaint);
}

/// What is wrong with a file system, and what to do about it.
pub(super) fn complaint(fault: &str) -> String {
    format!(
        "the file system {fault}; end all pods that use it on this node, so that it is mounted anew"
    )
}

fn abnormal(message: String) -> VolumeCondition {
    VolumeCondition { abnormal: true, message }
}

/// How a session's state is told to Kubernetes.
fn condition(view: &SessionView) -> VolumeCondition {
    let since = since(view.since_unix_ms);
    if view.failing_io {
        return abnormal(format!("I/O fails instead of waiting: {} ({since})", view.reason));
    }
    match view.state {
        State::Live => VolumeCondition { abnormal: false, message: "the session is live".into() },
        state => abnormal(format!(
            "the session is {} {since}, I/O waits: {}",
            state.as_str_name(),
            view.reason
        )),
    }
}

/// An instant, not an age: the same condition in other words would be news each minute.
fn since(unix_ms: i64) -> String {
    let second = unix_ms.div_euclid(1000);
    jiff::Timestamp::from_second(second)
        .map_or_else(|_| format!("since second {second}"), |at| format!("since {at}"))
}
