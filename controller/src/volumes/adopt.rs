//! Taking over a volume that the Go driver of the same name has made: [`crate::rules::adopt`]
//! says which.
//!
//! Its items are exported to any host, always, and may be mounted by the appliance itself. So
//! one is closed first: not exported, nobody admitted, never mounted. Whoever is still
//! connected is cut off by that, which is why it is done only while the cluster shows no user.
//! The owner tag comes last, when the target was seen to be closed: until then it is nobody's,
//! and from then on it is as one of ours that was just made.

use rds_csi_proto::ids::{HostNqn, VolumeId};

use super::{Volumes, foreign};
use crate::error::Error;
use crate::routeros::wire::{Property, Switch};
use crate::routeros::{DiskItem, DiskUse};
use crate::rules::adopt::{Attributes, Verdict, judge};
use crate::rules::attachment::Allow;
use crate::rules::owner::{Notes, OwnerTag, Stage};

/// The disks of an appliance, as they were looked at once.
pub(crate) struct Disks {
    volumes: Vec<DiskItem>,
    uses: Vec<DiskUse>,
}

impl Disks {
    /// Those that have a volume's name, whosever they are.
    pub(crate) fn volumes(&self) -> &[DiskItem] {
        &self.volumes
    }

    /// The one of this name.
    pub(crate) fn find(&self, volume: &VolumeId) -> Option<&DiskItem> {
        self.volumes.iter().find(|item| item.slot == volume.as_str())
    }
}

impl Volumes {
    /// Everything that an adoption may be about.
    pub(crate) async fn disks(&self) -> Result<Disks, Error> {
        let of_a_volume = |slot: &str| slot.parse::<VolumeId>().is_ok();
        let volumes = self.appliance.disks_named(of_a_volume).await?;
        Ok(Disks { volumes, uses: self.appliance.disk_uses().await? })
    }

    /// What is to be done with one of them, which a PersistentVolume names.
    pub(crate) fn judge_adoption(
        &self,
        disks: &Disks,
        item: &DiskItem,
        volume: &VolumeId,
        says: &Attributes,
    ) -> Verdict {
        judge(item, &disks.uses, volume, says, &self.settings.cluster, &self.settings.roots)
    }

    /// Takes it over, or finds that it is ours.
    pub(crate) async fn adopt(&self, volume: &VolumeId, says: &Attributes) -> Result<(), Error> {
        let disks = self.disks().await?;
        let item = disks.find(volume).ok_or_else(|| Error::NotFound(volume.to_string()))?;
        match self.judge_adoption(&disks, item, volume, says) {
            Verdict::Ours => return Ok(()),
            Verdict::Adopt => {}
            Verdict::Refused(why) => return Err(Error::Refused(foreign(volume, &why))),
        }
        let closed = HostNqn::closed();
        let close = vec![
            Property::AllowHosts(Allow::nobody(&closed)),
            Property::Export(Switch::Off),
            Property::NoMountFilesystem,
        ];
        let item = self.change(volume, "closing it", close).await?;
        self.wait_until_off_for(&item, &closed).await?;
        let tag = OwnerTag {
            cluster: self.settings.cluster.clone(),
            volume: volume.clone(),
            class: None,
            notes: Notes::default(),
            stage: Stage::Ready,
        };
        self.change(volume, "marking it as ours", vec![Property::Comment(tag)]).await?;
        tracing::info!(%volume, rds = %self.settings.name, "adopted");
        Ok(())
    }
}
