//! How much can still be promised.
//!
//! A volume's file is allocated whole, but a guest's discards may punch holes into it that it
//! may fill again. So free space alone promises too much: what counts is the pool's size less
//! the sizes of all disks that are made of files on it, whoever made them, and no more than
//! what is free.

use super::path::AppliancePath;
use super::size::GRANULE;

/// One item of `/disk`, as far as space is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpace {
    /// Its name, for people.
    pub slot: String,
    /// The file that it is made of; empty if it is none of that kind.
    pub file_path: String,
    /// In bytes; absent while a file is being made.
    pub size: Option<u64>,
    /// What its file was asked to have.
    pub file_size: Option<u64>,
    /// Free bytes of the file system on it.
    pub free: Option<u64>,
    /// Where that is mounted; empty if nowhere.
    pub mount_point: String,
}

impl DiskSpace {
    /// Whether a path lies on the file system of this disk; how deep its mount point is.
    fn holds(&self, path: &AppliancePath) -> Option<usize> {
        let mount: AppliancePath =
            format!("/{}", self.mount_point.trim_matches('/')).parse().ok()?;
        path.is_within(&mount).then(|| mount.as_str().len())
    }
}

/// The disk whose file system a path lies on: the deepest mount point that contains it.
fn pool<'a>(disks: &'a [DiskSpace], path: &AppliancePath) -> Option<&'a DiskSpace> {
    disks
        .iter()
        .filter_map(|d| Some((d.holds(path)?, d)))
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, d)| d)
}

/// Bytes that volumes in this directory may still take: whole granules.
///
/// # Errors
/// If the appliance does not say what is needed for it.
pub fn available(disks: &[DiskSpace], directory: &AppliancePath) -> Result<u64, String> {
    let pool = pool(disks, directory).ok_or_else(|| {
        format!(
            "no disk of the appliance is mounted where {directory} lies; see mount-point in \
             /disk/print and the controller's --volume-path"
        )
    })?;
    let size = pool.size.ok_or_else(|| format!("the appliance shows no size for {}", pool.slot))?;
    let promised = disks
        .iter()
        .filter(|d| !d.file_path.is_empty())
        .filter(|d| {
            let path = format!("/{}", d.file_path.trim_start_matches('/')).parse();
            // A path that cannot be read may lie anywhere, so it counts.
            path.map_or(true, |p| self::pool(disks, &p).is_some_and(|of| of.slot == pool.slot))
        })
        .fold(0u64, |sum, d| sum.saturating_add(d.size.max(d.file_size).unwrap_or(0)));
    let left = size.saturating_sub(promised);
    Ok(pool.free.map_or(left, |free| free.min(left)) / GRANULE * GRANULE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mounted(slot: &str, mount: &str, size: u64, free: u64) -> DiskSpace {
        DiskSpace {
            slot: slot.into(),
            file_path: String::new(),
            size: Some(size),
            file_size: None,
            free: Some(free),
            mount_point: mount.into(),
        }
    }

    fn file(path: &str, size: u64) -> DiskSpace {
        DiskSpace {
            slot: "f".into(),
            file_path: path.into(),
            size: Some(size),
            file_size: None,
            free: None,
            mount_point: String::new(),
        }
    }

    fn at(disks: &[DiskSpace], path: &str) -> Result<u64, String> {
        available(disks, &path.parse().unwrap())
    }

    #[test]
    fn promises_count_whoever_made_them_and_free_space_bounds_them() {
        let pool = mounted("raid10", "raid10", 1 << 20, 1 << 20);
        assert_eq!(at(std::slice::from_ref(&pool), "/raid10/volumes"), Ok(1 << 20));
        let ours = file("/raid10/volumes/a.img", 8192);
        let theirs = file("raid10/other.img", 8192);
        let elsewhere = file("/raid10b/x.img", 8192);
        let disks = [pool.clone(), ours.clone(), theirs, elsewhere];
        assert_eq!(at(&disks, "/raid10/volumes"), Ok((1 << 20) - 16384));
        let tight = mounted("raid10", "/raid10", 1 << 20, 5000);
        assert_eq!(at(&[tight, ours.clone()], "/raid10/volumes"), Ok(4096));
        // Being made: its size is not shown yet, but it is promised.
        let making = DiskSpace { size: None, file_size: Some(1 << 21), ..ours };
        assert_eq!(at(&[pool, making], "/raid10/volumes"), Ok(0));
    }

    #[test]
    fn the_deepest_mount_point_is_the_pool() {
        let disks = [mounted("a", "a", 1 << 20, 1 << 20), mounted("b", "a/b", 8192, 8192)];
        assert_eq!(at(&disks, "/a/b/volumes"), Ok(8192));
        assert_eq!(at(&disks, "/a/bc"), Ok(1 << 20));
        assert!(at(&disks, "/c").unwrap_err().contains("mount-point"));
    }
}
