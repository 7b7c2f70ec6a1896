//! DeleteSnapshot: as DeleteVolume, the record goes last, since it alone proves what is ours.

use rds_csi_proto::ids::SnapshotId;

use super::super::delete::settle;
use super::super::{Pace, Volumes};
use crate::crash;
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::routeros::btrfs::Subvolume;
use crate::routeros::wire::{Property, Switch};
use crate::rules::owner::{OwnerTag, Stage};
use crate::rules::snapshot::{Method, SnapStage, SnapTag};
use crate::rules::source::Source;

impl Volumes {
    /// Deletes the snapshot, or finds that it does not exist.
    pub(crate) async fn delete_snapshot(&self, snapshot: &SnapshotId) -> Result<(), Error> {
        let Some((item, tag)) = self.snapshot(snapshot).await? else { return Ok(()) };
        if let Some(reader) = self.reader_of(snapshot).await? {
            return Err(Error::Refused(format!(
                "snapshot {snapshot} is being restored to {reader}; try again when that is done"
            )));
        }
        self.discard_snapshot(&item, &tag)
            .await
            .map_err(|e| e.after_change(format!("DeleteSnapshot of {snapshot}")))?;
        tracing::info!("snapshot deleted");
        Ok(())
    }

    /// A volume that is being filled from the snapshot.
    async fn reader_of(&self, snapshot: &SnapshotId) -> Result<Option<String>, Error> {
        let from = Stage::Filling(Source::Snapshot(snapshot.clone()));
        let items = self.appliance.disk_comments().await?;
        let reads = |comment: &str| {
            OwnerTag::parse(comment)
                .is_some_and(|t| t.cluster == self.settings.cluster && t.stage == from)
        };
        Ok(items.into_iter().find(|item| reads(&item.comment)).map(|item| item.slot))
    }

    /// Removes all of a snapshot that is ours, from any point at which it may have stopped.
    pub(super) async fn discard_snapshot(
        &self,
        item: &DiskItem,
        tag: &SnapTag,
    ) -> Result<(), Error> {
        let snapshot = &tag.snapshot;
        let file = self.record_file(item, snapshot)?;
        if item.export {
            return Err(Error::Refused(format!(
                "the record of snapshot {snapshot} is exported, which this controller never does; \
                 turn nvme-tcp-export of {} off if nobody uses it",
                item.slot
            )));
        }
        let uses = self.appliance.disk_uses().await?;
        if let Some(other) = uses.iter().find(|u| u.slot != item.slot && file.is(&u.file_path)) {
            return Err(Error::Refused(format!(
                "file {file} is also used by the appliance's item {:?}; it is not touched",
                other.slot
            )));
        }
        let subvolume = self.subvolume_of(tag, &file).await?;
        if tag.stage != SnapStage::Deleting {
            let deleting = tag.at(SnapStage::Deleting);
            let properties = vec![Property::Export(Switch::Off), Property::SnapTag(deleting)];
            self.change(snapshot, "marking for deletion", properties).await?;
        }
        crash::point("unsnapshot.marked");
        if let Some(subvolume) = subvolume {
            self.delete_subvolume(&subvolume).await?;
        }
        crash::point("unsnapshot.data");
        self.delete_file(&file).await?;
        crash::point("unsnapshot.file");
        self.delete_item(snapshot).await?;
        crash::point("unsnapshot.record");
        self.delete_file(&file).await
    }

    /// Where the data of a copy-on-write snapshot is.
    async fn subvolume_of(
        &self,
        tag: &SnapTag,
        file: &crate::rules::path::AppliancePath,
    ) -> Result<Option<Subvolume>, Error> {
        if tag.method == Method::FullCopy {
            return Ok(None);
        }
        let home = file.parent().map(|directory| directory.snapshot_home(&tag.snapshot));
        let pool = self.appliance.pool_of(file).await?.filter(|p| p.is_btrfs());
        match home.and_then(|home| pool?.subvolume(&home)) {
            Some(subvolume) => Ok(Some(subvolume)),
            None => Err(Error::Refused(format!(
                "snapshot {} is a btrfs subvolume beside {file}, but the appliance shows no btrfs \
                 file system with a label there",
                tag.snapshot
            ))),
        }
    }

    /// Removes a subvolume that is known to be ours, and sees that it is gone.
    pub(in super::super) async fn delete_subvolume(
        &self,
        subvolume: &Subvolume,
    ) -> Result<(), Error> {
        if !self.appliance.subvolume(subvolume).await? {
            return Ok(());
        }
        settle(self.appliance.remove_subvolume(subvolume).await)?;
        let pace = Pace::start();
        while self.appliance.subvolume(subvolume).await? {
            pace.again("removal of a subvolume").await?;
        }
        Ok(())
    }
}
