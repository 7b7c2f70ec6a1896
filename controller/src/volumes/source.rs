//! CreateVolume from a snapshot or another volume.
//!
//! The volume's item is made first, with a tag that says `filling`, so that nobody can attach
//! it; then all of the source is copied; then the tag says `ready`. A call that finds it
//! still filling throws it away and begins anew.

use rds_csi_proto::ids::{HostNqn, Nqn, VolumeId};

use super::Volumes;
use super::copying::{Broken, Original, Target};
use super::create::{CreatePlan, begun};
use super::place::Place;
use crate::crash;
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::routeros::wire::{CopyFrom, Property, Slot};
use crate::rules::owner::Stage;
use crate::rules::snapshot::{Method, SnapStage};
use crate::rules::source::Source;

impl Volumes {
    pub(super) async fn make_from(
        &self,
        plan: &CreatePlan,
        source: &Source,
        place: &Place,
        nqn: &Nqn,
    ) -> Result<(), Error> {
        let (original, size) = self.original(source).await?;
        let plan = CreatePlan { size: plan.size.made_from(size)?, ..plan.clone() };
        self.may_copy(&format!("a volume from {source}")).await?;
        crash::point("fill.looked");
        let filling = self.tag(&plan, Stage::Filling(source.clone()));
        let closed = HostNqn::closed();
        self.make(&plan, place, nqn, &filling, closed.clone()).await?;
        self.wait_for_size(&plan).await.map_err(|e| e.after_change(begun(&plan)))?;
        crash::point("fill.added");
        let target =
            Target { slot: Slot::from(&plan.volume), comment: filling.to_string(), closed };
        match self.copy(&original, &target, size).await {
            Ok(()) => {}
            Err(Broken::TakenOver(error)) => return Err(error),
            Err(Broken::Spoilt(error)) => return Err(self.undo_filling(&plan, error).await),
        }
        crash::point("fill.copied");
        let ready = vec![Property::Comment(filling.at(Stage::Ready))];
        self.change(&plan.volume, "marking as filled", ready)
            .await
            .map(drop)
            .map_err(|e| e.after_change(begun(&plan)))
    }

    /// What is copied, and how much.
    async fn original(&self, source: &Source) -> Result<(Original, u64), Error> {
        let missing = || source.missing();
        match source {
            Source::Snapshot(id) => {
                let (item, tag) = self.snapshot(id).await?.ok_or_else(missing)?;
                if tag.stage != SnapStage::Ready {
                    return Err(Error::Refused(format!(
                        "snapshot {id} is not ready to use; try again later"
                    )));
                }
                let data = match tag.method {
                    Method::FullCopy => CopyFrom::Slot(id.into()),
                    Method::CopyOnWrite => {
                        let file = self.record_file(&item, id)?;
                        let directory = file.parent().ok_or_else(missing)?;
                        CopyFrom::File(directory.snapshot_home(id).file_in_subvolume())
                    }
                };
                let created_ms = tag.created_ms;
                Ok((Original::Snapshot { snapshot: id.clone(), created_ms, data }, tag.size))
            }
            Source::Volume(volume) => {
                let (item, tag) = self.ours(volume).await?.ok_or_else(missing)?;
                if tag.stage != Stage::Ready || item.export {
                    return Err(Error::Refused(format!(
                        "volume {volume} is attached, or not ready: a copy of what is being \
                         written is no clone. Detach it first, or take a snapshot of it on a \
                         btrfs pool and restore that"
                    )));
                }
                let size = item.size.ok_or_else(|| {
                    Error::Refused(format!("the appliance shows no size for volume {volume}"))
                })?;
                let epoch = self.epoch(volume, &item).await?;
                Ok((Original::Volume { volume: volume.clone(), epoch, size }, size))
            }
        }
    }

    /// The host that a detached volume is closed to; one is set if it has none.
    pub(super) async fn epoch(&self, volume: &VolumeId, item: &DiskItem) -> Result<HostNqn, Error> {
        if let Ok(host) = item.allow_host.parse() {
            return Ok(host);
        }
        let closed = HostNqn::closed();
        let properties = vec![Property::AllowHost(closed.clone())];
        self.change(volume, "closing", properties).await?;
        Ok(closed)
    }

    /// Takes away what was made, as far as that can be done now; the next call does the rest.
    async fn undo_filling(&self, plan: &CreatePlan, cause: Error) -> Error {
        let undone = match self.ours(&plan.volume).await {
            Ok(Some((item, tag))) if matches!(tag.stage, Stage::Filling(_)) => {
                self.discard_filling(&plan.volume, &item).await
            }
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        match undone {
            Ok(()) => cause,
            Err(e) => {
                tracing::warn!("what was begun could not be taken away yet: {e}");
                cause.after_change(begun(plan))
            }
        }
    }

    /// Removes a volume whose content never became whole.
    pub(super) async fn discard_filling(
        &self,
        volume: &VolumeId,
        item: &DiskItem,
    ) -> Result<(), Error> {
        tracing::info!(file = item.file_path, "removing what was not filled");
        let (_, tag) =
            self.ours(volume).await?.ok_or_else(|| Error::NotFound(volume.to_string()))?;
        let file = self.may_delete(volume, item, &tag).await?;
        // Not marked as being deleted: the tag says already that nobody may have it.
        self.delete_file(&file).await?;
        crash::point("unfill.file");
        self.delete_home(volume, &file).await?;
        crash::point("unfill.home");
        self.delete_item(volume).await?;
        crash::point("unfill.item");
        self.delete_file(&file).await
    }
}
