//! NodeUnpublishVolume: unmount every layer at a pod's path, then remove that one path.
//!
//! Never a tree: what could not be unmounted is the volume's data.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;
use tracing::{info, warn};

use super::busy;
use super::locks::Operation;
use super::paths::GivenPath;
use super::sessions::Sessions;
use super::unstage::release_if_fenced;
use super::{LOCAL, Node};
use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::mounts::{self, MountTable};

/// A bind mount goes at once, even over a dead volume: the staging mount keeps the file
/// system.
const UNMOUNT: Duration = Duration::from_secs(30);
/// More layers than any failure could have stacked; beyond, something else goes on.
const MOST_LAYERS: usize = 64;

/// Unpublishes a volume.
///
/// # Errors
/// If it is still in use there, or the path holds something that is not ours to remove.
pub(crate) async fn unpublish<S: Sessions>(
    node: &Node<S>,
    volume: VolumeId,
    target: GivenPath,
) -> Result<()> {
    let operation = node.locks.begin(&volume, "NodeUnpublishVolume")?;
    // A process that waits for a volume which is gone for good holds the mount busy, and
    // cannot be ended.
    release_if_fenced(node, &volume).await?;
    let path = operation.run("resolving the target path", LOCAL, move || target.resolve()).await?;
    // Without its directory there is nothing at the path either.
    let Some(path) = path else { return Ok(()) };
    let foreign: Vec<DeviceNumber> = node
        .sessions
        .views()
        .into_iter()
        .filter(|v| v.spec.volume != volume)
        .filter_map(|v| v.device.map(|d| d.number))
        .collect();
    let target = path.clone();
    let cleared = operation.run("unpublishing", UNMOUNT, move || clear(&target, &foreign)).await;
    if let Err(Error::Kernel { source, .. }) = &cleared
        && source.raw_os_error() == Some(nix::libc::EBUSY)
    {
        let device = node.sessions.view(&volume).and_then(|v| v.device).map(|d| d.number);
        return Err(busy::in_use_at(&path, device).await);
    }
    cleared?;
    crash::point("unpublish.removed");
    match forget(node, &operation, &path).await {
        // The note of a mount that is gone is no obstacle to anything, and a pod must be able
        // to end although the disk of the journal is full.
        Err(error @ Error::Journal(_)) => {
            warn!(%volume, %error, "the publish is undone, but still noted");
        }
        other => other?,
    }
    crash::point("unpublish.done");
    info!(%volume, target = %path.display(), "unpublished");
    Ok(())
}

async fn forget<S: Sessions>(node: &Node<S>, operation: &Operation, path: &Path) -> Result<()> {
    if let Some(mut record) = node.records.load(operation).await?
        && record.publish_at(path).is_some()
    {
        record.publishes.retain(|p| p.target != path);
        node.records.save(operation, &record).await?;
    }
    Ok(())
}

/// Unmounts and removes. Blocks.
fn clear(target: &Path, other_volumes: &[DeviceNumber]) -> Result<()> {
    for _ in 0..MOST_LAYERS {
        let table = MountTable::read()?;
        let layers = table.at(target);
        let Some(top) = layers.last() else {
            crash::point("unpublish.unmounted");
            return remove(target);
        };
        if layers.len() > 1 {
            warn!(target = %target.display(), layers = layers.len(), "several mounts on top of each other are removed one by one");
        }
        if other_volumes.iter().any(|n| top.is_of(*n)) {
            return Err(Error::Precondition(format!(
                "another volume is mounted at {}; unpublish that one",
                target.display()
            )));
        }
        match mounts::unmount(target) {
            // EINVAL: it went by itself between the two calls; the table is read again.
            Err(e) if e.raw_os_error() != Some(nix::libc::EINVAL) => {
                return Err(Error::kernel("unmount", target.display())(e));
            }
            _ => {}
        }
    }
    Err(Error::Unavailable(format!(
        "after {MOST_LAYERS} unmounts there is still a mount at {}",
        target.display()
    )))
}

/// Removes the one path, if it is what a publish leaves behind.
fn remove(target: &Path) -> Result<()> {
    let meta = match fs::symlink_metadata(target) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::kernel("look at", target.display())(e)),
    };
    let kind = meta.file_type();
    let removed = if kind.is_dir() {
        fs::remove_dir(target)
    } else if kind.is_block_device() || (kind.is_file() && meta.len() == 0) {
        // A device node is what other drivers put there; removing it harms no data.
        fs::remove_file(target)
    } else {
        return Err(Error::Precondition(format!(
            "{} is neither a directory, nor an empty file, nor a device node; it is not removed",
            target.display()
        )));
    };
    match removed {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Err(Error::Precondition(format!(
                "nothing is mounted at {}, but the directory holds files, which may be a user's data; \
                 look at them and move them away",
                target.display()
            )))
        }
        Err(e) => Err(Error::kernel("remove", target.display())(e)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_a_publish_leaves_behind_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("full/inner")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::write(at("data"), "x").unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", at("link")).unwrap();
        for kept in ["full", "data", "link"] {
            assert_eq!(remove(&at(kept)).unwrap_err().code(), tonic::Code::FailedPrecondition);
            assert!(fs::symlink_metadata(at(kept)).is_ok());
        }
        for gone in ["empty", "file", "absent"] {
            remove(&at(gone)).unwrap();
            assert!(fs::symlink_metadata(at(gone)).is_err());
        }
    }
}
