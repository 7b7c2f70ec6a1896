//! Whether a mounted file system still takes writes.
//!
//! After an error each kind stops in its own way, and not all of them say so in mountinfo:
//!
//! - btrfs sets the read-only flag of its superblock, as ext4 did at first.
//! - ext4 shuts itself down instead, in Linux 6.12 to 6.14 and the stable kernels that took
//!   that change (6.1, 6.6), and tells it nowhere: mountinfo goes on saying "rw". Linux 6.15
//!   shows `emergency_ro` or `shutdown` (fs/ext4/super.c, `ext4_handle_error`).
//! - xfs shuts down and says "rw", but then fails every stat (fs/xfs/xfs_iops.c,
//!   `xfs_vn_getattr`).
//!
//! What nothing tells is found out by a change that changes nothing: an attribute is removed
//! that no file has. A file system that is sound looks for it and says so; one that has
//! stopped refuses first. That begins a transaction, so of ext4 it is asked only once it has
//! counted an error. It has done so by the first write that it refused.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD};

use super::DeviceNumber;
use super::mounts::Mount;
use crate::error::{Error, Result};

/// Of the namespace that every kind of file system has, whatever its mount options, and that
/// only root may change.
const NOBODYS: &CStr = c"trusted.rds-csi.nobodys";

/// How hard to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Without causing any I/O as long as no error is known.
    Look,
    /// By asking for a change.
    Try,
}

/// What has become of a file system that was mounted for writing; `None` if it is not known
/// to be anything but sound. May wait for a device that hangs.
///
/// `mount` is one that may write, by which `volume` was mounted.
///
/// # Errors
/// If it cannot be looked at.
pub fn fault(mount: &Mount, volume: DeviceNumber, effort: Effort) -> Result<Option<&'static str>> {
    if mount.is_superblock_read_only() {
        return Ok(Some("has become read-only after an I/O error"));
    }
    let path = &mount.mount_point;
    let sound = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map(drop);
    if let Err(error) = sound.map_err(io::Error::from) {
        return match stopped(&error) {
            true => Ok(Some("has shut itself down after an I/O error")),
            false => Err(Error::kernel("look at", path.display())(error)),
        };
    }
    if effort == Effort::Look && !has_counted_an_error(mount, volume) {
        return Ok(None);
    }
    match change_nothing(path) {
        Err(error) if stopped(&error) => Ok(Some("takes no writes any more after an I/O error")),
        // Also what is not understood (a policy that forbids it): no reason for an alarm.
        _ => Ok(None),
    }
}

/// The answers of a file system that has stopped, of whichever kind.
fn stopped(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::IO | Errno::ROFS | Errno::UCLEAN | Errno::SHUTDOWN))
}

fn change_nothing(path: &Path) -> io::Result<()> {
    match rustix::fs::removexattr(path, NOBODYS) {
        Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Only ext4 counts, also over mounts: errors of the past are no fault of today.
fn has_counted_an_error(mount: &Mount, volume: DeviceNumber) -> bool {
    if !matches!(mount.fs_type.as_str(), "ext4" | "ext3") {
        return false;
    }
    let count = || -> Option<u64> {
        // /sys/fs/ext4 has the kernel's name of the device, whose link ends in it.
        let device = fs::read_link(volume.sysfs()).ok()?;
        let path = Path::new("/sys/fs/ext4").join(device.file_name()?).join("errors_count");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    count() != Some(0)
}
