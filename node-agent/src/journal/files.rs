//! The few file operations on whole databases.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Copies a database's directory (plain files, one level of directories), onto the disk.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            match fs::copy(entry.path(), &target) {
                Ok(_) => File::open(&target)?.sync_all()?,
                // sled's snapshots come and go while it runs.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    File::open(to)?.sync_all()
}

/// Removes a database's directory: what [`copy`] would copy of it, and nothing else. A tree
/// below it would be somebody's, and is an error.
pub(super) fn remove(database: &Path) -> io::Result<()> {
    for entry in fs::read_dir(database)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for blob in fs::read_dir(entry.path())? {
                fs::remove_file(blob?.path())?;
            }
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(database)
}

/// sled's snapshots. They only spare it work at the next start, and a half-written one makes
/// it refuse to start (measured).
pub(super) fn leftovers(database: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(database) else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("snap."))
        .map(|e| e.path())
        .collect()
}
