//! What was intended and what was done, in sled.
//!
//! Every change goes: transaction → flush → fsync → only then the side effect. sled's own
//! flush calls `sync_file_range`, which does not survive a power failure (measured), so
//! the database file is synced through a descriptor of our own.
//!
//! The kernel (sysfs, device-mapper, mountinfo) is the truth; the journal explains it.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{error, warn};

use crate::error::{Error, Result};

/// The version of the records' layout; an unknown one is set aside, never guessed at.
const SCHEMA: u32 = 1;
/// Transitions kept for each volume.
const HISTORY_LIMIT: usize = 500;

/// The tables of the journal. Each has one owner, so that no two writers meet in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Sessions, by volume id; written by the keeper.
    Sessions,
    /// Staged and published volumes, by volume id; written by the node service.
    Stages,
    /// Transitions, by volume id and time; written by the keeper.
    History,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Stages => "stages",
            Self::History => "history",
        }
    }
}

/// The journal. Cheap to clone; all calls block, so they belong on a blocking thread.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    db: sled::Db,
    file: File,
    sidecar: PathBuf,
    // Serialises change → flush → fsync, so that the sequence number means something.
    sequence: Mutex<u64>,
    failures: AtomicU64,
}

/// What opening the journal found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// A journal as it was left, or a new one.
    Intact,
    /// The old one was unreadable or older than it had been; it lies at this path now.
    SetAside(PathBuf, String),
}

impl Journal {
    /// Opens the journal in `state_dir`, or sets an unusable one aside and begins anew:
    /// a damaged journal is never trusted and never fatal.
    ///
    /// # Errors
    /// Only if no journal can be made at all (a full or read-only disk).
    pub fn open(state_dir: &Path) -> Result<(Self, Opened)> {
        // For root alone: it tells host NQNs, which open volumes.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(Error::kernel("create the state directory", state_dir.display()))?;
        let dir = state_dir.join("journal");
        match Self::try_open(state_dir, &dir) {
            Ok(journal) => Ok((journal, Opened::Intact)),
            Err(reason) => {
                let aside = state_dir.join(format!("journal.damaged-{}", now_unix_ms()));
                error!(%reason, aside = %aside.display(), "the journal is unusable and is set aside; sessions are rebuilt from the kernel");
                if dir.exists() {
                    std::fs::rename(&dir, &aside).map_err(Error::kernel(
                        "set the damaged journal aside at",
                        aside.display(),
                    ))?;
                }
                let _ = std::fs::remove_file(state_dir.join("journal.sequence"));
                let journal = Self::try_open(state_dir, &dir).map_err(Error::Journal)?;
                Ok((journal, Opened::SetAside(aside, reason)))
            }
        }
    }

    fn try_open(state_dir: &Path, dir: &Path) -> Result<Self, String> {
        // sled may panic on a damaged file; that must not end the agent.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            sled::Config::new().path(dir).cache_capacity(4 << 20).open()
        }));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => return Err("sled panicked while opening it".into()),
        };
        let file =
            File::open(dir.join("db")).map_err(|e| format!("open {}/db: {e}", dir.display()))?;
        let sync_dir = |d: &Path| File::open(d).and_then(|f| f.sync_all());
        sync_dir(dir)
            .and_then(|()| sync_dir(state_dir))
            .map_err(|e| format!("sync {}: {e}", dir.display()))?;
        let read = |key: &str| db.get(key).map_err(|e| e.to_string());
        if read("schema")?.is_some_and(|found| found.as_ref() != SCHEMA.to_be_bytes()) {
            return Err(format!("its records have another layout than version {SCHEMA}"));
        }
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or(0);
        let sequence = read("sequence")?.map_or(0, |v| number(&v));
        let sidecar = state_dir.join("journal.sequence");
        let promised: u64 =
            std::fs::read_to_string(&sidecar).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        if sequence < promised {
            // sled can fall back to an older state without a word (measured).
            return Err(format!("it has rolled back from change {promised} to {sequence}"));
        }
        let journal = Self {
            inner: Arc::new(Inner {
                db,
                file,
                sidecar,
                sequence: Mutex::new(sequence),
                failures: AtomicU64::new(0),
            }),
        };
        journal
            .inner
            .db
            .insert("schema", &SCHEMA.to_be_bytes())
            .map_err(|e| e.to_string())
            .and_then(|_| journal.sync().map_err(|e| e.to_string()))?;
        Ok(journal)
    }

    /// Writes one record and returns when it is on the disk.
    ///
    /// # Errors
    /// If it may not be there: then the side effect must not happen.
    pub fn put<T: Serialize>(&self, table: Table, key: &str, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|e| Error::Journal(e.to_string()))?;
        self.counted(self.change(table, |tree| tree.insert(key, bytes).map(|_| ())))
    }

    /// Removes one record and returns when that is on the disk.
    ///
    /// # Errors
    /// If it may still be there.
    pub fn remove(&self, table: Table, key: &str) -> Result<()> {
        self.counted(self.change(table, |tree| tree.remove(key).map(|_| ())))
    }

    /// Reads one record; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read or understood, which is not the same as absent.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>> {
        let bytes = self.tree(table)?.get(key).map_err(|e| Error::Journal(e.to_string()))?;
        self.counted(bytes.map(|b| parse(key, &b)).transpose())
    }

    /// All records of a table. Those that cannot be understood are told of and left out.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>> {
        let mut records = Vec::new();
        for entry in self.tree(table)?.iter() {
            let (key, bytes) = entry.map_err(|e| Error::Journal(e.to_string()))?;
            let key = String::from_utf8_lossy(&key).into_owned();
            match parse(&key, &bytes) {
                Ok(value) => records.push((key, value)),
                Err(error) => {
                    warn!(table = table.name(), %error, "a journal record cannot be understood")
                }
            }
        }
        Ok(records)
    }

    /// Adds to a volume's history, and forgets its oldest entries. Not synced: history
    /// explains, nothing depends on it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember<T: Serialize>(&self, volume: &str, at_unix_ms: i64, entry: &T) -> Result<()> {
        let tree = self.tree(Table::History)?;
        let bytes = serde_json::to_vec(entry).map_err(|e| Error::Journal(e.to_string()))?;
        let fault = |e: sled::Error| Error::Journal(e.to_string());
        let serial = self.inner.db.generate_id().map_err(fault)?;
        tree.insert(format!("{volume}/{at_unix_ms:015}/{serial:020}"), bytes).map_err(fault)?;
        let prefix = format!("{volume}/");
        let count = tree.scan_prefix(&prefix).count();
        for entry in tree.scan_prefix(&prefix).keys().take(count.saturating_sub(HISTORY_LIMIT)) {
            tree.remove(entry.map_err(fault)?).map_err(fault)?;
        }
        Ok(())
    }

    /// A volume's history, oldest first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn history<T: DeserializeOwned>(&self, volume: &str) -> Result<Vec<T>> {
        let mut entries = Vec::new();
        for entry in self.tree(Table::History)?.scan_prefix(format!("{volume}/")) {
            let (key, bytes) = entry.map_err(|e| Error::Journal(e.to_string()))?;
            entries.extend(parse(&String::from_utf8_lossy(&key), &bytes).ok());
        }
        Ok(entries)
    }

    /// Whether a change would reach the disk, found out by making one that changes nothing.
    ///
    /// # Errors
    /// If it would not.
    pub fn probe(&self) -> Result<()> {
        let _turn = self.lock();
        let same = self.inner.db.insert("schema", &SCHEMA.to_be_bytes());
        self.counted(same.map_err(|e| Error::Journal(e.to_string())).and_then(|_| self.sync()))
    }

    /// Reads and writes that failed since the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.inner.failures.load(Ordering::Relaxed)
    }

    /// Passes a result on, and counts it if it is a failure.
    pub(crate) fn counted<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.inner.failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn tree(&self, table: Table) -> Result<sled::Tree> {
        self.inner.db.open_tree(table.name()).map_err(|e| Error::Journal(e.to_string()))
    }

    fn change(
        &self,
        table: Table,
        apply: impl FnOnce(&sled::Tree) -> sled::Result<()>,
    ) -> Result<()> {
        let tree = self.tree(table)?;
        let mut sequence = self.lock();
        let next = *sequence + 1;
        let fault = |e: sled::Error| Error::Journal(e.to_string());
        apply(&tree).map_err(fault)?;
        self.inner.db.insert("sequence", &next.to_be_bytes()).map_err(fault)?;
        self.sync()?;
        *sequence = next;
        // After the database: a crash between the two leaves the sidecar behind, which is
        // the harmless way round.
        std::fs::write(&self.inner.sidecar, next.to_string())
            .map_err(|e| Error::Journal(format!("{}: {e}", self.inner.sidecar.display())))
    }

    fn sync(&self) -> Result<()> {
        self.inner.db.flush().map_err(|e| Error::Journal(e.to_string()))?;
        self.inner.file.sync_all().map_err(|e| Error::Journal(e.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        // A panic while it was held left the number unchanged, so it is still true.
        self.inner.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Journal(format!("record {key}: {e}")))
}

/// The wall clock, for records and people; never for deadlines.
#[must_use]
pub fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_survive_and_removed_ones_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, opened) = Journal::open(dir.path()).unwrap();
        assert_eq!(opened, Opened::Intact);
        journal.put(Table::Stages, "a", &1u32).unwrap();
        journal.put(Table::Stages, "b", &2u32).unwrap();
        journal.remove(Table::Stages, "a").unwrap();
        drop(journal);
        let (journal, opened) = Journal::open(dir.path()).unwrap();
        assert_eq!(opened, Opened::Intact);
        assert_eq!(journal.all::<u32>(Table::Stages).unwrap(), vec![("b".to_owned(), 2)]);
        assert_eq!(journal.get::<u32>(Table::Stages, "a").unwrap(), None);
    }

    #[test]
    fn a_damaged_journal_is_set_aside_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        journal.put(Table::Stages, "a", &1u32).unwrap();
        drop(journal);
        let damaged = dir.path().join("journal/db");
        let size = std::fs::metadata(&damaged).unwrap().len();
        std::fs::write(&damaged, vec![0x5a; usize::try_from(size).unwrap()]).unwrap();
        let (journal, opened) = Journal::open(dir.path()).unwrap();
        let Opened::SetAside(path, _) = opened else { panic!("{opened:?}") };
        assert!(path.join("db").exists(), "the damaged journal is kept for people to look at");
        assert_eq!(journal.get::<u32>(Table::Stages, "a").unwrap(), None);
    }

    #[test]
    fn a_silent_roll_back_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        journal.put(Table::Stages, "a", &1u32).unwrap();
        drop(journal);
        std::fs::write(dir.path().join("journal.sequence"), "99").unwrap();
        let (_, opened) = Journal::open(dir.path()).unwrap();
        assert!(matches!(opened, Opened::SetAside(_, reason) if reason.contains("rolled back")));
    }

    #[test]
    fn history_is_bounded_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        for n in 0..(HISTORY_LIMIT as i64 + 20) {
            journal.remember("v", 1000 + n, &n).unwrap();
        }
        let kept: Vec<i64> = journal.history("v").unwrap();
        assert_eq!(kept.len(), HISTORY_LIMIT);
        assert_eq!(kept.first(), Some(&20));
        assert!(kept.is_sorted());
    }
}
