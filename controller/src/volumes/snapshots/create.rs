//! CreateSnapshot.

use rds_csi_proto::csi;
use rds_csi_proto::ids::HostNqn;

use super::super::copying::{Broken, Original, Target};
use super::super::delete::settle;
use super::super::{Pace, Volumes};
use super::{SnapshotPlan, other_source, unix_ms, view};
use crate::crash;
use crate::error::Error;
use crate::routeros::btrfs::{COPY_SINCE, Subvolume};
use crate::routeros::wire::{Property, Slot, Switch};
use crate::routeros::{ApplianceError, DiskItem, NewRecord};
use crate::rules::owner::{OwnerTag, Stage};
use crate::rules::path::{AppliancePath, own_file};
use crate::rules::snapshot::{Method, SnapStage, SnapTag};

/// The record of a snapshot that needs no file of its own: the smallest that is surely
/// accepted as a disk.
const RECORD_SIZE: u64 = 1 << 20;

/// Everything that a snapshot is made of.
struct Cut {
    /// The directory of the volume.
    directory: AppliancePath,
    size: u64,
    method: Way,
}

enum Way {
    CopyOnWrite { parent: Subvolume, own: Subvolume },
    FullCopy { epoch: HostNqn },
}

impl Volumes {
    /// Makes the snapshot, or finds that it was made. Returns when all of it is there.
    pub(crate) async fn create_snapshot(
        &self,
        plan: &SnapshotPlan,
    ) -> Result<csi::Snapshot, Error> {
        let begun = |e: Error| e.after_change(format!("CreateSnapshot of {}", plan.snapshot));
        if let Some((item, tag)) = self.snapshot(&plan.snapshot).await? {
            if tag.source != plan.source {
                return Err(other_source(plan, &tag));
            }
            match &tag.stage {
                SnapStage::Ready => return view(&tag),
                // Whoever began it is gone: operations on one snapshot exclude each other.
                SnapStage::Making { .. } | SnapStage::Deleting => {
                    tracing::warn!("a snapshot that was begun and not finished is made anew");
                    self.discard_snapshot(&item, &tag).await.map_err(begun)?;
                }
            }
        }
        let (item, owner) = self
            .ours(&plan.source)
            .await?
            .ok_or_else(|| Error::NotFound(plan.source.to_string()))?;
        let cut = self.cut(plan, &item, &owner).await?;
        crash::point("snapshot.looked");
        let tag = self.make_snapshot(plan, cut).await?;
        tracing::info!(size = tag.size, method = ?tag.method, "snapshot is there");
        view(&tag)
    }

    /// All that must be true before anything is made, and how it will be made.
    async fn cut(
        &self,
        plan: &SnapshotPlan,
        item: &DiskItem,
        owner: &OwnerTag,
    ) -> Result<Cut, Error> {
        let volume = &plan.source;
        match owner.stage {
            Stage::Ready | Stage::Attached(_) => {}
            Stage::Deleting => {
                return Err(Error::Refused(format!("volume {volume} is being deleted")));
            }
            Stage::Filling(_) => {
                return Err(Error::Refused(format!(
                    "volume {volume} is still being filled with its content; try again later"
                )));
            }
        }
        let size = item.size.ok_or_else(|| {
            Error::Refused(format!("the appliance shows no size for volume {volume}"))
        })?;
        let file = own_file(&item.file_path, volume, &self.settings.roots).ok_or_else(|| {
            Error::Refused(format!(
                "the file of volume {volume}, {:?}, is not one that this controller makes",
                item.file_path
            ))
        })?;
        if let Some(home) = file.home_of(volume)
            && let Some(pool) = self.appliance.pool_of(&home).await?.filter(|p| p.is_btrfs())
            && let Some(directory) = home.parent()
            && let Some(parent) = pool.subvolume(&home)
            && let Some(own) = pool.subvolume(&directory.snapshot_home(&plan.snapshot))
            && self.appliance.subvolume(&parent).await?
        {
            return Ok(Cut { directory, size, method: Way::CopyOnWrite { parent, own } });
        }
        let directory =
            file.parent().ok_or_else(|| Error::Internal(format!("{file} has no directory")))?;
        self.may_copy(&format!("snapshot of {volume}")).await?;
        if owner.stage != Stage::Ready || item.export {
            return Err(Error::Refused(format!(
                "volume {volume} is attached. It is not on a btrfs pool in a subvolume of its \
                 own, so its snapshot is a full copy, and a copy of what is being written is no \
                 snapshot: detach it first, or keep it on a btrfs pool"
            )));
        }
        let epoch = self.epoch(volume, item).await?;
        Ok(Cut { directory, size, method: Way::FullCopy { epoch } })
    }

    /// Whether this RouterOS can copy at all.
    pub(in super::super) async fn may_copy(&self, what: &str) -> Result<(), Error> {
        let version = self.appliance.version().await?;
        if version >= COPY_SINCE {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "{what} needs /disk/copy, which RouterOS has since {COPY_SINCE}; this is {version}: \
             upgrade it, or keep volumes on a btrfs pool"
        )))
    }

    async fn make_snapshot(&self, plan: &SnapshotPlan, cut: Cut) -> Result<SnapTag, Error> {
        let begun = |e: Error| e.after_change(format!("CreateSnapshot of {}", plan.snapshot));
        let file = cut.directory.snapshot_file(&plan.snapshot);
        if self.appliance.file(&file).await?.is_some() {
            return Err(leftover(&file));
        }
        let (method, epoch, record_size) = match &cut.method {
            Way::CopyOnWrite { own, .. } if self.appliance.subvolume(own).await? => {
                return Err(leftover(&cut.directory.snapshot_home(&plan.snapshot)));
            }
            // Any UUID: no epoch is needed for what is atomic.
            Way::CopyOnWrite { .. } => (Method::CopyOnWrite, HostNqn::random(), RECORD_SIZE),
            Way::FullCopy { epoch } => (Method::FullCopy, epoch.clone(), cut.size),
        };
        let making = SnapTag {
            cluster: self.settings.cluster.clone(),
            snapshot: plan.snapshot.clone(),
            source: plan.source.clone(),
            size: cut.size,
            method,
            created_ms: unix_ms(),
            stage: SnapStage::Making { epoch: epoch.host_id().to_owned() },
        };
        let closed = HostNqn::closed();
        self.add_record(&making, &file, record_size, &closed).await?;
        crash::point("snapshot.recorded");
        let made = match &cut.method {
            Way::CopyOnWrite { parent, own } => self.cut_subvolume(plan, &cut, own, parent).await,
            Way::FullCopy { epoch } => {
                let original = Original::Volume {
                    volume: plan.source.clone(),
                    epoch: epoch.clone(),
                    size: cut.size,
                };
                let slot = Slot::from(&plan.snapshot);
                let target = Target { slot, comment: making.to_string(), closed };
                self.copy(&original, &target, cut.size).await
            }
        };
        match made {
            Ok(()) => {}
            Err(Broken::TakenOver(error)) => return Err(error),
            Err(Broken::Spoilt(error)) => {
                return Err(self.undo_snapshot(plan, error).await);
            }
        }
        crash::point("snapshot.cut");
        let ready = making.at(SnapStage::Ready);
        let properties = vec![Property::SnapTag(ready.clone())];
        self.change(&plan.snapshot, "marking as ready", properties).await.map_err(begun)?;
        crash::point("snapshot.ready");
        Ok(ready)
    }

    /// The record, before anything else. Its closed host tells this attempt from others.
    async fn add_record(
        &self,
        tag: &SnapTag,
        file: &AppliancePath,
        size: u64,
        closed: &HostNqn,
    ) -> Result<(), Error> {
        let begun = |e: Error| e.after_change(format!("CreateSnapshot of {}", tag.snapshot));
        let record = NewRecord {
            slot: (&tag.snapshot).into(),
            file: file.clone(),
            size,
            closed: closed.clone(),
            tag: tag.clone(),
        };
        match self.appliance.add_record(record).await {
            Ok(()) | Err(ApplianceError::Ambiguous { .. }) => {}
            Err(e) if e.is_refusal() => {
                // It was not there a moment ago; without an item it is of our own making.
                if self.appliance.disk(&tag.snapshot).await.map_err(|e| begun(e.into()))?.is_none()
                {
                    self.delete_file(file).await.map_err(begun)?;
                }
                return Err(Error::NoSnapshot { snapshot: tag.snapshot.clone(), size, cause: e });
            }
            Err(e) => return Err(begun(e.into())),
        }
        let pace = Pace::start();
        loop {
            let item = self.appliance.disk(&tag.snapshot).await.map_err(|e| begun(e.into()))?;
            if item.is_some_and(|i| i.size.is_some_and(|s| s >= size)) {
                return Ok(());
            }
            let what = format!("the record of {}", tag.snapshot);
            if let Err(e) = pace.again(&what).await {
                return Err(begun(e));
            }
        }
    }

    /// The snapshot of a subvolume: there or not there, never half.
    async fn cut_subvolume(
        &self,
        plan: &SnapshotPlan,
        cut: &Cut,
        own: &Subvolume,
        parent: &Subvolume,
    ) -> Result<(), Broken> {
        settle(self.appliance.snapshot_subvolume(own, parent, Switch::On).await)?;
        let pace = Pace::start();
        while !self.appliance.subvolume(own).await.map_err(Error::from)? {
            pace.again(&format!("the subvolume of {}", plan.snapshot)).await?;
        }
        // Grown in between: which size it has is then not known.
        let (item, _) = self
            .ours(&plan.source)
            .await?
            .ok_or_else(|| Error::NotFound(plan.source.to_string()))?;
        match item.size == Some(cut.size) {
            true => Ok(()),
            false => Err(Broken::Spoilt(Error::Refused(format!(
                "volume {} changed its size while its snapshot was made; try again",
                plan.source
            )))),
        }
    }

    /// Takes away what was made, as far as that can be done now; the next call does the rest.
    async fn undo_snapshot(&self, plan: &SnapshotPlan, cause: Error) -> Error {
        let undone = match self.snapshot(&plan.snapshot).await {
            Ok(Some((item, tag))) => self.discard_snapshot(&item, &tag).await,
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        match undone {
            // Nothing is left, so the cause may be final.
            Ok(()) => cause,
            Err(e) => {
                tracing::warn!("what was begun could not be taken away yet: {e}");
                cause.after_change(format!("CreateSnapshot of {}", plan.snapshot))
            }
        }
    }
}

fn leftover(path: &AppliancePath) -> Error {
    Error::Refused(format!(
        "{path} exists on the appliance without a record in /disk, and is not touched; if nobody \
         needs it, remove it by hand"
    ))
}
