//! Whether a volume is as it should be, judged by what the appliance shows of it.

use super::owner::{OwnerTag, Stage};
use crate::routeros::DiskItem;

/// What is known of a volume's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSeen {
    /// Nobody looked.
    NotAsked,
    /// The appliance says that it is not there.
    Missing,
    /// It is there; with its size, if that was told.
    There(Option<u64>),
}

/// What is wrong with a volume, for people; `None` if nothing is.
#[must_use]
pub fn fault(item: &DiskItem, tag: &OwnerTag, file: FileSeen) -> Option<String> {
    let path = &item.file_path;
    if tag.stage == Stage::Deleting {
        return Some("its deletion has begun and is not finished: repeat DeleteVolume".into());
    }
    if let Stage::Filling(source) = &tag.stage {
        return Some(format!(
            "it is not filled yet from {source}: CreateVolume is at it, or has to be repeated"
        ));
    }
    if file == FileSeen::Missing {
        return Some(format!("its file {path} is missing on the appliance"));
    }
    let Some(size) = item.size else {
        return Some(format!(
            "the appliance shows no size for it: its file {path} is being made, missing or unreadable"
        ));
    };
    match file {
        FileSeen::There(Some(bytes)) if bytes != size => {
            return Some(format!("its file {path} has {bytes} bytes, the disk made of it {size}"));
        }
        _ => {}
    }
    match (&tag.stage, item.export) {
        (Stage::Ready, true) => Some(
            "it is exported while nobody holds it: detach it (ControllerUnpublishVolume) and find \
             out who turned the export on"
                .into(),
        ),
        (Stage::Attached(_), false) => {
            Some("it is attached but not exported: its I/O waits; attaching again mends it".into())
        }
        _ if item.allow_host.is_empty() && item.export => {
            Some("it is exported to any host: attaching again mends it".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::owner::Notes;

    #[test]
    fn each_fault_is_told_and_a_sound_volume_has_none() {
        let item = DiskItem::sample("pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11", 1 << 20);
        let tag = OwnerTag {
            cluster: "lab".parse().unwrap(),
            volume: item.slot.parse().unwrap(),
            class: None,
            notes: Notes::default(),
            stage: Stage::Ready,
        };
        let there = FileSeen::There(Some(1 << 20));
        assert_eq!(fault(&item, &tag, there), None);
        assert_eq!(fault(&item, &tag, FileSeen::There(None)), None);
        assert_eq!(fault(&item, &tag, FileSeen::NotAsked), None);
        let told = |item: &DiskItem, tag: &OwnerTag, file| fault(item, tag, file).unwrap();
        assert!(told(&item, &tag, FileSeen::Missing).contains("missing"));
        assert!(told(&item, &tag, FileSeen::There(Some(1))).contains("has 1 bytes"));
        assert!(told(&item, &tag.at(Stage::Deleting), there).contains("deletion"));
        let exported = DiskItem { export: true, ..item.clone() };
        assert!(told(&exported, &tag, there).contains("nobody holds it"));
        let unmade = DiskItem { size: None, ..item };
        assert!(told(&unmade, &tag, FileSeen::NotAsked).contains("no size"));
    }
}
