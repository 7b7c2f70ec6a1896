//! ControllerExpandVolume.
//!
//! A volume that a node has grows in this order, each step visible on the appliance:
//! the file, together with the note that the export has to be renewed; the export off; its
//! size read back; the export on and the note gone. The file first, so that a full pool is
//! found out before anybody's I/O waits. A call that stopped anywhere in between is finished
//! by the next one, and by the next attachment.

use rds_csi_proto::ids::VolumeId;

use super::{Pace, Volumes};
use crate::crash;
use crate::error::Error;
use crate::routeros::wire::{Property, Switch};
use crate::routeros::{ApplianceError, DiskItem};
use crate::rules::expand::{Expand, decide};
use crate::rules::owner::OwnerTag;
use crate::rules::size::SizePlan;

impl Volumes {
    /// Makes the volume as large as asked for, or finds that it is; returns its exact size.
    pub(crate) async fn expand(&self, volume: &VolumeId, plan: &SizePlan) -> Result<u64, Error> {
        let (item, tag) = self.existing(volume).await?;
        let step = decide(&item, &tag, plan)?;
        crash::point("expand.looked");
        let begun = |e: Error| match e {
            // Nothing was changed.
            e @ Error::NotGrown { .. } => e,
            e => e.after_change(format!("expansion of {volume}")),
        };
        let size = match step {
            Expand::Nothing => item.size.unwrap_or_default(),
            Expand::Grow => {
                let seen = self.grow(volume, plan, vec![]).await.map_err(begun)?;
                crash::point("expand.grown");
                self.grown(volume, plan, seen).await.map_err(begun)?
            }
            Expand::GrowAndToggle => self.grow_online(volume, &tag, plan).await.map_err(begun)?,
            Expand::Toggle => self.renew_export(volume, &tag, plan).await.map_err(begun)?,
        };
        if step != Expand::Nothing {
            tracing::info!(bytes = size, ?step, "expanded");
        }
        Ok(size)
    }

    async fn grow_online(
        &self,
        volume: &VolumeId,
        tag: &OwnerTag,
        plan: &SizePlan,
    ) -> Result<u64, Error> {
        let note = vec![Property::Comment(tag.growing(true))];
        match self.grow(volume, plan, note.clone()).await {
            Ok(_) => {}
            // Perhaps this RouterOS does not change the file of an export that is on. That
            // it refused leaves everything as it was, so it can be tried the other way.
            Err(Error::NotGrown { cause, .. }) if !cause.speaks_of_space() => {
                tracing::info!("not grown while exported ({cause}): turning the export off first");
                self.change(volume, "turning the export off", vec![Property::Export(Switch::Off)])
                    .await?;
                if let Err(error) = self.grow(volume, plan, note).await {
                    self.export_again(volume, tag).await?;
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        crash::point("expand.grown");
        self.renew_export(volume, tag, plan).await
    }

    /// Sets the file's size; whether it was is seen later ([`Self::grown`]), if not in what
    /// this gives.
    async fn grow(
        &self,
        volume: &VolumeId,
        plan: &SizePlan,
        mut with: Vec<Property>,
    ) -> Result<Option<DiskItem>, Error> {
        with.push(Property::FileSize(plan.size));
        match self.appliance.set_disk(volume, with).await {
            Ok(item) => Ok(item),
            // Without an answer, what is there afterwards decides.
            Err(ApplianceError::Ambiguous { .. }) => Ok(None),
            Err(cause) if cause.is_refusal() => {
                Err(Error::NotGrown { volume: volume.clone(), size: plan.size, cause })
            }
            Err(cause) => Err(cause.into()),
        }
    }

    /// The export off and on, so that hosts see the new size.
    async fn renew_export(
        &self,
        volume: &VolumeId,
        tag: &OwnerTag,
        plan: &SizePlan,
    ) -> Result<u64, Error> {
        let off = vec![Property::Export(Switch::Off)];
        let seen = self.change(volume, "turning the export off", off).await?;
        crash::point("expand.off");
        // Whatever its size is: nobody's I/O waits longer than it must.
        let size = self.grown(volume, plan, Some(seen)).await;
        crash::point("expand.sized");
        match size {
            Ok(size) => {
                let on = vec![Property::Export(Switch::On), Property::Comment(tag.growing(false))];
                self.change(volume, "turning the export on", on).await?;
                crash::point("expand.done");
                Ok(size)
            }
            Err(error) => {
                self.export_again(volume, tag).await?;
                Err(error)
            }
        }
    }

    /// After a failure: the volume is exported as it was, and what is left to do on record.
    async fn export_again(&self, volume: &VolumeId, tag: &OwnerTag) -> Result<(), Error> {
        let on = vec![Property::Export(Switch::On), Property::Comment(tag.growing(true))];
        self.change(volume, "turning the export on again", on).await.map(drop)
    }

    /// Waits until the size is what was asked for, to the byte.
    async fn grown(
        &self,
        volume: &VolumeId,
        plan: &SizePlan,
        seen: Option<DiskItem>,
    ) -> Result<u64, Error> {
        if let Some(size) = seen.and_then(|item| item.size).filter(|size| plan.admits(*size)) {
            return Ok(size);
        }
        let pace = Pace::start();
        loop {
            let (item, _) = self.existing(volume).await?;
            match item.size {
                Some(size) if plan.admits(size) => return Ok(size),
                _ => pace.again(&format!("growth of {volume} to {} bytes", plan.size)).await?,
            }
        }
    }
}
