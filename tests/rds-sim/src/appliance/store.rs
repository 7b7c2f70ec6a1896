//! The disks on disk: written whole, synced, then renamed into place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::btrfs::Subvolume;
use crate::ros::disk::Disk;
use crate::target::Identity;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub version: u32,
    pub next_id: u32,
    pub disks: Vec<Disk>,
    /// Serial and UUID per slot, for `--identity fixed`.
    #[serde(default)]
    pub identities: BTreeMap<String, Identity>,
    #[serde(default)]
    pub subvolumes: Vec<Subvolume>,
    #[serde(default)]
    pub next_subvolume: u32,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    pub fn new(path: PathBuf) -> Store {
        Store { path }
    }

    /// What was saved; nothing yet is the empty state, anything unreadable an error.
    pub fn load(&self) -> io::Result<Saved> {
        Ok(load(&self.path)?.unwrap_or(Saved { version: 1, next_id: 1, ..Saved::default() }))
    }

    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        save(&self.path, saved)
    }
}

pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(value).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}
