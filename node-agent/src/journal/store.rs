//! The database on the disk: one writer, each change atomic, and on the disk when it returns.
//!
//! sled's own flush calls `sync_file_range`, which does not survive a power failure
//! (measured), so the file is synced through a descriptor of our own. After a failed write
//! sled refuses all further ones for good, and damaged files can make it panic: every call
//! is caught, and a store that has failed once is closed and opened anew.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::format::{HISTORY_TREE, MANIFEST_KEY, Manifest, RECORDS_TREE, Records, seal};
use crate::crash;

/// Why a database cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The disk or the kernel refuses; the database may be whole, and is tried again.
    Later(String),
    /// It is not what was written. It is never trusted again.
    Damaged(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Later(reason) | Self::Damaged(reason)) = self;
        f.write_str(reason)
    }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        match &error {
            // A file that is too short or lacks a part is damage, whatever else the kernel
            // says is about the disk: read-only, full, no permission, in use.
            sled::Error::Io(e)
                if !matches!(e.kind(), UnexpectedEof | InvalidData | InvalidInput | NotFound) =>
            {
                Self::Later(e.to_string())
            }
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Runs a call into sled, which may panic on what it finds in a file.
pub(super) fn caught<T>(
    what: &str,
    call: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Failure::Damaged(format!("sled panicked: {what}"))))
}

/// Where things lie in the state directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) state_dir: PathBuf,
}

impl Layout {
    pub(super) fn database(&self) -> PathBuf {
        self.state_dir.join("journal")
    }

    fn sidecar(&self) -> PathBuf {
        self.state_dir.join("journal.sequence")
    }

    /// How many changes the database had at least. None if there is no such promise: it is
    /// made with the first change, so a database with more of them has lost it.
    pub(super) fn promised(&self) -> Result<u64, Failure> {
        let text = match fs::read(self.sidecar()) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Failure::Later(format!("read journal.sequence: {e}"))),
        };
        let text = text.trim();
        if text.is_empty() {
            return Ok(0);
        }
        // Layout 1 had no checksum.
        let (number, sum) = text.split_once(' ').unwrap_or((text, ""));
        let whole = sum == promise_sum(number) || (sum.is_empty() && number.len() < 20);
        match number.parse() {
            Ok(number) if whole => Ok(number),
            _ => Err(Failure::Damaged(format!("journal.sequence holds {text:?}"))),
        }
    }

    pub(super) fn forget_promise(&self) {
        let _ = fs::remove_file(self.sidecar());
    }
}

fn promise(sequence: u64) -> String {
    let number = format!("{sequence:020}");
    let sum = promise_sum(&number);
    format!("{number} {sum}\n")
}

fn promise_sum(number: &str) -> String {
    format!("{:08x}", crc32fast::hash(number.as_bytes()))
}

/// An open database.
pub(super) struct Store {
    db: sled::Db,
    records: sled::Tree,
    pub(super) history: sled::Tree,
    file: File,
    sidecar: File,
    layout: Layout,
    pub(super) sequence: u64,
}

impl Store {
    /// Takes an open database over. What is in it was checked already.
    pub(super) fn new(db: sled::Db, layout: Layout, sequence: u64) -> Result<Self, Failure> {
        let dir = layout.database();
        let later = |what: &'static str| move |e: io::Error| Failure::Later(format!("{what}: {e}"));
        let sync_dir = |d: &Path| File::open(d).and_then(|f| f.sync_all());
        let file = File::open(dir.join("db")).map_err(later("open the database file"))?;
        let sidecar = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(layout.sidecar())
            .map_err(later("open journal.sequence"))?;
        sync_dir(&dir).and_then(|()| sync_dir(&layout.state_dir)).map_err(later("sync"))?;
        let (records, history) = caught("open the tables", || {
            Ok((db.open_tree(RECORDS_TREE)?, db.open_tree(HISTORY_TREE)?))
        })?;
        Ok(Self { db, records, history, file, sidecar, layout, sequence })
    }

    pub(super) fn db(&self) -> &sled::Db {
        &self.db
    }

    /// Makes the database say `after` instead of `before`, and returns when that is on the
    /// disk. If it fails, either may be there.
    pub(super) fn apply(&mut self, before: &Records, after: &Records) -> Result<(), Failure> {
        let manifest = Manifest::of(after, self.sequence + 1);
        let mut batch = sled::Batch::default();
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            batch.remove(key.as_str());
        }
        for (key, value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
            batch.insert(key.as_str(), seal(key, value));
        }
        batch.insert(MANIFEST_KEY, manifest.encode().map_err(Failure::Later)?);
        crash::point("journal.begin");
        caught("write", || {
            self.records.apply_batch(batch)?;
            crash::point("journal.inserted");
            self.db.flush()?;
            Ok(())
        })?;
        crash::point("journal.flushed");
        let failed = |e: io::Error| Failure::Later(format!("sync: {e}"));
        self.file.sync_all().map_err(failed)?;
        crash::point("journal.synced");
        // Always the same length, in place: there is no moment at which it is empty.
        let sequence = self.sequence + 1;
        self.sidecar
            .write_all_at(promise(sequence).as_bytes(), 0)
            .and_then(|()| self.sidecar.sync_data())
            .map_err(|e| Failure::Later(format!("write journal.sequence: {e}")))?;
        crash::point("journal.sealed");
        self.sequence = sequence;
        if self.is_detached() {
            return Err(Failure::Later("its files were deleted".into()));
        }
        Ok(())
    }

    /// Whether the files that are written to are no longer those in the state directory:
    /// somebody has deleted or replaced them, and what is written goes nowhere.
    pub(super) fn is_detached(&self) -> bool {
        let same = |file: &File, path: PathBuf| match (file.metadata(), fs::metadata(path)) {
            (Ok(open), Ok(named)) => open.ino() == named.ino() && open.dev() == named.dev(),
            (_, Err(e)) => e.kind() != io::ErrorKind::NotFound,
            _ => true,
        };
        !(same(&self.file, self.layout.database().join("db"))
            && same(&self.sidecar, self.layout.sidecar()))
    }

    /// Ends it. sled flushes once more, which may fail or panic: nothing depends on that.
    pub(super) fn close(self) {
        let _ = catch_unwind(AssertUnwindSafe(move || drop(self)));
    }
}
