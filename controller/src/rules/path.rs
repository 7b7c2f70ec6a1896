//! Which files on the appliance may be ours.
//!
//! Older drivers deleted a hundred live files by comparing path prefixes. Here a file can be
//! a volume's only if its whole path is what we would have written: one of the configured
//! directories (or one below it), then exactly `<volume id>.img`.

use std::fmt;
use std::str::FromStr;

use rds_csi_proto::ids::{SnapshotId, VolumeId};
use rds_csi_proto::params::is_plain_path;

/// The name of a volume's file in a subvolume of its own: the same in each, since a snapshot
/// and whatever is made from it keep the name.
pub(super) const IN_SUBVOLUME: &str = "disk.img";

/// What a snapshot is called in `/disk` and among the files. Not its id: slots of 40 bytes
/// were seen working, and that has 41.
#[must_use]
pub fn snapshot_name(snapshot: &SnapshotId) -> String {
    format!("snp-{}", snapshot.uuid())
}

/// Whether a name is one of those.
#[must_use]
pub fn is_snapshot_name(name: &str) -> bool {
    name.strip_prefix("snp-").is_some_and(|id| format!("snap-{id}").parse::<SnapshotId>().is_ok())
}

/// An absolute path on the appliance, of components that need no quoting.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AppliancePath(String);

impl AppliancePath {
    /// As `/disk` writes it: with a leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As `/file` writes it: without.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.trim_start_matches('/')
    }

    /// Whether two spellings mean one file. RouterOS reads paths back with a leading slash,
    /// whichever way they were written.
    #[must_use]
    pub fn is(&self, other: &str) -> bool {
        self.file_name() == other.trim_start_matches('/')
    }

    /// The file of a volume in this directory.
    #[must_use]
    pub fn volume_file(&self, volume: &VolumeId) -> Self {
        Self(format!("{}/{volume}.img", self.0))
    }

    /// The subvolume of a volume in this directory, on a btrfs pool.
    #[must_use]
    pub fn volume_home(&self, volume: &VolumeId) -> Self {
        Self(format!("{}/{volume}", self.0))
    }

    /// The file in a subvolume of a volume or a snapshot.
    #[must_use]
    pub fn file_in_subvolume(&self) -> Self {
        Self(format!("{}/{IN_SUBVOLUME}", self.0))
    }

    /// The file of a snapshot's record in this directory.
    #[must_use]
    pub fn snapshot_file(&self, snapshot: &SnapshotId) -> Self {
        Self(format!("{}/{}.img", self.0, snapshot_name(snapshot)))
    }

    /// The subvolume of a snapshot in this directory, on a btrfs pool.
    #[must_use]
    pub fn snapshot_home(&self, snapshot: &SnapshotId) -> Self {
        Self(format!("{}/{}", self.0, snapshot_name(snapshot)))
    }

    /// The subvolume of its own that this file of a volume is in, if it is in one.
    #[must_use]
    pub fn home_of(&self, volume: &VolumeId) -> Option<Self> {
        let home = self.0.strip_suffix(&format!("/{IN_SUBVOLUME}"))?;
        home.ends_with(&format!("/{volume}")).then(|| Self(home.to_owned()))
    }

    /// The directory that it is in.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (directory, _) = self.0.rsplit_once('/')?;
        (!directory.is_empty()).then(|| Self(directory.to_owned()))
    }

    /// Whether this is `directory` or below it, component by component.
    #[must_use]
    pub fn is_within(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(&directory.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for AppliancePath {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if is_plain_path(text) {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(format!(
                "{text:?} is not an absolute path of letters, digits and ._- such as /raid10/volumes"
            ))
        }
    }
}

impl fmt::Display for AppliancePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a volume's file, if `path` can be that of `volume` at all.
#[must_use]
pub fn own_file(path: &str, volume: &VolumeId, roots: &[AppliancePath]) -> Option<AppliancePath> {
    let path: AppliancePath = format!("/{}", path.trim_start_matches('/')).parse().ok()?;
    let ends = [format!("/{volume}.img"), format!("/{volume}/{IN_SUBVOLUME}")];
    let directory = ends.iter().find_map(|end| path.0.strip_suffix(end))?;
    let directory = AppliancePath(directory.to_owned());
    roots.iter().any(|root| directory.is_within(root)).then_some(path)
}

/// The path of the file of a snapshot's record, if `path` can be that at all.
#[must_use]
pub fn own_record(
    path: &str,
    snapshot: &SnapshotId,
    roots: &[AppliancePath],
) -> Option<AppliancePath> {
    let path: AppliancePath = format!("/{}", path.trim_start_matches('/')).parse().ok()?;
    let directory = path.parent()?;
    let ours = directory.snapshot_file(snapshot) == path;
    (ours && roots.iter().any(|root| directory.is_within(root))).then_some(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    #[test]
    fn only_the_exact_path_is_ours() {
        let id: VolumeId = ID.parse().unwrap();
        let roots = ["/raid10/volumes".parse().unwrap()];
        for good in [
            "/raid10/volumes/ID.img",
            "raid10/volumes/ID.img",
            "/raid10/volumes/a/ID.img",
            "/raid10/volumes/ID/disk.img",
        ] {
            assert!(own_file(&good.replace("ID", ID), &id, &roots).is_some(), "{good}");
        }
        for bad in [
            "/raid10/volumes2/ID.img",
            "/raid10/ID.img",
            "/raid10/volumes/xID.img",
            "/raid10/volumes/xID/disk.img",
            "/raid10/volumes/disk.img",
            "/raid10/ID/disk.img",
            "/raid10/volumes/ID.img.bak",
            "/raid10/volumes/../ID.img",
            "/raid10/volumes",
            "/ID.img",
            "",
            "/raid10/volumes/pvc-00000000-0000-0000-0000-000000000000.img",
        ] {
            assert!(own_file(&bad.replace("ID", ID), &id, &roots).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_record_is_ours_by_its_whole_path() {
        let id: SnapshotId = ID.replace("pvc", "snap").parse().unwrap();
        let roots: [AppliancePath; 1] = ["/raid10/volumes".parse().unwrap()];
        let file = roots[0].snapshot_file(&id);
        assert_eq!(snapshot_name(&id).len(), 40);
        assert_eq!(own_record(file.as_str(), &id, &roots), Some(file.clone()));
        for bad in [ID, "/raid10/snp.img", "/", "", &file.as_str().replace("volumes", "other")] {
            assert_eq!(own_record(bad, &id, &roots), None, "{bad}");
        }
        let volume: VolumeId = ID.parse().unwrap();
        let home = roots[0].volume_home(&volume);
        assert_eq!(home.file_in_subvolume().home_of(&volume), Some(home));
        assert_eq!(roots[0].volume_file(&volume).home_of(&volume), None);
    }

    proptest! {
        #[test]
        fn whatever_the_path_ours_lies_in_a_root(path in "(/?(raid10|volumes|\\.\\.|x|ID|disk\\.img|ID\\.img)){0,5}") {
            let id: VolumeId = ID.parse().unwrap();
            let roots: [AppliancePath; 1] = ["/raid10/volumes".parse().unwrap()];
            if let Some(found) = own_file(&path.replace("ID", ID), &id, &roots) {
                prop_assert!(found.as_str().starts_with("/raid10/volumes/"));
                let ends = [format!("/{ID}.img"), format!("/{ID}/disk.img")];
                prop_assert!(ends.iter().any(|end| found.as_str().ends_with(end)));
                prop_assert!(!found.as_str().contains(".."));
            }
        }
    }
}
