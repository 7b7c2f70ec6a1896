//! Pools: directories that hold the images, each with a size that its files may not exceed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{FallocateFlags, fallocate};

use sha2::{Digest, Sha256};

use crate::config::{Allocate, PoolKind, PoolSpec};

/// Files of ours in a pool begin with this, and `/file` does not show them.
pub(super) const HIDDEN: &str = ".rds-sim-";

#[derive(Debug, Clone)]
pub struct Pool {
    pub name: String,
    pub bytes: u64,
    pub kind: PoolKind,
    dir: PathBuf,
}

impl Pool {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file system's UUID: the same one over restarts.
    pub(super) fn uuid(&self) -> String {
        let digest = Sha256::digest(self.dir.as_os_str().as_encoded_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        uuid::Uuid::from_bytes(bytes).to_string()
    }
}

/// One entry of `/file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without a leading slash.
    pub name: String,
    pub kind: String,
    pub size: Option<u64>,
    pub modified: SystemTime,
}

#[derive(Debug)]
pub struct Pools {
    pools: Vec<Pool>,
    allocate: Allocate,
    /// Directories of subvolumes, and whose data each shares.
    shared: Mutex<BTreeMap<PathBuf, String>>,
    /// What [`Pools::free`] said last, and when: a print of thousands must not look at each file.
    measured: Mutex<BTreeMap<String, (Instant, u64)>>,
}

/// Hosts may discard blocks at any time: what is shown may be that old.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// Why a file could not be made or grown.
#[derive(Debug)]
pub enum AllocError {
    Full,
    Io(io::Error),
}

impl Pools {
    pub fn create(state_dir: &Path, specs: &[PoolSpec], allocate: Allocate) -> io::Result<Pools> {
        let mut pools = Vec::new();
        for spec in specs {
            let dir = state_dir.join("pools").join(&spec.name);
            fs::create_dir_all(&dir)?;
            remove_drafts(&dir)?;
            // configfs keeps the path as text: it must not depend on the working directory.
            pools.push(Pool {
                name: spec.name.clone(),
                bytes: spec.bytes,
                kind: spec.kind,
                dir: dir.canonicalize()?,
            });
        }
        Ok(Pools { pools, allocate, shared: Mutex::default(), measured: Mutex::default() })
    }

    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The host path of `/raid10/dir/a.img`; `None` outside of every pool.
    pub fn resolve(&self, path: &str) -> Option<(&Pool, PathBuf)> {
        let mut parts = path.trim_start_matches('/').split('/');
        let name = parts.next()?;
        let pool = self.pools.iter().find(|p| p.name == name)?;
        let mut host = pool.dir.clone();
        for part in parts {
            if part.is_empty()
                || part == "."
                || part == ".."
                || part.contains('\0')
                || part.starts_with(HIDDEN)
            {
                return None;
            }
            host.push(part);
        }
        Some((pool, host))
    }

    pub(super) fn set_shared(&self, shared: BTreeMap<PathBuf, String>) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = shared;
    }

    /// A command changed something: measure anew.
    pub(super) fn changed(&self) {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// [`Pools::free`], not older than [`MEASURED_FOR`].
    pub(super) fn free_shown(&self, pool: &Pool) -> u64 {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        match measured.get(&pool.name) {
            Some((at, free)) if at.elapsed() < MEASURED_FOR => *free,
            _ => {
                let free = self.free(pool);
                measured.insert(pool.name.clone(), (Instant::now(), free));
                free
            }
        }
    }

    /// Bytes that the pool has left. Of a file and its snapshots the largest counts, once: what they
    /// have come to differ in is left out.
    pub fn free(&self, pool: &Pool) -> u64 {
        let mut used = 0;
        let mut lines: BTreeMap<PathBuf, u64> = BTreeMap::new();
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        walk(&pool.dir, &mut |path, meta| {
            if !meta.is_file() {
                return;
            }
            let bytes = match self.allocate {
                // Discards of a host may have punched holes, which free space on the appliance too.
                Allocate::Full => meta.blocks() * 512,
                Allocate::Sparse => meta.len(),
            };
            let home = || path.ancestors().find_map(|dir| Some((dir, shared.get(dir)?)));
            match if shared.is_empty() { None } else { home() } {
                None => used += bytes,
                Some((dir, origin)) => {
                    let below = path.strip_prefix(dir).unwrap_or(path);
                    let most = lines.entry(Path::new(origin).join(below)).or_default();
                    *most = bytes.max(*most);
                }
            }
        });
        pool.bytes.saturating_sub(used + lines.values().sum::<u64>())
    }

    /// Makes the file, or changes its size, and allocates all of it.
    pub fn allocate(&self, pool: &Pool, host: &Path, size: u64) -> Result<(), AllocError> {
        let existed = fs::metadata(host).map(|m| m.len()).ok();
        let growth = size.saturating_sub(existed.unwrap_or(0));
        if growth > self.free(pool) {
            return Err(AllocError::Full);
        }
        let done = self.fill(host, size, existed.unwrap_or(0));
        if done.is_err() && existed.is_none() {
            let _ = fs::remove_file(host);
        }
        done.map_err(|e| match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => AllocError::Full,
            _ => AllocError::Io(e),
        })
    }

    fn fill(&self, host: &Path, size: u64, before: u64) -> io::Result<()> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(host)?;
        if size < before || self.allocate == Allocate::Sparse {
            return file.set_len(size);
        }
        match allocate_range(&file, before, size - before) {
            // 9p and a few others cannot allocate; a sparse file is then all there is.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => file.set_len(size),
            other => other,
        }
    }

    /// Everything in all pools; the pools themselves are of type `disk`.
    pub fn entries(&self) -> Vec<Entry> {
        let mut out = Vec::new();
        for pool in &self.pools {
            out.push(Entry {
                name: pool.name.clone(),
                kind: "disk".into(),
                size: None,
                modified: modified(&pool.dir),
            });
            walk(&pool.dir, &mut |path, meta| {
                let Ok(below) = path.strip_prefix(&pool.dir) else { return };
                out.push(Entry {
                    name: format!("{}/{}", pool.name, below.display()),
                    kind: kind(path, meta),
                    size: meta.is_file().then_some(meta.len()),
                    modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            });
        }
        out
    }
}

pub(super) fn allocate_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let too_big = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let (offset, len) =
        (i64::try_from(offset).map_err(too_big)?, i64::try_from(len).map_err(too_big)?);
    fallocate(file, FallocateFlags::empty(), offset, len).map_err(io::Error::from)
}

fn kind(path: &Path, meta: &fs::Metadata) -> String {
    match path.extension() {
        _ if meta.is_dir() => "directory".into(),
        Some(ext) => format!(".{} file", ext.to_string_lossy()),
        None => "file".into(),
    }
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(HIDDEN.as_bytes()))
}

/// What a killed run had begun to make.
fn remove_drafts(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        match (hidden(&path), kind.is_dir()) {
            (true, true) => fs::remove_dir_all(path)?,
            (true, false) => fs::remove_file(path)?,
            (false, true) => remove_drafts(&path)?,
            (false, false) => {}
        }
    }
    Ok(())
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let Ok(read) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = read.flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if hidden(&path) {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        visit(&path, &meta);
        if meta.is_dir() {
            walk(&path, visit);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn pools(dir: &Path, allocate: Allocate) -> Pools {
        Pools::create(dir, &["raid10:1M".parse().unwrap()], allocate).unwrap()
    }

    #[test]
    fn paths_stay_inside_the_pool() {
        let dir = tempfile::tempdir().unwrap();
        let pools = pools(dir.path(), Allocate::Sparse);
        assert!(pools.resolve("/raid10/a.img").is_some());
        for bad in ["/raid10/../x", "/other/a", "/", "", "/raid10//x", "/raid10/./x"] {
            assert!(pools.resolve(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_full_pool_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        for allocate in [Allocate::Sparse, Allocate::Full] {
            let pools = pools(dir.path(), allocate);
            let (pool, host) = pools.resolve("/raid10/a.img").unwrap();
            pools.allocate(pool, &host, 700 << 10).unwrap();
            assert_eq!(fs::metadata(&host).unwrap().len(), 700 << 10);
            let (_, other) = pools.resolve("/raid10/b.img").unwrap();
            assert!(matches!(pools.allocate(pool, &other, 400 << 10), Err(AllocError::Full)));
            assert!(!other.exists());
            assert_eq!(
                pools.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
                ["raid10", "raid10/a.img"]
            );
            fs::remove_file(&host).unwrap();
        }
    }
}
