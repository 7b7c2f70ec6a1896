//! Snapshots: made, deleted, listed.
//!
//! Each is a small saga whose state is in the comment of the snapshot's record
//! ([`crate::rules::snapshot`]), so that whoever is called next goes on from there:
//!
//! ```text
//! CreateSnapshot   record (making) ─► subvolume snapshot, or all parts copied ─► record (ready)
//! DeleteSnapshot   record (deleting) ─► subvolume gone ─► file gone ─► record gone
//! ```
//!
//! A snapshot needs its volume no more once it is ready: either may be deleted first.

mod create;
mod delete;
mod list;

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use rds_csi_proto::csi::{self, CreateSnapshotRequest};
use rds_csi_proto::ids::{SnapshotId, VolumeId};

pub(crate) use list::{ListPlan, page};

use super::{Presence, Volumes};
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::rules::path::{AppliancePath, own_record};
use crate::rules::size::csi_bytes;
use crate::rules::snapshot::{SnapStage, SnapTag};

/// CSI limits names to 128 bytes.
const NAME_MAX: usize = 128;

/// A CreateSnapshot, checked.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotPlan {
    pub(crate) snapshot: SnapshotId,
    pub(crate) source: VolumeId,
}

impl SnapshotPlan {
    pub(crate) fn new(request: CreateSnapshotRequest) -> Result<Self, Error> {
        if request.name.is_empty() || request.name.len() > NAME_MAX {
            return Err(Error::Invalid(format!("name is required, 1 to {NAME_MAX} bytes")));
        }
        if request.source_volume_id.is_empty() {
            return Err(Error::Invalid("source_volume_id is required".into()));
        }
        let ours = |key: &&String| !key.starts_with("csi.storage.k8s.io/");
        if let Some(key) = request.parameters.keys().find(ours) {
            return Err(Error::Invalid(format!(
                "VolumeSnapshotClass parameter {key:?} is not known; none is"
            )));
        }
        let source = request
            .source_volume_id
            .parse()
            .map_err(|_| Error::NotFound(request.source_volume_id.clone()))?;
        Ok(Self { snapshot: SnapshotId::from_request_name(&request.name), source })
    }
}

/// A snapshot as CSI shows it. One that is being deleted is not ready to use either.
pub(super) fn view(tag: &SnapTag) -> Result<csi::Snapshot, Error> {
    let seconds = i64::try_from(tag.created_ms / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(tag.created_ms % 1000).unwrap_or_default() * 1_000_000;
    Ok(csi::Snapshot {
        size_bytes: csi_bytes(tag.size)?,
        snapshot_id: tag.snapshot.to_string(),
        source_volume_id: tag.source.to_string(),
        creation_time: Some(Timestamp { seconds, nanos }),
        ready_to_use: tag.stage == SnapStage::Ready,
        group_snapshot_id: String::new(),
    })
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Volumes {
    /// A snapshot's record and its tag, if there is one; one that is not ours is refused.
    pub(in super::super) async fn snapshot(
        &self,
        snapshot: &SnapshotId,
    ) -> Result<Option<(DiskItem, SnapTag)>, Error> {
        let Some(item) = self.appliance.disk(snapshot).await? else { return Ok(None) };
        match self.judge_record(&item, snapshot) {
            Ok(tag) => Ok(Some((item, tag))),
            Err(why) => Err(Error::Refused(format!(
                "the appliance's item {} is not ours and is left alone: {why}",
                item.slot
            ))),
        }
    }

    /// Whether there is a record of the snapshot's name here, and whose.
    pub(crate) async fn snapshot_presence(&self, id: &SnapshotId) -> Result<Presence, Error> {
        Ok(match self.appliance.disk(id).await? {
            None => Presence::Absent,
            Some(item) if self.judge_record(&item, id).is_ok() => Presence::Ours,
            Some(_) => Presence::Foreign,
        })
    }

    /// The tag of a record that is ours; else why it is not, for people.
    fn judge_record(&self, item: &DiskItem, snapshot: &SnapshotId) -> Result<SnapTag, String> {
        match SnapTag::parse(&item.comment) {
            None => Err("its comment is not a snapshot tag of this driver".into()),
            Some(tag) if tag.cluster != self.settings.cluster => {
                Err(format!("it belongs to cluster {:?}", tag.cluster.as_str()))
            }
            Some(tag) if &tag.snapshot != snapshot => {
                Err(format!("its tag is that of {}", tag.snapshot))
            }
            Some(tag) => Ok(tag),
        }
    }

    /// What a snapshot looks like now, if it is there and of this volume.
    pub(crate) async fn snapshot_now(
        &self,
        plan: &SnapshotPlan,
    ) -> Result<Option<csi::Snapshot>, Error> {
        match self.snapshot(&plan.snapshot).await? {
            Some((_, tag)) if tag.source == plan.source => view(&tag).map(Some),
            Some((_, tag)) => Err(other_source(plan, &tag)),
            None => Ok(None),
        }
    }

    /// The record's file, if it is one that this controller makes.
    pub(in super::super) fn record_file(
        &self,
        item: &DiskItem,
        snapshot: &SnapshotId,
    ) -> Result<AppliancePath, Error> {
        own_record(&item.file_path, snapshot, &self.settings.roots).ok_or_else(|| {
            Error::Refused(format!(
                "the file of snapshot {snapshot}, {:?}, is not one that this controller makes \
                 (--volume-path); it is not touched",
                item.file_path
            ))
        })
    }
}

fn other_source(plan: &SnapshotPlan, tag: &SnapTag) -> Error {
    Error::Exists(format!(
        "snapshot {} exists already, but of volume {}, not {}",
        plan.snapshot, tag.source, plan.source
    ))
}
