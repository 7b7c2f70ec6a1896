//! The shield: a dm-multipath device of ours with one path, which queues I/O while there
//! is none, and keeps its number while what is underneath is replaced.
//!
//! Bio mode, since request mode is refused over native NVMe multipath. The path selector
//! has nothing to select. Seen to work on Linux 6.1, 6.12 and 7.2 (docs/architecture).

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use rds_csi_proto::ids::VolumeId;

use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::dm::{DeviceMapper, Target};
use crate::kernel::sysfs::Namespace;

use super::machine::ShieldSeen;

/// A mark of our own: multipathd leaves alone what does not begin with `mpath-`, and the
/// udev rules and this agent know theirs by it.
pub const UUID_PREFIX: &str = "RDSCSI-";
const NAME_PREFIX: &str = "rds-";

/// The device-mapper name of a volume's shield.
#[must_use]
pub fn name_of(volume: &VolumeId) -> String {
    format!("{NAME_PREFIX}{volume}")
}

/// The volume that a device-mapper name belongs to, if it is one of ours.
#[must_use]
pub fn volume_of(name: &str) -> Option<VolumeId> {
    name.strip_prefix(NAME_PREFIX)?.parse().ok()
}

/// The node that devtmpfs makes for a mapped device.
#[must_use]
pub fn node_of(number: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{}", number.minor))
}

fn table(path: DeviceNumber, size_bytes: u64) -> Target {
    Target {
        sectors: size_bytes / 512,
        kind: "multipath".into(),
        params: format!("3 queue_if_no_path queue_mode bio 0 1 1 service-time 0 1 2 {path} 1 1"),
    }
}

/// All shields of this host. One that cannot be read is in the list with its error: it is
/// not absent, and it is no reason to see nothing of the others.
///
/// # Errors
/// If device-mapper does not answer.
pub fn list(dm: &DeviceMapper) -> Result<Vec<(VolumeId, Result<ShieldSeen>)>> {
    let mut shields = Vec::new();
    for (name, _) in dm.list()? {
        let Some(volume) = volume_of(&name) else { continue };
        if let Some(seen) = look(dm, &volume).transpose() {
            shields.push((volume, seen));
        }
    }
    Ok(shields)
}

/// One volume's shield, `None` if there is none.
///
/// # Errors
/// If device-mapper does not answer, or a device of that name is not ours.
pub fn look(dm: &DeviceMapper, volume: &VolumeId) -> Result<Option<ShieldSeen>> {
    let name = name_of(volume);
    let Some((state, status)) = dm.table_status(&name)? else { return Ok(None) };
    if state.uuid != format!("{UUID_PREFIX}{volume}") {
        return Err(Error::Precondition(format!(
            "the device-mapper device {name} is not ours (its UUID is {:?}); remove or rename it",
            state.uuid
        )));
    }
    let (path, path_active) = status.as_ref().and_then(|t| parse_status(&t.params)).unzip();
    let table = dm.table(&name)?;
    Ok(Some(ShieldSeen {
        number: state.number,
        // A device without a table holds all I/O back until it gets one.
        queueing: table.is_none_or(|t| queues(&t.params)),
        path,
        path_active: path_active.unwrap_or(false),
        suspended: state.suspended,
        size_bytes: status.map_or(0, |t| t.sectors * 512),
    }))
}

/// Whether the table has the feature; the kernel leaves it out once it was told to fail.
fn queues(table: &str) -> bool {
    table.split_whitespace().any(|word| word == "queue_if_no_path")
}

/// The path and whether it is active: the word after a device number is `A` or `F`
/// (drivers/md/dm-mpath.c, `multipath_status`).
fn parse_status(status: &str) -> Option<(DeviceNumber, bool)> {
    let words: Vec<_> = status.split_whitespace().collect();
    words.windows(2).find_map(|pair| match pair {
        [device, flag @ ("A" | "F")] => Some((DeviceNumber::parse(device)?, *flag == "A")),
        _ => None,
    })
}

/// How a path is to be given to the shield.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// After this nothing may change any more: whoever asked has given up, and may have
    /// asked for something else since. Given late, a path could carry I/O while writes of
    /// another connection are still under way.
    pub until: Instant,
    /// The decision rests on the path having been active all the time.
    pub while_active: bool,
}

/// Sends I/O to `namespace`, making the shield if there is none. Waiting I/O goes first.
/// Repeating it, or going on after a crash at any point of it, leads to the same end.
///
/// # Errors
/// If the kernel refuses, or the terms do not hold any more; I/O then waits on, and the
/// shield is never left suspended knowingly.
pub fn map(
    dm: &DeviceMapper,
    volume: &VolumeId,
    namespace: &Namespace,
    terms: Terms,
) -> Result<ShieldSeen> {
    let name = name_of(volume);
    let vanished = || Error::Unavailable(format!("{name} vanished while it was mapped; try again"));
    let seen = match look(dm, volume)? {
        Some(seen) => seen,
        None => {
            dm.create(&name, &format!("{UUID_PREFIX}{volume}"))?;
            crash::point("map.created");
            look(dm, volume)?.ok_or_else(vanished)?
        }
    };
    if terms.while_active && !seen.path_active {
        return Err(Error::Unavailable(format!("the path of {name} has failed meanwhile")));
    }
    if Instant::now() > terms.until {
        return Err(too_late(&name));
    }
    let same_path = seen.path == Some(namespace.number) && seen.size_bytes == namespace.size_bytes;
    if same_path && !seen.suspended {
        // Queueing first: the path may fail again at once.
        dm.message(&name, "queue_if_no_path")?;
        if !seen.path_active {
            dm.message(&name, &format!("reinstate_path {}", namespace.number))?;
        }
    } else {
        swap(dm, &name, &seen, &table(namespace.number, namespace.size_bytes), terms)?;
    }
    look(dm, volume)?.ok_or_else(vanished)
}

fn too_late(name: &str) -> Error {
    Error::Unavailable(format!("{name} was not mapped: checking its content took too long"))
}

fn swap(
    dm: &DeviceMapper,
    name: &str,
    seen: &ShieldSeen,
    table: &Target,
    terms: Terms,
) -> Result<()> {
    // Loaded first: a table that the kernel refuses must not find the device suspended.
    dm.load(name, table)?;
    crash::point("map.loaded");
    if seen.size_bytes > 0 && !seen.suspended {
        let suspended = dm.suspend(name);
        // It waits for I/O below, so it may have taken long.
        let refused = match suspended {
            Ok(()) if Instant::now() > terms.until => Some(too_late(name)),
            Ok(()) => None,
            Err(error) => Some(error),
        };
        if let Some(error) = refused {
            // An interrupted suspend may have taken effect. Back to the old table, in which
            // I/O goes on waiting.
            dm.clear(name)?;
            let _ = dm.resume(name);
            return Err(error);
        }
        crash::point("map.suspended");
    }
    dm.resume(name)?;
    crash::point("map.done");
    Ok(())
}

/// Stops queueing: I/O fails while there is no path.
///
/// # Errors
/// If the kernel refuses.
pub fn fail(dm: &DeviceMapper, volume: &VolumeId) -> Result<()> {
    let name = name_of(volume);
    // A suspended device holds I/O before the table sees it.
    if look(dm, volume)?.is_some_and(|seen| seen.suspended) {
        dm.resume(&name)?;
    }
    dm.message(&name, "fail_if_no_path")
}

/// Removes the shield. The kernel refuses while anybody has it open; that is the last
/// guard, so no force and no deferral.
///
/// # Errors
/// [`Error::Precondition`] while it is open.
pub fn remove(dm: &DeviceMapper, volume: &VolumeId) -> Result<()> {
    let name = name_of(volume);
    let Some(state) = dm.status(&name)? else { return Ok(()) };
    if look(dm, volume)?.is_some_and(|seen| seen.suspended) {
        dm.resume(&name)?;
    }
    dm.remove(&name).map_err(|error| match &error {
        Error::Kernel { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
            Error::Precondition(format!(
                "{} (volume {volume}) is still open {} time(s); unmount it and end its users first",
                node_of(state.number).display(),
                state.open_count
            ))
        }
        _ => error,
    })
}

/// Opens a namespace for the content check, and proves that what was opened is the device
/// that was meant: names are reused.
///
/// # Errors
/// If it cannot be opened or is another device by now.
pub fn open_namespace(namespace: &Namespace) -> Result<File> {
    let path = PathBuf::from("/dev").join(&namespace.name);
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .map_err(Error::kernel("open", path.display()))?;
    let stat =
        rustix::fs::fstat(&file).map_err(|e| Error::kernel("look at", path.display())(e.into()))?;
    if DeviceNumber::from_raw(stat.st_rdev) == namespace.number {
        Ok(file)
    } else {
        Err(Error::Unavailable(format!("{} is another device by now", path.display())))
    }
}

#[cfg(all(test, feature = "kernel-tests"))]
mod kernel_tests;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_state_of_the_path_is_read_from_real_status_lines() {
        // Linux 6.1, one path: healthy, failed, and a table without any path.
        let status = "2 0 0 0 1 1 A 0 1 2 259:1 A 0 0 1 ";
        assert_eq!(parse_status(status), Some((DeviceNumber { major: 259, minor: 1 }, true)));
        let status = "2 0 0 0 1 1 E 0 1 2 259:1 F 3 0 1 ";
        assert_eq!(parse_status(status), Some((DeviceNumber { major: 259, minor: 1 }, false)));
        assert_eq!(parse_status("2 0 0 0 0 0 "), None);
    }

    #[test]
    fn a_table_tells_whether_it_queues() {
        // As Linux 6.1 and 6.12 print it, before and after `fail_if_no_path`.
        assert!(queues("3 queue_if_no_path queue_mode bio 0 1 1 service-time 0 1 2 259:1 1 1"));
        assert!(!queues("2 queue_mode bio 0 1 1 service-time 0 1 2 259:1 1 1"));
    }

    #[test]
    fn names_go_back_and_forth() {
        let volume: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap();
        assert_eq!(volume_of(&name_of(&volume)), Some(volume));
        assert_eq!(volume_of("rds-root"), None);
    }
}
