//! Snapshots of all appliances together. One is always on its volume's appliance.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use rds_csi_proto::csi;
use rds_csi_proto::ids::SnapshotId;

use super::Fleet;
use crate::error::Error;
use crate::rules::snapshot::SnapTag;
use crate::volumes::{ListPlan, SnapshotPlan};

/// How long the other appliances are waited for before a snapshot is made on one. The
/// snapshotter's names are unique; the question is for those who name snapshots themselves,
/// and is not worth more while an appliance is down.
const NAMESAKE_LIMIT: Duration = Duration::from_secs(1);

impl Fleet {
    /// Makes the snapshot where its volume is, or finds that it was made.
    pub(crate) async fn create_snapshot(
        &self,
        plan: &SnapshotPlan,
    ) -> Result<csi::Snapshot, Error> {
        self.refuse_namesake(plan).await?;
        let made = self
            .at_holder(&plan.source, |member| async move { member.create_snapshot(plan).await })
            .await?;
        if let Some(made) = made {
            return Ok(made);
        }
        // The volume is gone, which its snapshot may outlive.
        self.snapshot_now(plan).await?.ok_or_else(|| Error::NotFound(plan.source.to_string()))
    }

    /// A snapshot of this name and of another volume, which may be on another appliance, would
    /// leave one id for both.
    async fn refuse_namesake(&self, plan: &SnapshotPlan) -> Result<(), Error> {
        if self.members.len() == 1 {
            return Ok(());
        }
        let asked = self.members.iter().map(|member| {
            let (member, plan) = (Arc::clone(member), plan.clone());
            // Not dropped in the middle of a request: it would cost the connection.
            let answer = tokio::spawn(async move { member.snapshot_now(&plan).await });
            tokio::time::timeout(NAMESAKE_LIMIT, answer)
        });
        for answer in join_all(asked).await {
            if let Ok(Ok(Err(error @ Error::Exists(_)))) = answer {
                return Err(error);
            }
        }
        Ok(())
    }

    /// What a snapshot looks like now, if there is one.
    pub(crate) async fn snapshot_now(
        &self,
        plan: &SnapshotPlan,
    ) -> Result<Option<csi::Snapshot>, Error> {
        match self.find_snapshot(&plan.snapshot).await? {
            Some(at) => self.member(at)?.snapshot_now(plan).await,
            None => Ok(None),
        }
    }

    /// Deletes the snapshot, or finds that no appliance has it. One that does not answer may
    /// have it.
    pub(crate) async fn delete_snapshot(&self, snapshot: &SnapshotId) -> Result<(), Error> {
        match self.find_snapshot(snapshot).await? {
            Some(at) => self.member(at)?.delete_snapshot(snapshot).await,
            None => Ok(()),
        }
    }

    /// The snapshots that a list is chosen from: the one that is asked for by its id, else
    /// all. Without one of the appliances a list of all would be taken for whole.
    pub(crate) async fn snapshots(&self, plan: &ListPlan) -> Result<Vec<SnapTag>, Error> {
        if let Some(wanted) = plan.wanted() {
            let Some(id) = wanted else { return Ok(Vec::new()) };
            let Some(at) = self.find_snapshot(id).await? else { return Ok(Vec::new()) };
            return Ok(self.member(at)?.snapshot_tag(id).await?.into_iter().collect());
        }
        let all = self.members.iter().map(|member| async move {
            member.snapshots().await.map_err(|e| e.of_appliance(member.name()))
        });
        Ok(try_join_all(all).await?.into_iter().flatten().collect())
    }
}
