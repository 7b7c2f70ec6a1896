//! What was intended and what was done, in sled.
//!
//! Every change goes: batch → flush → fsync → only then the side effect. The kernel (sysfs,
//! device-mapper, mountinfo) is the truth; the journal explains it. In the order in which a
//! record meets them: `format` says how it lies in the database, `store` writes it,
//! `recover` and `migrate` open what an earlier agent has left, `history` is for people, and
//! so is [`export`].
//!
//! All records are in memory too, as the disk has acknowledged them. So reading does not
//! depend on the disk, and a database that has failed, or was deleted, is opened anew and
//! made to say what is true. While there is none, changes fail and sessions go on.

mod export;
mod files;
mod format;
mod history;
mod migrate;
mod recover;
mod store;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::error::{Error, Result};
pub use export::export;
use format::Records;
use store::{Failure, Layout, Store};

/// How often a journal that cannot be used is tried again, and one that can is looked at.
const TEND: Duration = Duration::from_secs(2);

/// The tables of the journal. Each has one owner, so that no two writers meet in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Sessions, by volume id; written by the keeper.
    Sessions,
    /// Staged and published volumes, by volume id; written by the node service.
    Stages,
}

impl Table {
    fn prefix(self) -> &'static str {
        match self {
            Self::Sessions => "sessions/",
            Self::Stages => "stages/",
        }
    }

    fn key(self, key: &str) -> String {
        format!("{}{key}", self.prefix())
    }
}

/// The journal. Cheap to clone; changes block, so they belong on a blocking thread.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    // Serialises changes. `None` while the database cannot be used.
    store: Mutex<Option<Store>>,
    // As the disk has acknowledged them; `None` until they were read once.
    records: RwLock<Option<Records>>,
    health: Mutex<Health>,
    progress: watch::Sender<Progress>,
}

/// What opening the journal found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// A journal as it was left, or a new one.
    Intact,
    /// As it was left, once sled's leftover snapshots were removed; a copy of how it was
    /// found lies at this path.
    Mended(PathBuf, String),
    /// The old one was not what was written last; it lies at this path now.
    SetAside(PathBuf, String),
}

/// How often opening it has succeeded, and how often that or a change has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// More than one: it was lost in between, and is whole again.
    pub openings: u64,
    /// Each is in the log.
    pub failures: u64,
}

/// How the journal fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Why it cannot be used at present, naming the directory; `None` if it can.
    pub problem: Option<String>,
    /// Since when that is so, milliseconds since the Unix epoch.
    pub since_unix_ms: i64,
    /// Changes and openings that failed since the agent was started.
    pub errors: u64,
    /// What the last opening found out.
    pub opened: Option<Opened>,
}

impl Journal {
    fn new(state_dir: &Path) -> Self {
        let layout = Layout { state_dir: state_dir.to_owned() };
        let problem = Some(format!("{}: not opened yet", layout.database().display()));
        let health = Health { problem, since_unix_ms: now_unix_ms(), errors: 0, opened: None };
        let (progress, _) = watch::channel(Progress::default());
        let inner = Inner {
            layout,
            store: Mutex::new(None),
            records: RwLock::new(None),
            health: Mutex::new(health),
            progress,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Opens the journal in `state_dir`, or sets an unusable one aside and begins anew.
    ///
    /// # Errors
    /// If no journal can be had at present (a full or read-only disk).
    pub fn open(state_dir: &Path) -> Result<(Self, Opened)> {
        let journal = Self::new(state_dir);
        let mut store = journal.store();
        journal.reopen(&mut store)?;
        drop(store);
        let opened = journal.health().opened.unwrap_or(Opened::Intact);
        Ok((journal, opened))
    }

    /// For the agent, which has sessions to keep even if there is no journal to be had: a
    /// thread opens it, and opens it again whenever it has failed. Until then changes fail.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(state_dir: &Path) -> Result<Self> {
        let journal = Self::new(state_dir);
        let inner = Arc::downgrade(&journal.inner);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                while let Some(inner) = inner.upgrade() {
                    Self { inner }.tend();
                    thread::sleep(TEND);
                }
            })
            .map_err(Error::kernel("start", "the journal's thread"))?;
        Ok(journal)
    }

    /// Tells of each attempt to open it.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.inner.progress.subscribe()
    }

    /// How it fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.lock_health().clone()
    }

    /// Writes one record and returns when it is on the disk.
    ///
    /// # Errors
    /// If it may not be there: then the side effect must not happen.
    pub fn put<T: Serialize>(&self, table: Table, key: &str, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|e| Error::Journal(e.to_string()))?;
        self.change(|records| drop(records.insert(table.key(key), bytes.clone())))
    }

    /// Removes one record and returns when that is on the disk.
    ///
    /// # Errors
    /// If it may still be there.
    pub fn remove(&self, table: Table, key: &str) -> Result<()> {
        self.change(|records| drop(records.remove(&table.key(key))))
    }

    /// Whether a change would reach the disk, found out by making one that changes nothing.
    ///
    /// # Errors
    /// If it would not.
    pub fn probe(&self) -> Result<()> {
        self.change(|_| {})
    }

    /// Reads one record; `None` if there is none.
    ///
    /// # Errors
    /// If it is not known or cannot be understood, which is not the same as absent.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>> {
        let records = self.inner.records.read().unwrap_or_else(PoisonError::into_inner);
        let Some(records) = records.as_ref() else { return Err(self.unusable()) };
        records.get(&table.key(key)).map(|json| parse(key, json)).transpose()
    }

    /// All records of a table. Those that cannot be understood are told of and left out.
    ///
    /// # Errors
    /// If they are not known.
    pub fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>> {
        let records = self.inner.records.read().unwrap_or_else(PoisonError::into_inner);
        let Some(records) = records.as_ref() else { return Err(self.unusable()) };
        let mut found = Vec::new();
        for (key, json) in records.iter() {
            let Some(key) = key.strip_prefix(table.prefix()) else { continue };
            match parse(key, json) {
                Ok(value) => found.push((key.to_owned(), value)),
                Err(error) => warn!(%error, "a journal record cannot be understood"),
            }
        }
        Ok(found)
    }

    fn change(&self, edit: impl Fn(&mut Records)) -> Result<()> {
        let mut store = self.store();
        self.reopen_if_needed(&mut store)?;
        if let Err(failure) = self.write(&mut store, &edit) {
            // sled takes no write after one has failed, so it is opened anew, which also
            // undoes what may have got there of this one. Then once more: the disk may have
            // been full for a while that is over.
            warn!(%failure, "a change of the journal failed; it is opened anew");
            self.reopen(&mut store)?;
            self.write(&mut store, &edit).map_err(|failure| self.failed(&mut store, failure))?;
        }
        Ok(())
    }

    fn write(&self, store: &mut Option<Store>, edit: impl Fn(&mut Records)) -> Result<(), Failure> {
        let unopened = || Failure::Later("not opened".into());
        let store = store.as_mut().ok_or_else(unopened)?;
        let before = self.inner.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let before = before.ok_or_else(unopened)?;
        let mut after = before.clone();
        edit(&mut after);
        store.apply(&before, &after)?;
        *self.inner.records.write().unwrap_or_else(PoisonError::into_inner) = Some(after);
        Ok(())
    }

    /// Looks whether the database is there, and opens it if not.
    fn tend(&self) {
        let Ok(mut store) = self.inner.store.try_lock() else { return };
        // The failure is in the health, and told of when it changes.
        let _ = self.reopen_if_needed(&mut store);
    }

    fn reopen_if_needed(&self, store: &mut Option<Store>) -> Result<()> {
        match store {
            Some(open) if !open.is_detached() => Ok(()),
            Some(_) => {
                error!(dir = %self.inner.layout.database().display(), "the journal was deleted under the agent; it is written anew");
                self.reopen(store)
            }
            None => self.reopen(store),
        }
    }

    fn reopen(&self, store: &mut Option<Store>) -> Result<()> {
        if let Some(old) = store.take() {
            old.close();
        }
        let known = self.inner.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let found = recover::open(&self.inner.layout, known.as_ref());
        let (opened, records, how) = found.map_err(|failure| self.failed(store, failure))?;
        *store = Some(opened);
        *self.inner.records.write().unwrap_or_else(PoisonError::into_inner) = Some(records);
        let mut health = self.lock_health();
        if health.errors > 0 && health.problem.is_some() {
            info!(dir = %self.inner.layout.database().display(), "the journal can be written again");
        }
        if health.problem.take().is_some() {
            health.since_unix_ms = now_unix_ms();
        }
        health.opened = Some(how);
        drop(health);
        self.inner.progress.send_modify(|p| p.openings += 1);
        Ok(())
    }

    /// Notes a failure; the database is closed, since nothing is known of it now.
    fn failed(&self, store: &mut Option<Store>, failure: Failure) -> Error {
        if let Some(old) = store.take() {
            old.close();
        }
        let problem = format!("{}: {failure}", self.inner.layout.database().display());
        let mut health = self.lock_health();
        health.errors += 1;
        if health.problem.as_ref() != Some(&problem) {
            error!(%problem, "the journal cannot be used; sessions go on, new volumes are refused until its disk is mended");
            if health.problem.is_none() {
                health.since_unix_ms = now_unix_ms();
            }
            health.problem = Some(problem);
        }
        drop(health);
        self.inner.progress.send_modify(|p| p.failures += 1);
        unusable(&self.inner.layout, &failure.to_string())
    }

    /// Why there is nothing to read or write.
    fn unusable(&self) -> Error {
        Error::Journal(self.lock_health().problem.clone().unwrap_or_default())
    }

    fn store(&self) -> MutexGuard<'_, Option<Store>> {
        // A panic while it was held left a store that is checked at its next use.
        self.inner.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_health(&self) -> MutexGuard<'_, Health> {
        self.inner.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unusable(layout: &Layout, reason: &str) -> Error {
    Error::Journal(format!("{}: {reason}", layout.database().display()))
}

fn parse<T: DeserializeOwned>(key: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| Error::Journal(format!("record {key}: {e}")))
}

/// The wall clock, for records and people; never for deadlines.
#[must_use]
pub fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
