//! Files and directories that are named as a volume's or a snapshot's, where no item of that
//! name is. Nothing proves whose they are, so they are told and never touched.

use std::collections::HashSet;

use rds_csi_proto::ids::VolumeId;

use super::path::{AppliancePath, IN_SUBVOLUME, is_snapshot_name};

/// What the items of an appliance account for.
pub struct Accounted<'a> {
    slots: HashSet<&'a str>,
    files: HashSet<&'a str>,
}

impl<'a> Accounted<'a> {
    /// From the slot and the file of each item.
    #[must_use]
    pub fn by(items: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let (slots, files) = items.map(|(slot, file)| (slot, file.trim_start_matches('/'))).unzip();
        Self { slots, files }
    }

    /// Whether an entry of `/file`, which also shows directories, is named as one of ours below
    /// `roots`, and no item accounts for it.
    #[must_use]
    pub fn lacks(&self, name: &str, roots: &[AppliancePath]) -> bool {
        let name = name.trim_start_matches('/');
        let Ok(path) = format!("/{name}").parse::<AppliancePath>() else { return false };
        let Some(directory) = path.parent() else { return false };
        if !roots.iter().any(|root| directory.is_within(root)) {
            return false;
        }
        let mut parts = name.rsplit('/');
        let last = parts.next().unwrap_or_default();
        if let Some(stem) = last.strip_suffix(".img").filter(|_| last != IN_SUBVOLUME) {
            return is_ours(stem) && !self.files.contains(name);
        }
        // The file in a subvolume: a volume's is its item's; that of a snapshot has none, and
        // belongs to the record.
        let owner = if last == IN_SUBVOLUME { parts.next().unwrap_or_default() } else { last };
        is_ours(owner) && !self.files.contains(name) && !self.slots.contains(owner)
    }
}

fn is_ours(name: &str) -> bool {
    name.parse::<VolumeId>().is_ok() || is_snapshot_name(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_an_item_accounts_for_is_no_leftover() {
        let id = |n: u32| format!("pvc-00000000-0000-4000-8000-{n:012x}");
        let snap = |n: u32| format!("snp-00000000-0000-4000-8000-{n:012x}");
        let (plain, shared, record) = (id(1), id(2), snap(1));
        let items = [
            (&plain, format!("/raid10/volumes/{plain}.img")),
            (&shared, format!("/raid10/volumes/{shared}/disk.img")),
            (&record, format!("/raid10/volumes/{record}.img")),
        ];
        let roots = ["/raid10/volumes".parse().unwrap()];
        let pairs = items.iter().map(|(slot, file)| (slot.as_str(), file.as_str()));
        let accounted = Accounted::by(pairs);
        let mut used: Vec<_> = items.iter().map(|(_, file)| file.clone()).collect();
        used.extend([
            format!("raid10/volumes/{shared}"),
            format!("raid10/volumes/{record}"),
            format!("raid10/volumes/{record}/disk.img"),
        ]);
        for name in used {
            assert!(!accounted.lacks(&name, &roots), "{name}");
        }
        for name in [
            format!("raid10/volumes/{}.img", id(3)),
            format!("raid10/volumes/sub/{}/disk.img", id(3)),
            format!("raid10/volumes/{}", id(3)),
            format!("raid10/volumes/{}.img", snap(3)),
            format!("raid10/volumes/{}", snap(3)),
            format!("raid10/volumes/{}/disk.img", snap(3)),
            // A second file of a volume that has an item.
            format!("raid10/volumes/{shared}.img"),
        ] {
            assert!(accounted.lacks(&name, &roots), "{name}");
        }
        for name in [
            format!("raid10/{}.img", id(3)),
            format!("raid10/volumes/{}.img.bak", id(3)),
            "raid10/volumes".into(),
            "raid10/volumes/disk.img".into(),
            "raid10/volumes/backup.img".into(),
            format!("raid10/volumes/{}/other", id(3)),
            String::new(),
        ] {
            assert!(!accounted.lacks(&name, &roots), "{name}");
        }
    }
}
