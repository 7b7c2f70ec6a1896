//! Snapshots of all appliances together. One is always on its volume's appliance.

use rds_csi_proto::csi;
use rds_csi_proto::ids::SnapshotId;

use super::Fleet;
use crate::error::Error;
use crate::rules::snapshot::SnapTag;
use crate::volumes::SnapshotPlan;

impl Fleet {
    /// Makes the snapshot where its volume is, or finds that it was made.
    pub(crate) async fn create_snapshot(
        &self,
        plan: &SnapshotPlan,
    ) -> Result<csi::Snapshot, Error> {
        let made = self
            .at_holder(&plan.source, |member| async move { member.create_snapshot(plan).await })
            .await?;
        if let Some(made) = made {
            return Ok(made);
        }
        // The volume is gone, which its snapshot may outlive.
        self.snapshot_now(plan).await?.ok_or_else(|| Error::NotFound(plan.source.to_string()))
    }

    /// What a snapshot looks like now, if there is one.
    pub(crate) async fn snapshot_now(
        &self,
        plan: &SnapshotPlan,
    ) -> Result<Option<csi::Snapshot>, Error> {
        let mut silent = None;
        for member in &self.members {
            match member.snapshot_now(plan).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => silent = silent.or(Some(error)),
            }
        }
        silent.map_or(Ok(None), Err)
    }

    /// Deletes the snapshot, or finds that no appliance has it. One that does not answer may
    /// have it.
    pub(crate) async fn delete_snapshot(&self, snapshot: &SnapshotId) -> Result<(), Error> {
        let mut silent = None;
        for member in &self.members {
            if let Err(error) = member.delete_snapshot(snapshot).await {
                silent = silent.or(Some(error));
            }
        }
        silent.map_or(Ok(()), Err)
    }

    /// All snapshots. Without one of the appliances the list would be taken for whole.
    pub(crate) async fn snapshots(&self) -> Result<Vec<SnapTag>, Error> {
        let mut all = Vec::new();
        for member in &self.members {
            all.extend(member.snapshots().await?);
        }
        Ok(all)
    }
}
