//! What happened to each volume, for people: bounded, and not synced. Nothing depends on it,
//! so a history that cannot be written is only told of.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::store::{Failure, Store, caught};
use super::{Journal, unusable};
use crate::error::{Error, Result};

/// Transitions kept for each volume.
pub(super) const PER_VOLUME: usize = 500;
/// Volumes whose history is kept after they have gone; the oldest are forgotten first.
pub(super) const VOLUMES: usize = 256;

impl Journal {
    /// Adds to a volume's history, and forgets its oldest entries.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember<T: Serialize>(&self, volume: &str, at_unix_ms: i64, entry: &T) -> Result<()> {
        let bytes = serde_json::to_vec(entry).map_err(|e| Error::Journal(e.to_string()))?;
        self.with_store(|store| add(store, volume, at_unix_ms, bytes))
    }

    /// A volume's history, oldest first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn history<T: DeserializeOwned>(&self, volume: &str) -> Result<Vec<T>> {
        self.with_store(|store| {
            let mut entries = Vec::new();
            for entry in store.history.scan_prefix(format!("{volume}/")) {
                entries.extend(serde_json::from_slice(&entry?.1).ok());
            }
            Ok(entries)
        })
    }

    fn with_store<T>(&self, call: impl FnOnce(&Store) -> Result<T, Failure>) -> Result<T> {
        let store = self.store();
        let Some(store) = store.as_ref() else { return Err(self.unusable()) };
        caught("history", || call(store)).map_err(|e| unusable(&self.inner.layout, &e.to_string()))
    }
}

fn add(store: &Store, volume: &str, at_unix_ms: i64, bytes: Vec<u8>) -> Result<(), Failure> {
    let tree = &store.history;
    let serial = store.db().generate_id()?;
    tree.insert(format!("{volume}/{at_unix_ms:015}/{serial:020}"), bytes)?;
    let keys: Vec<_> = tree.scan_prefix(format!("{volume}/")).keys().collect::<Result<_, _>>()?;
    for key in keys.iter().take(keys.len().saturating_sub(PER_VOLUME)) {
        tree.remove(key)?;
    }
    // Only a volume's first entry can make them too many.
    if keys.len() == 1 { forget_oldest(tree) } else { Ok(()) }
}

fn forget_oldest(tree: &sled::Tree) -> Result<(), Failure> {
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for key in tree.iter().keys() {
        let key = String::from_utf8_lossy(&key?).into_owned();
        if let Some((volume, at)) = key.split_once('/') {
            newest.insert(volume.to_owned(), at.to_owned());
        }
    }
    let mut by_age: Vec<_> = newest.into_iter().map(|(volume, at)| (at, volume)).collect();
    by_age.sort();
    for (_, volume) in by_age.iter().take(by_age.len().saturating_sub(VOLUMES)) {
        for key in tree.scan_prefix(format!("{volume}/")).keys() {
            tree.remove(key?)?;
        }
    }
    Ok(())
}
