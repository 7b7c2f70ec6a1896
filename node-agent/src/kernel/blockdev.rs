//! Block devices by number. Names of NVMe devices do not survive a reconnect.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Major and minor number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Driver.
    pub major: u32,
    /// Instance.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the kernel's own encoding (`st_rdev`).
    #[must_use]
    pub fn from_raw(dev: u64) -> Self {
        Self { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }

    /// The kernel's encoding.
    #[must_use]
    pub fn to_raw(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }

    /// From `MAJOR:MINOR`, as sysfs and device-mapper print it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Its directory in sysfs, which exists as long as the device does.
    #[must_use]
    pub fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{self}"))
    }

    /// The block device behind a path.
    ///
    /// # Errors
    /// If the path cannot be read, or is no block device.
    pub fn of_path(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(Error::kernel("look at", path.display()))?;
        if meta.file_type().is_block_device() {
            Ok(Self::from_raw(meta.rdev()))
        } else {
            Err(Error::Precondition(format!("{} is not a block device", path.display())))
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Size of an open block device in bytes.
///
/// # Errors
/// If the device does not answer.
pub fn size_of(device: &File, name: &Path) -> Result<u64> {
    let end = rustix::fs::seek(device.as_fd(), rustix::fs::SeekFrom::End(0))
        .map_err(|e| Error::kernel("read the size of", name.display())(e.into()))?;
    Ok(end)
}
