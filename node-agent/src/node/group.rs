//! A pod's fsGroup: the group may read and write what is on the volume.
//!
//! As kubelet does it for drivers that leave it to kubelet (pkg/volume/volume_linux.go):
//! every file and directory gets the group, files `rw-`, directories `rwx` for it and the
//! set-group-ID bit, so that what is made later belongs to the group too. A volume whose root
//! has all that is left alone: that is kubelet's `OnRootMismatch`, since the other policy is
//! not told to a driver. The root is changed last, so what was interrupted is begun again.
//!
//! Another pod may already write to the volume and move things about meanwhile. So nothing is
//! followed and no path is used twice: each file is opened by name below its directory, looked
//! at, and changed through that descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat};

use crate::error::{Error, Result};

const FILE: RawMode = 0o660;
const DIRECTORY: RawMode = 0o2770;
/// A directory is kept open for each level. Nobody nests like this by accident.
const DEEPEST: usize = 2_000;

/// Gives a mounted file system to a group; what is mounted below it is not touched.
///
/// # Errors
/// With the first file that could not be changed.
pub(super) fn give(root: &Path, group: u32) -> Result<()> {
    let walk = || -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&top)?;
        if has(&stat, group) {
            return Ok(());
        }
        below(&top, stat.st_dev, group)?;
        change(top.as_fd(), &stat, group)
    };
    let what = format!("the files of {} to group {group}", root.display());
    walk().map_err(Error::kernel("give", what))
}

/// Whether a directory is as it has to be.
fn has(stat: &Stat, group: u32) -> bool {
    stat.st_gid == group && stat.st_mode & DIRECTORY == DIRECTORY
}

/// For reading what is in it; a descriptor that only stands for a directory cannot do that.
fn open(directory: &OwnedFd) -> io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(Dir::new(rustix::fs::openat(directory, ".", flags, Mode::empty())?)?)
}

/// All that is in a directory and below it on the same device.
fn below(top: &OwnedFd, device: u64, group: u32) -> io::Result<()> {
    let mut levels = vec![open(top)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.read() else {
            levels.pop();
            continue;
        };
        let name: CString = entry?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(level.fd()?, &name, flags, Mode::empty()) {
            // Removed meanwhile.
            Err(rustix::io::Errno::NOENT) => continue,
            other => other?,
        };
        let stat = rustix::fs::fstat(&file)?;
        if stat.st_dev != device {
            continue;
        }
        change(file.as_fd(), &stat, group)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if levels.len() >= DEEPEST {
                let text = format!("directories are nested more than {DEEPEST} deep");
                return Err(io::Error::other(text));
            }
            levels.push(open(&file)?);
        }
    }
    Ok(())
}

fn change(file: BorrowedFd<'_>, stat: &Stat, group: u32) -> io::Result<()> {
    if stat.st_gid != group {
        rustix::fs::chownat(file, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    }
    let wanted = match FileType::from_raw_mode(stat.st_mode) {
        // Has no mode of its own.
        FileType::Symlink => return Ok(()),
        FileType::Directory => DIRECTORY,
        _ => FILE,
    };
    // A change of the group takes the set-ID bits of a program away; they stay away, since
    // they would now be the group's.
    let mode = (stat.st_mode & 0o7777) | wanted;
    if stat.st_mode & wanted != wanted {
        // A descriptor that only stands for a file cannot be changed by itself, its name can.
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmod(name, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// Root may give files to any group, others to their own only.
    fn group() -> u32 {
        if rustix::process::geteuid().is_root() {
            4242
        } else {
            rustix::process::getegid().as_raw()
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn everything_gets_the_group_and_nothing_outside_does() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = outside.path().join("other");
        fs::write(&other, "x").unwrap();
        set_mode(&other, 0o600);
        let before = fs::metadata(&other).unwrap().gid();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "x").unwrap();
        fs::write(at("program"), "x").unwrap();
        set_mode(&at("a/b/file"), 0o400);
        set_mode(&at("program"), 0o755);
        symlink(&other, at("a/link")).unwrap();
        symlink(outside.path(), at("a/dir")).unwrap();

        give(dir.path(), group()).unwrap();

        for name in ["", "a", "a/b", "a/b/file", "program", "a/link"] {
            assert_eq!(fs::symlink_metadata(at(name)).unwrap().gid(), group(), "{name}");
        }
        assert_eq!(mode(&at("a/b/file")), 0o660);
        assert_eq!(mode(&at("program")), 0o775);
        assert_eq!(mode(&at("a/b")) & 0o2770, 0o2770);
        assert_eq!(mode(dir.path()) & 0o2770, 0o2770);
        assert_eq!(mode(&other), 0o600);
        assert_eq!(fs::metadata(&other).unwrap().gid(), before);
        assert_eq!(mode(outside.path()) & 0o2000, 0);
    }

    #[test]
    fn a_root_that_fits_is_left_alone_and_one_that_was_interrupted_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        give(dir.path(), group()).unwrap();
        set_mode(&file, 0o600);
        give(dir.path(), group()).unwrap();
        assert_eq!(mode(&file), 0o600);
        // As an interrupted walk leaves it: the root comes last.
        set_mode(dir.path(), 0o755);
        give(dir.path(), group()).unwrap();
        assert_eq!(mode(&file), 0o660);
    }

    #[test]
    fn what_is_not_a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(give(&file, group()).is_err());
        let error = give(&dir.path().join("none"), group()).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
