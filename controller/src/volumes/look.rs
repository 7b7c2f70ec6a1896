//! Volumes as they are shown: ListVolumes, ControllerGetVolume, GetCapacity.

use rds_csi_proto::csi;
use rds_csi_proto::ids::VolumeId;

use super::Volumes;
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::rules::health::{FileSeen, fault};
use crate::rules::leftover::Accounted;
use crate::rules::owner::{NodeKey, OwnerTag, Ownership, Stage};
use crate::rules::path::{AppliancePath, own_file};
use crate::rules::{capacity, size::csi_bytes};

/// A volume of ours, as the appliance shows it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) item: DiskItem,
    pub(crate) tag: OwnerTag,
    file: FileSeen,
}

impl Seen {
    /// Who holds it.
    pub(crate) fn holders(&self) -> Vec<&NodeKey> {
        match &self.tag.stage {
            Stage::Attached(attachment) => attachment.nodes().collect(),
            _ => Vec::new(),
        }
    }

    /// What is wrong with it.
    pub(crate) fn condition(&self) -> csi::VolumeCondition {
        let fault = fault(&self.item, &self.tag, self.file);
        csi::VolumeCondition {
            abnormal: fault.is_some(),
            message: fault.unwrap_or_else(|| "the appliance shows nothing wrong with it".into()),
        }
    }
}

impl Volumes {
    /// Takes what was seen into the numbers and the story.
    pub(crate) fn count(&self, seen: &[Seen]) {
        for one in seen {
            self.attachments.saw(&one.tag.volume, &one.tag.stage);
            self.story.stands(&one.tag.volume, &one.tag.stage, None);
        }
    }

    /// All volumes of this cluster, with one request however many there are.
    pub(crate) async fn all(&self) -> Result<Vec<Seen>, Error> {
        let cluster = &self.settings.cluster;
        // The whole tag is read below, once: it takes as long as all the rest.
        let ours = |comment: &str| OwnerTag::may_be_of(comment, cluster);
        let items = self.appliance.disks_where(ours).await?;
        let seen = items.into_iter().filter_map(|item| {
            let volume: VolumeId = item.slot.parse().ok()?;
            match self.judge(&item, &volume) {
                Ownership::Ours(tag) => Some(Seen { item, tag, file: FileSeen::NotAsked }),
                Ownership::Foreign(_) => None,
            }
        });
        Ok(seen.collect())
    }

    /// One volume, with a look at its file too.
    pub(crate) async fn inspect(&self, volume: &VolumeId) -> Result<Seen, Error> {
        let (item, tag) = self.existing(volume).await?;
        let file = match own_file(&item.file_path, volume, &self.settings.roots) {
            None => FileSeen::NotAsked,
            Some(path) => match self.appliance.file(&path).await? {
                None => FileSeen::Missing,
                Some(file) => FileSeen::There(file.size),
            },
        };
        Ok(Seen { item, tag, file })
    }

    /// What is named as a volume's or a snapshot's, in a place for volumes, and has no item.
    pub(crate) async fn leftovers(&self) -> Result<Vec<String>, Error> {
        let names = self.appliance.files().await?.into_iter().map(|file| file.name);
        let items = self.appliance.disk_uses().await?;
        let accounted =
            Accounted::by(items.iter().map(|u| (u.slot.as_str(), u.file_path.as_str())));
        Ok(names.filter(|name| accounted.lacks(name, &self.settings.roots)).collect())
    }

    /// A volume as CSI shows it. Its context is not in here: a part of that is only in the PV.
    pub(crate) fn show(&self, seen: &Seen) -> Result<csi::Volume, Error> {
        Ok(csi::Volume {
            capacity_bytes: csi_bytes(seen.item.size.unwrap_or_default())?,
            volume_id: seen.item.slot.clone(),
            accessible_topology: self.settings.topology.to_csi(),
            ..csi::Volume::default()
        })
    }

    /// Bytes that new volumes in a directory may still take.
    pub(crate) async fn available(&self, directory: Option<&str>) -> Result<u64, Error> {
        let directory: AppliancePath = self.directory(directory)?;
        let disks = self.appliance.space().await?;
        capacity::available(&disks, &directory).map_err(Error::Refused)
    }
}
