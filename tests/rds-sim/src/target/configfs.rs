//! configfs as a handful of verbs that say what failed where, and that wait out EBUSY.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use super::TargetError;

/// References of dying controllers go within moments; longer means that something else is wrong.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

fn wrap<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> TargetError + 'a {
    move |source| TargetError::Io { what, path: path.to_owned(), source }
}

fn retry(mut action: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match action() {
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN))
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

pub(super) fn mkdir(path: &Path) -> Result<(), TargetError> {
    retry(|| fs::create_dir(path)).map_err(wrap("mkdir", path))
}

/// Makes a directory that may exist already.
pub(super) fn ensure_dir(path: &Path) -> Result<(), TargetError> {
    if path.is_dir() { Ok(()) } else { mkdir(path) }
}

/// Removes a directory; one that is gone is fine.
pub(super) fn rmdir(path: &Path) -> Result<(), TargetError> {
    match retry(|| fs::remove_dir(path)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(wrap("rmdir", path)),
    }
}

pub(super) fn link(target: &Path, path: &Path) -> Result<(), TargetError> {
    match retry(|| symlink(target, path)) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(wrap("link", path)),
    }
}

/// Removes a link; one that is gone is fine.
pub(super) fn unlink(path: &Path) -> Result<(), TargetError> {
    match retry(|| fs::remove_file(path)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(wrap("unlink", path)),
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), TargetError> {
    retry(|| fs::write(path, value)).map_err(wrap("write", path))
}

/// For attributes that not every kernel has, or lets be changed.
pub(super) fn write_if_possible(path: &Path, value: &str) {
    if !path.exists() || read(path).as_deref() == Some(value) {
        return;
    }
    if let Err(e) = fs::write(path, value) {
        tracing::debug!("{} = {value}: {e}", path.display());
    }
}

pub(super) fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|s| s.trim_end().to_owned())
}

/// Names in a directory.
pub(super) fn names(path: &Path) -> Vec<String> {
    let Ok(read) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> =
        read.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
