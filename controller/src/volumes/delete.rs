//! DeleteVolume.
//!
//! The item's comment is the only proof that the file is ours, so the item goes last: look
//! at all items, record `stage=deleting` and see that it is recorded and not exported, remove
//! the file, remove the item. Each removal is proven by its answer; one without an answer by
//! what is there afterwards. A call that stopped anywhere in between is continued by the
//! next one.

use rds_csi_proto::ids::VolumeId;

use super::{Pace, Volumes};
use crate::crash;
use crate::error::Error;
use crate::routeros::wire::{Property, Slot, Switch};
use crate::routeros::{ApplianceError, DiskItem, DiskUse};
use crate::rules::owner::{OwnerTag, Stage};
use crate::rules::path::{AppliancePath, own_file};

impl Volumes {
    /// Deletes the volume. That there is none here is [`Error::NotFound`].
    pub(crate) async fn delete(&self, volume: &VolumeId) -> Result<(), Error> {
        let (item, uses) = self.appliance.disk_among_all(volume).await?;
        let item = item.ok_or_else(|| Error::NotFound(volume.to_string()))?;
        let tag = self.must_be_ours(&item, volume)?;
        let file = self.may_delete_among(volume, &item, &tag, &uses)?;
        crash::point("delete.looked");
        let begun = |e: Error| e.after_change(format!("DeleteVolume of {volume}"));
        self.mark(volume, &tag).await.map_err(begun)?;
        crash::point("delete.marked");
        self.discard(volume, &file).await.map_err(begun)?;
        crash::point("delete.item");
        tracing::info!(%file, "volume deleted");
        Ok(())
    }

    /// Removes file and item of a volume that is marked.
    async fn discard(&self, volume: &VolumeId, file: &AppliancePath) -> Result<(), Error> {
        if file.home_of(volume).is_none() {
            match self.appliance.discard_disk(volume, file).await {
                Ok(()) => return Ok(()),
                // Without an answer, what is there afterwards decides: below.
                Err(ApplianceError::Ambiguous { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.delete_file(file).await?;
        crash::point("delete.file");
        self.delete_home(volume, file).await?;
        self.delete_item(volume).await
    }

    /// No item: the volume does not exist. A file of its name proves nothing, so it is
    /// neither deleted nor passed over in silence.
    pub(crate) async fn refuse_orphan(&self, volume: &VolumeId) -> Result<(), Error> {
        for root in &self.settings.roots {
            let place = self.place(volume, root).await?;
            for file in place.files(volume, root) {
                if self.appliance.file(&file).await?.is_none() {
                    continue;
                }
                return Err(Error::Refused(format!(
                    "volume {volume} has no disk item, but file {file} exists; without its item \
                     nothing proves that it is ours, so remove it by hand if nobody needs it"
                )));
            }
            self.remove_empty(volume, &place).await?;
        }
        Ok(())
    }

    /// [`Self::may_delete_among`] all that there is.
    pub(super) async fn may_delete(
        &self,
        volume: &VolumeId,
        item: &DiskItem,
        tag: &OwnerTag,
    ) -> Result<AppliancePath, Error> {
        let uses = self.appliance.disk_uses().await?;
        self.may_delete_among(volume, item, tag, &uses)
    }

    /// All that must be true before anything is deleted; returns the file to delete.
    fn may_delete_among(
        &self,
        volume: &VolumeId,
        item: &DiskItem,
        tag: &OwnerTag,
        uses: &[DiskUse],
    ) -> Result<AppliancePath, Error> {
        if let Stage::Attached(a) = &tag.stage {
            return Err(Error::Refused(format!(
                "volume {volume} is attached to node {}; detach it first",
                a.node
            )));
        }
        if item.export {
            return Err(Error::Refused(format!(
                "volume {volume} is exported; detach it first (ControllerUnpublishVolume)"
            )));
        }
        let file = own_file(&item.file_path, volume, &self.settings.roots).ok_or_else(|| {
            Error::Refused(format!(
                "the file of volume {volume}, {:?}, is not one that this controller makes \
                 (--volume-path, then {volume}.img); it is not touched",
                item.file_path
            ))
        })?;
        let other = uses.iter().find(|u| u.slot != volume.as_str() && file.is(&u.file_path));
        match other {
            None => Ok(file),
            Some(other) => Err(Error::Refused(format!(
                "file {file} is also used by the appliance's item {:?}; it is not touched",
                other.slot
            ))),
        }
    }

    async fn mark(&self, volume: &VolumeId, tag: &OwnerTag) -> Result<(), Error> {
        if tag.stage == Stage::Deleting {
            return Ok(());
        }
        let deleting = tag.at(Stage::Deleting);
        let properties = vec![Property::Export(Switch::Off), Property::Comment(deleting)];
        self.change(volume, "marking for deletion", properties).await.map(drop)
    }

    /// Removes a file that is known to be ours, and sees that it is gone.
    pub(super) async fn delete_file(&self, file: &AppliancePath) -> Result<(), Error> {
        if self.appliance.file(file).await?.is_none() {
            return Ok(());
        }
        settle(self.appliance.remove_file(file).await)?;
        let pace = Pace::start();
        while self.appliance.file(file).await?.is_some() {
            pace.again(&format!("removal of file {file}")).await?;
        }
        Ok(())
    }

    /// Removes the subvolume that the volume's file was in, if it had one of its own.
    pub(super) async fn delete_home(
        &self,
        volume: &VolumeId,
        file: &AppliancePath,
    ) -> Result<(), Error> {
        let Some(home) = file.home_of(volume) else { return Ok(()) };
        match self.appliance.pool_of(&home).await?.and_then(|pool| pool.subvolume(&home)) {
            Some(subvolume) => self.delete_subvolume(&subvolume).await,
            None => Err(Error::Refused(format!(
                "volume {volume} was in the subvolume {home}, but the appliance shows no file \
                 system there"
            ))),
        }
    }

    pub(super) async fn delete_item(&self, slot: impl Into<Slot>) -> Result<(), Error> {
        let slot = slot.into();
        settle(self.appliance.remove_disk(slot.clone()).await)?;
        let pace = Pace::start();
        while self.appliance.disk(slot.clone()).await?.is_some() {
            pace.again(&format!("removal of item {slot}")).await?;
        }
        Ok(())
    }
}

/// A removal without an answer is judged by what is there afterwards.
pub(super) fn settle(result: Result<(), ApplianceError>) -> Result<(), Error> {
    match result {
        Ok(()) | Err(ApplianceError::Ambiguous { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
