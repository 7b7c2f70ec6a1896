//! NodeGetVolumeStats: how full a volume is, and how its session fares.
//!
//! Asked of every volume every minute, also of dead ones, so it must never hang and never
//! pile up threads that do.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rds_csi_proto::agent::State;
use rds_csi_proto::csi::volume_usage::Unit;
use rds_csi_proto::csi::{NodeGetVolumeStatsResponse, VolumeCondition, VolumeUsage};
use rds_csi_proto::ids::VolumeId;

use super::paths::GivenPath;
use super::sessions::{self, Sessions};
use super::{LOCAL, Node};
use crate::error::{Error, Result};
use crate::kernel::mounts::MountTable;
use crate::kernel::{DeviceNumber, blocking};
use crate::session::SessionView;

/// statfs answers from memory; a file system that does not is stuck.
const STATFS: Duration = Duration::from_secs(5);

/// Volumes of which a statfs is going on: a second one would only be stuck beside it.
pub(crate) type Pending = Arc<Mutex<HashSet<VolumeId>>>;

struct Turn {
    pending: Pending,
    volume: VolumeId,
}

impl Turn {
    fn take(pending: &Pending, volume: &VolumeId) -> Option<Self> {
        let mut set = pending.lock().unwrap_or_else(PoisonError::into_inner);
        set.insert(volume.clone())
            .then(|| Self { pending: Arc::clone(pending), volume: volume.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}

/// What is to be measured.
enum Seen {
    Filesystem { path: PathBuf, read_only_by_error: bool },
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
        Seen::Filesystem { path, read_only_by_error } => {
            if read_only_by_error && !condition.abnormal {
                condition = abnormal(
                    "the file system has become read-only after an I/O error; end all pods that use \
                     it on this node, so that it is mounted anew"
                        .to_owned(),
                );
            }
            match measure(node, &volume, path).await? {
                Some(usage) => usage,
                None => {
                    if !condition.abnormal {
                        condition = abnormal("the file system does not answer".to_owned());
                    }
                    Vec::new()
                }
            }
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
        let read_only_by_error = writable && top.is_superblock_read_only();
        return Ok(Some(Seen::Filesystem { path, read_only_by_error }));
    }
    let is_node =
        top.fs_type == "devtmpfs" && DeviceNumber::of_path(&path).is_ok_and(|n| n == number);
    Ok(is_node.then_some(Seen::Block))
}

/// `None` if the file system does not answer.
async fn measure<S>(
    node: &Node<S>,
    volume: &VolumeId,
    path: PathBuf,
) -> Result<Option<Vec<VolumeUsage>>> {
    let Some(turn) = Turn::take(&node.measuring, volume) else { return Ok(None) };
    let shown = path.display().to_string();
    let answer = blocking(format!("statfs of {shown}"), STATFS, move || {
        let answer = rustix::fs::statvfs(&path)
            .map_err(|e| Error::kernel("measure", path.display())(e.into()));
        drop(turn);
        answer
    })
    .await;
    match answer {
        Ok(s) => {
            let total = s.f_blocks.saturating_mul(s.f_frsize);
            let free = s.f_bfree.saturating_mul(s.f_frsize);
            let available = s.f_bavail.saturating_mul(s.f_frsize);
            let inodes = VolumeUsage {
                available: signed(s.f_ffree),
                total: signed(s.f_files),
                used: signed(s.f_files.saturating_sub(s.f_ffree)),
                unit: Unit::Inodes.into(),
            };
            Ok(Some(vec![bytes(total, Some((available, total.saturating_sub(free)))), inodes]))
        }
        Err(Error::Timeout { .. }) => Ok(None),
        Err(error) => Err(error),
    }
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

fn abnormal(message: String) -> VolumeCondition {
    VolumeCondition { abnormal: true, message }
}

/// How a session's state is told to Kubernetes.
fn condition(view: &SessionView) -> VolumeCondition {
    if view.failing_io {
        return abnormal(format!("I/O fails instead of waiting: {}", view.reason));
    }
    match view.state {
        State::Live => VolumeCondition { abnormal: false, message: "the session is live".into() },
        state => {
            abnormal(format!("the session is {}, I/O waits: {}", state.as_str_name(), view.reason))
        }
    }
}
