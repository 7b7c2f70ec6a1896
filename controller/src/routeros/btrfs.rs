//! Pools, btrfs subvolumes and copies of disks, as far as RouterOS documents them.
//!
//! MikroTik's manual (page "Btrfs", and the CLI reference of `/disk`): a subvolume is added
//! with `fs=<label> name=<path below the top>`, a snapshot also with `parent=<subvolume>` and,
//! to be kept as it is, `read-only=yes`. It is found by its `name`. What `parent` and `name`
//! take for a subvolume below a directory, the last component or the whole path, is not said:
//! both are tried, and both are unique, since the last component holds a UUID.

use super::Appliance;
use super::error::ApplianceError;
use super::version::Version;
use super::wire::{CopyFrom, Menu, Property, Request, Row, Slot, Switch, Target};
use crate::rules::path::AppliancePath;

const POOL_PROPS: &[&str] = &[".id", "slot", "fs", "fs-label", "mount-point"];
const SUBVOLUME_PROPS: &[&str] = &[".id", "name", "fullname", "fs"];

/// The first with `/disk/copy`.
pub const COPY_SINCE: Version = Version(7, 23);

/// The file system that a path lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its kind, such as `xfs` or `btrfs`; empty if the appliance does not say.
    pub fs: String,
    /// Its label; empty if it has none.
    pub label: String,
    /// Where it is, without slashes.
    pub mount_point: String,
}

impl Pool {
    /// Whether subvolumes can be made on it.
    #[must_use]
    pub fn is_btrfs(&self) -> bool {
        self.fs == "btrfs" && !self.label.is_empty()
    }

    /// The subvolume with this path; `None` if the path is not on this pool.
    #[must_use]
    pub fn subvolume(&self, path: &AppliancePath) -> Option<Subvolume> {
        let name = path.file_name().strip_prefix(&self.mount_point)?.strip_prefix('/')?;
        (!name.is_empty()).then(|| Subvolume {
            fs: FsLabel(self.label.clone()),
            name: SubvolumeName(name.into()),
        })
    }
}

/// A file system's label, as the appliance gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsLabel(pub(super) String);

/// A subvolume's path below the top of its file system, or the last component of that. Made
/// of an [`AppliancePath`], so that nothing in it needs quoting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeName(pub(super) String);

impl SubvolumeName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn leaf(&self) -> Self {
        Self(self.0.rsplit('/').next().unwrap_or(&self.0).to_owned())
    }
}

/// A subvolume that is there, or could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subvolume {
    fs: FsLabel,
    name: SubvolumeName,
}

impl Subvolume {
    fn is(&self, row: &Row) -> bool {
        let shown = |key: &str| row.get(key).map(|v| v.trim_matches('/')).unwrap_or_default();
        let fullname = match shown("fullname") {
            "" => shown("name"),
            full => full,
        };
        // Where only a last component is shown, its UUID says which one it is.
        let named = fullname == self.name.0 || fullname == self.name.leaf().0;
        named && (shown("fs").is_empty() || shown("fs") == self.fs.0)
    }
}

/// A stretch of a copy, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub offset: u64,
    pub size: u64,
}

impl Appliance {
    /// The version that runs.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn version(&self) -> Result<Version, ApplianceError> {
        let request = Request::Print { menu: Menu::Resource, filter: None, proplist: &["version"] };
        let action = request.to_string();
        let rows = self.call(request).await?;
        let text = rows.first().and_then(|r| r.get("version")).map(String::as_str);
        Version::parse(text.unwrap_or_default())
            .ok_or_else(|| self.doubt(action, "no version in it".into()))
    }

    /// The file system that a path lies on; `None` if the appliance does not say.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn pool_of(&self, path: &AppliancePath) -> Result<Option<Pool>, ApplianceError> {
        let first = path.file_name().split('/').next().unwrap_or_default().to_owned();
        let pools = self
            .print(Menu::Disk, Some(Property::MountPoint(first.clone())), POOL_PROPS, |row| {
                let text = |key: &str| row.get(key).cloned().unwrap_or_default();
                Ok(Pool {
                    fs: text("fs"),
                    label: text("fs-label"),
                    mount_point: text("mount-point").trim_matches('/').to_owned(),
                })
            })
            .await?;
        self.only(pools, "/disk/print", |pool| pool.mount_point == first)
    }

    /// Whether there is such a subvolume.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn subvolume(&self, subvolume: &Subvolume) -> Result<bool, ApplianceError> {
        for name in [subvolume.name.leaf(), subvolume.name.clone()] {
            let filter = Some(Property::SubvolumeName(name));
            let found =
                self.print(Menu::Subvolume, filter, SUBVOLUME_PROPS, |row| Ok(row.clone())).await?;
            if found.iter().any(|row| subvolume.is(row)) {
                return Ok(true);
            }
            if subvolume.name.leaf() == subvolume.name {
                break;
            }
        }
        Ok(false)
    }

    /// Makes an empty subvolume.
    ///
    /// # Errors
    /// As the appliance says; after [`ApplianceError::Ambiguous`] look before trying again.
    pub async fn add_subvolume(&self, new: &Subvolume) -> Result<(), ApplianceError> {
        let properties =
            vec![Property::SubvolumeName(new.name.clone()), Property::SubvolumeFs(new.fs.clone())];
        self.call(Request::Add { menu: Menu::Subvolume, properties }).await.map(drop)
    }

    /// Makes a snapshot of a subvolume, all at once.
    ///
    /// # Errors
    /// As [`Self::add_subvolume`].
    pub async fn snapshot_subvolume(
        &self,
        new: &Subvolume,
        parent: &Subvolume,
        read_only: Switch,
    ) -> Result<(), ApplianceError> {
        let request = |parent: SubvolumeName| Request::Add {
            menu: Menu::Subvolume,
            properties: vec![
                Property::SubvolumeName(new.name.clone()),
                Property::SubvolumeFs(new.fs.clone()),
                Property::SubvolumeParent(parent),
                Property::ReadOnly(read_only),
            ],
        };
        match self.call(request(parent.name.leaf())).await {
            // It does not know the parent by that name.
            Err(ApplianceError::InvalidValue { .. }) if parent.name.leaf() != parent.name => {
                self.call(request(parent.name.clone())).await.map(drop)
            }
            result => result.map(drop),
        }
    }

    /// Removes a subvolume with all that is in it.
    ///
    /// # Errors
    /// As [`Self::add_subvolume`].
    pub async fn remove_subvolume(&self, subvolume: &Subvolume) -> Result<(), ApplianceError> {
        let remove =
            |name| Request::Remove { menu: Menu::Subvolume, target: Target::Subvolume(name) };
        match self.call(remove(subvolume.name.leaf())).await {
            // The console takes a name that fits nothing for an empty list, which is no error.
            Ok(_) | Err(ApplianceError::NoSuchItem { .. }) => {}
            Err(error) => return Err(error),
        }
        if !self.subvolume(subvolume).await? {
            return Ok(());
        }
        self.call(remove(subvolume.name.clone())).await.map(drop)
    }

    /// Copies a part of a disk, or of a file, over the same part of a disk. An answer proves
    /// that all of the part is there.
    ///
    /// # Errors
    /// As [`Self::add_subvolume`]; after an error the part may hold anything.
    pub async fn copy_part(
        &self,
        from: CopyFrom,
        to: impl Into<Slot>,
        part: Part,
    ) -> Result<(), ApplianceError> {
        let request = Request::Copy { from, to: to.into(), part };
        let action = request.to_string();
        let rows = self.call(request).await?;
        // Nobody has seen a copy that fails in its status only; it would not be believed.
        let bad = |s: &&String| {
            let s = s.to_ascii_lowercase();
            ["fail", "error", "cancel", "interrupt"].iter().any(|word| s.contains(word))
        };
        match rows.iter().filter_map(|row| row.get("status")).find(bad) {
            Some(status) => Err(ApplianceError::Refused { action, detail: status.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pool() -> Pool {
        Pool { fs: "btrfs".into(), label: "data-fs".into(), mount_point: "data".into() }
    }

    #[test]
    fn a_subvolume_is_named_from_the_top_of_its_pool() {
        let path: AppliancePath = "/data/volumes/x".parse().unwrap();
        let subvolume = pool().subvolume(&path).unwrap();
        assert_eq!(
            (subvolume.name.0.as_str(), subvolume.name.leaf().0.as_str()),
            ("volumes/x", "x")
        );
        for other in ["/data", "/data2/x", "/other/data/x"] {
            assert_eq!(pool().subvolume(&other.parse().unwrap()), None, "{other}");
        }
        assert!(!Pool { label: String::new(), ..pool() }.is_btrfs());
        assert!(!Pool { fs: "xfs".into(), ..pool() }.is_btrfs());
    }

    #[test]
    fn a_subvolume_is_recognised_however_it_is_shown() {
        let subvolume = pool().subvolume(&"/data/volumes/x".parse().unwrap()).unwrap();
        let row = |pairs: &[(&str, &str)]| -> Row {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        for good in [
            row(&[("name", "x"), ("fullname", "volumes/x"), ("fs", "data-fs")]),
            row(&[("name", "volumes/x"), ("fs", "data-fs")]),
            row(&[("name", "x")]),
        ] {
            assert!(subvolume.is(&good), "{good:?}");
        }
        for bad in [
            row(&[("name", "x"), ("fullname", "other/x"), ("fs", "data-fs")]),
            row(&[("name", "x"), ("fullname", "volumes/x"), ("fs", "other-fs")]),
            row(&[]),
        ] {
            assert!(!subvolume.is(&bad), "{bad:?}");
        }
    }
}
