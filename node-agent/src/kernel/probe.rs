//! What is on a device, and the proof that nothing is.
//!
//! `blkid(8)` exits with 2 for "nothing found" and for "cannot read" alike, which has
//! destroyed data elsewhere. So libblkid is asked directly, every error is an error, and
//! "nothing found" is believed only if both ends of the device read back as zeros: all
//! known signatures lie there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libblkid_rs::{BlkidErr, BlkidProbe, BlkidSafeprobeRet, BlkidSublks, BlkidSublksFlags};
use rustix::fs::{Advice, Mode, OFlags};

use super::blockdev;
use crate::error::{Error, Result};

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Proven: no signature that libblkid knows, and zeros at both ends.
    Blank,
    /// A file system and nothing else.
    Filesystem {
        /// As libblkid names it.
        fs_type: String,
        /// As libblkid prints it; empty if it has none.
        uuid: String,
    },
    /// Something that is not a file system, or more than one thing; told for people.
    Foreign(String),
    /// No signature, but not zeros either: user data without a file system, or a file
    /// system that was being made.
    Unrecognised,
}

/// How much of each end must be zeros. libblkid looks no further in than this, except for
/// second copies whose first one is within.
const END: u64 = 1 << 20;
/// O_DIRECT wants memory and lengths in multiples of the logical block size, which is at
/// most this.
const ALIGN: usize = 4096;

/// Looks at a device that nobody else uses.
///
/// # Errors
/// [`Error::Precondition`] if it is in use; anything that keeps it from being read, in
/// which case nothing is known of its content.
pub fn probe(device: &Path) -> Result<Found> {
    // O_EXCL on a block device: refused while it is mounted, or held by device-mapper, md,
    // or another O_EXCL opener, in any namespace.
    let exclusive = open(device, OFlags::EXCL).map_err(|e| match e.raw_os_error() {
        Some(nix::libc::EBUSY) => Error::Precondition(format!(
            "{} is in use (mounted in some namespace, or held by another device or program), \
             so its content cannot be examined; end that use and try again",
            device.display()
        )),
        _ => Error::kernel("open exclusively", device.display())(e),
    })?;
    // What is read must come from the volume, not from what another opener left in memory.
    rustix::fs::fadvise(&exclusive, 0, None, Advice::DontNeed)
        .map_err(|e| unknown(device, &format!("drop cached pages: {e}")))?;
    let size = blockdev::size_of(&exclusive, device)?;
    let found = ask_libblkid(&exclusive, device)?;
    if found != Found::Blank {
        return Ok(found);
    }
    let blank = is_zero(device, 0, END.min(size))?
        && is_zero(device, size.saturating_sub(END), END.min(size))?;
    Ok(if blank { Found::Blank } else { Found::Unrecognised })
}

/// A read that fails says nothing of the content; the next one may succeed.
fn unknown(device: &Path, why: &str) -> Error {
    Error::Unavailable(format!(
        "{} cannot be examined ({why}); nothing is known of its content, so it is neither mounted \
         nor formatted. The kernel log tells more of the device",
        device.display()
    ))
}

fn open(device: &Path, extra: OFlags) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | extra;
    Ok(File::from(rustix::fs::open(device, flags, Mode::empty())?))
}

fn ask_libblkid(open: &File, device: &Path) -> Result<Found> {
    let failed = |e: BlkidErr| unknown(device, &format!("libblkid: {e}"));
    let mut probe = BlkidProbe::new().map_err(failed)?;
    probe.set_device(open.as_raw_fd(), 0, 0).map_err(failed)?;
    probe.enable_superblocks(true).map_err(failed)?;
    let wanted = vec![BlkidSublks::Type, BlkidSublks::Uuid, BlkidSublks::Usage];
    probe.set_superblock_flags(BlkidSublksFlags::new(wanted)).map_err(failed)?;
    probe.enable_partitions(true).map_err(failed)?;
    match probe.do_safeprobe().map_err(failed)? {
        BlkidSafeprobeRet::None => return Ok(Found::Blank),
        BlkidSafeprobeRet::Ambiguous => {
            return Ok(Found::Foreign("signatures of more than one kind".into()));
        }
        BlkidSafeprobeRet::Success => {}
    }
    // Each value only if it is there: a failing look-up of one that is there is an error.
    let value = |name: &str| -> Result<Option<String>> {
        match probe.has_value(name).map_err(failed)? {
            true => probe.lookup_value(name).map(Some).map_err(failed),
            false => Ok(None),
        }
    };
    let uuid = value("UUID")?.unwrap_or_default();
    Ok(classify(value("TYPE")?, value("USAGE")?, value("PTTYPE")?, uuid))
}

fn classify(
    fs_type: Option<String>,
    usage: Option<String>,
    table: Option<String>,
    uuid: String,
) -> Found {
    match (fs_type, usage.as_deref(), table) {
        (Some(fs_type), Some("filesystem"), None) => Found::Filesystem { fs_type, uuid },
        (Some(kind), usage, None) => {
            Found::Foreign(format!("{kind} ({})", usage.unwrap_or("of unknown use")))
        }
        (None, _, Some(table)) => Found::Foreign(format!("a partition table ({table})")),
        (Some(kind), _, Some(table)) => {
            Found::Foreign(format!("a partition table ({table}) and also {kind}"))
        }
        // A success without a word of what was found: certainly not proven blank.
        (None, _, None) => Found::Foreign("a signature without a name".into()),
    }
}

/// Reads past the page cache. The shield and bare namespaces all support O_DIRECT.
fn is_zero(device: &Path, offset: u64, length: u64) -> Result<bool> {
    let failed = |e: io::Error| unknown(device, &format!("read at byte {offset}: {e}"));
    let direct = open(device, OFlags::DIRECT).map_err(failed)?;
    let mut memory = vec![0xffu8; usize::try_from(END).unwrap_or(1 << 20) + 2 * ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN);
    let mut at = offset - offset % ALIGN as u64;
    let end = offset + length;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX);
        let want = want.min(usize::try_from(END).unwrap_or(1 << 20)).next_multiple_of(ALIGN);
        let buffer = memory
            .get_mut(start..start + want)
            .ok_or_else(|| failed(io::Error::other("no aligned memory")))?;
        let got = direct.read_at(buffer, at).map_err(failed)?;
        if got == 0 {
            return Err(failed(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        if buffer.iter().take(got).any(|b| *b != 0) {
            return Ok(false);
        }
        at += got as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(s: &str) -> Option<String> {
        Some(s.to_owned())
    }

    #[test]
    fn only_a_lone_file_system_is_one() {
        let fs = classify(text("ext4"), text("filesystem"), None, "u".into());
        assert_eq!(fs, Found::Filesystem { fs_type: "ext4".into(), uuid: "u".into() });
        for foreign in [
            classify(text("LVM2_member"), text("raid"), None, String::new()),
            classify(text("crypto_LUKS"), text("crypto"), None, String::new()),
            classify(text("swap"), text("other"), None, String::new()),
            classify(text("ext4"), None, None, String::new()),
            classify(None, None, text("dos"), String::new()),
            classify(text("ext4"), text("filesystem"), text("gpt"), String::new()),
            classify(None, None, None, String::new()),
        ] {
            assert!(matches!(foreign, Found::Foreign(_)), "{foreign:?}");
        }
    }
}
