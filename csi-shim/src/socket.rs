//! A unix socket to listen on, and its file.
//!
//! A socket file outlives the process that made it, so a start finds the one of the run
//! before and has to remove it. Only a socket is ever removed: a wrong path on the command
//! line must not cost anybody a file.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

use crate::ShimError;

/// The file of a socket we listen on; removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode as we made it. A successor that starts before we are gone puts its
    /// own socket under the same name, and that one has to stay.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Listens on `path`, in place of a socket that an earlier run has left there.
///
/// # Errors
/// If something that is no socket is in the way, or the directory is missing or read-only.
pub fn listen(path: &Path) -> Result<(UnixListenerStream, SocketFile), ShimError> {
    let fail = |what: String| ShimError::Listen { path: path.to_owned(), what };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)
            .map_err(|e| fail(format!("the old socket cannot be removed: {e}")))?,
        Ok(_) => {
            return Err(fail(
                "something that is not a socket has that name; it is left alone: choose \
                 another path, or remove it"
                    .to_owned(),
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(fail(e.to_string())),
    }
    let listener = UnixListener::bind(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => fail(format!(
            "{e}: is the directory mounted into this container, and does it exist on the host?"
        )),
        _ => fail(e.to_string()),
    })?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path) };
    Ok((UnixListenerStream::new(listener), file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_removed_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_stream, file) = listen(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let message = listen(&path).unwrap_err().to_string();
        assert!(message.contains("not a socket"), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_old_stream, old) = listen(&path).unwrap();
        let (_new_stream, _new) = listen(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }
}
