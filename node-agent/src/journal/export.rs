//! The journal as JSON, for people and their tools: read from a copy, so it also works
//! beside an agent that runs, on a disk that is read-only, and on a damaged journal.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::format::{HISTORY_TREE, Records};
use super::recover::{expect_promised, open_db, read};
use super::store::{Failure, Layout, caught};
use super::{files, now_unix_ms};
use crate::error::{Error, Result};

/// A copy of a database that is being written to may be torn.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// Everything in the journal below `state_dir`. `problem` says why it is not to be relied
/// on, if so.
///
/// # Errors
/// If it cannot be read at all.
pub fn export(state_dir: &Path) -> Result<Value> {
    let layout = Layout { state_dir: state_dir.to_owned() };
    let database = layout.database();
    if !database.is_dir() {
        return Err(Error::NotFound(format!("there is no journal at {}", database.display())));
    }
    let mut attempt = 1;
    loop {
        let scratch = Scratch::new()?;
        files::copy(&database, &scratch.0)
            .map_err(Error::kernel("copy the journal to", scratch.0.display()))?;
        match dump(&scratch.0, &layout) {
            Ok(dump) if dump["problem"].is_null() || attempt == ATTEMPTS => return Ok(dump),
            Err(failure) if attempt == ATTEMPTS => {
                return Err(Error::Unavailable(format!(
                    "the journal at {} cannot be read: {failure}",
                    database.display()
                )));
            }
            _ => {
                attempt += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn dump(copy: &Path, layout: &Layout) -> Result<Value, Failure> {
    let db = open_db(copy)?;
    let (sequence, records, problem) = match caught("read", || read(&db)) {
        Ok((manifest, records)) => {
            let whole = layout.promised().and_then(|p| expect_promised(manifest.sequence, p));
            (manifest.sequence, records, whole.err().map(|failure| failure.to_string()))
        }
        Err(failure) => (0, Records::new(), Some(failure.to_string())),
    };
    let mut tables: BTreeMap<&str, Map<String, Value>> =
        ["sessions", "stages"].map(|table| (table, Map::new())).into();
    for (key, json) in &records {
        let (table, key) = key.split_once('/').unwrap_or(("other", key));
        let value = serde_json::from_slice(json).unwrap_or(Value::Null);
        tables.entry(table).or_default().insert(key.to_owned(), value);
    }
    let history = caught("read the history", || history(&db)).unwrap_or_default();
    Ok(json!({
        "version": 1,
        "sequence": sequence,
        "problem": problem,
        "sessions": tables["sessions"],
        "stages": tables["stages"],
        "history": history,
    }))
}

fn history(db: &sled::Db) -> Result<Map<String, Value>, Failure> {
    let mut volumes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in db.open_tree(HISTORY_TREE)?.iter() {
        let (key, value) = entry?;
        let key = String::from_utf8_lossy(&key);
        let volume = key.split('/').next().unwrap_or_default().to_owned();
        volumes.entry(volume).or_default().extend(serde_json::from_slice::<Value>(&value).ok());
    }
    Ok(volumes.into_iter().map(|(volume, entries)| (volume, Value::Array(entries))).collect())
}

/// A directory of ours that goes away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("rds-csi-journal-{}-{}", std::process::id(), now_unix_ms());
        let path = std::env::temp_dir().join(name);
        // Not a directory that somebody has put there, and for nobody else to read.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(Error::kernel("create", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = files::remove(&self.0);
    }
}
