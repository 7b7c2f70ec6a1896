//! What is on a volume: one small record, replaced by the next each time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::plan::Kind;

const RECORD: usize = 4096;
/// Where it is in a raw volume.
const AT: u64 = 8 << 20;
/// Reading and writing 4 KiB over a live session, in an emulated guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// The record of a generation; no other volume has the same.
fn bytes(volume: &str, generation: u64) -> Vec<u8> {
    format!("{volume} generation {generation}\n").bytes().cycle().take(RECORD).collect()
}

/// A way to the volume: its device, or a directory at which it is mounted.
fn place(kind: Kind, path: &Path) -> (PathBuf, u64) {
    match kind {
        Kind::Raw => (path.to_owned(), AT),
        Kind::Ext4 | Kind::Xfs | Kind::ReadOnly => (path.join("record"), 0),
    }
}

async fn blocking<T: Send + 'static>(
    what: String,
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(call));
    done.await.with_context(|| format!("{what} takes more than {PATIENCE:?}"))??.context(what)
}

/// The record must be this generation's.
pub(super) async fn expect(kind: Kind, volume: &str, path: &Path, generation: u64) -> Result<()> {
    let ((file, at), wanted) = (place(kind, path), bytes(volume, generation));
    blocking(format!("read {}", file.display()), move || {
        let mut found = vec![0; RECORD];
        File::open(&file)?.read_exact_at(&mut found, at)?;
        let shown = || String::from_utf8_lossy(&found[..64]).into_owned();
        ensure!(found == wanted, "generation {generation} is not there, but {:?}", shown());
        Ok(())
    })
    .await
}

/// Writes the record, and syncs it.
pub(super) async fn write(kind: Kind, volume: &str, path: &Path, generation: u64) -> Result<()> {
    let ((file, at), bytes) = (place(kind, path), bytes(volume, generation));
    blocking(format!("write {}", file.display()), move || {
        let mut options = File::options();
        let file = options.write(true).create(kind != Kind::Raw).truncate(false).open(&file)?;
        file.write_all_at(&bytes, at)?;
        Ok(file.sync_all()?)
    })
    .await
}

/// The kernel must refuse to write there.
pub(super) async fn expect_read_only(kind: Kind, path: &Path) -> Result<()> {
    let (file, _) = place(kind, path);
    blocking(format!("open {} for writing", file.display()), move || {
        let opened = File::options().write(true).open(&file).map(drop);
        let refused = opened.as_ref().err().and_then(std::io::Error::raw_os_error);
        ensure!(refused == Some(libc::EROFS), "read-only, but {opened:?}");
        Ok(())
    })
    .await
}
