//! Brings a database of an earlier layout to the present one, step by step, when it is
//! opened.
//!
//! A copy of the old one is kept until all steps are done. Each step is one transaction, so
//! a kill at any moment leaves either layout whole. A layout that is newer than this agent is no
//! matter of this module: `recover` sets it aside whole.

use std::fs;

use sled::Transactional;
use sled::transaction::{ConflictableTransactionError, TransactionError};
use tracing::{info, warn};

use super::files;
use super::format::{MANIFEST_KEY, Manifest, RECORDS_TREE, Records, SCHEMA, SCHEMA_KEY, seal};
use super::recover::open_db;
use super::store::{Failure, Layout, caught};

type Step = fn(&sled::Db) -> Result<(), Failure>;

/// From which layout, and how to the next.
const MIGRATIONS: &[(u32, Step)] = &[(1, one_table_and_a_manifest)];

/// Trees of layouts that are past.
const PAST_TREES: &[&str] = &["sessions", "stages"];

pub(super) fn run(db: sled::Db, layout: &Layout) -> Result<sled::Db, Failure> {
    let copy = layout.state_dir.join("journal.before-migration");
    let Some(from) = outdated(&db)? else {
        tidy(&db);
        // Of a migration whose last step was interrupted.
        let _ = files::remove(&copy);
        return Ok(db);
    };
    info!(from, to = SCHEMA, copy = %copy.display(), "the journal is brought to the present layout");
    let later = |e: std::io::Error| Failure::Later(format!("keep a copy of the old journal: {e}"));
    // Copied while sled does not write to it.
    caught("close", move || {
        drop(db);
        Ok(())
    })?;
    if copy.exists() {
        files::remove(&copy).map_err(later)?;
    }
    files::copy(&layout.database(), &copy).map_err(later)?;
    let db = open_db(&layout.database())?;
    for (_, step) in MIGRATIONS.iter().filter(|(of, _)| *of >= from) {
        caught("migrate", || {
            step(&db)?;
            db.flush()?;
            Ok(())
        })?;
    }
    let synced = fs::File::open(layout.database().join("db")).and_then(|f| f.sync_all());
    synced.map_err(|e| Failure::Later(format!("sync the migrated journal: {e}")))?;
    tidy(&db);
    if let Err(error) = files::remove(&copy) {
        warn!(%error, copy = %copy.display(), "the copy of the old journal is not needed any more, but could not be removed");
    }
    Ok(db)
}

/// The layout, if it is one that can be brought up.
fn outdated(db: &sled::Db) -> Result<Option<u32>, Failure> {
    caught("read the layout", || {
        let version = db.get(SCHEMA_KEY)?;
        let version = version.and_then(|v| Some(u32::from_be_bytes(v.as_ref().try_into().ok()?)));
        Ok(version.filter(|v| MIGRATIONS.iter().any(|(of, _)| of == v)))
    })
}

fn tidy(db: &sled::Db) {
    for tree in PAST_TREES {
        if db.tree_names().iter().any(|name| name == tree.as_bytes()) {
            let _ = caught("drop an old table", || Ok(db.drop_tree(tree)?));
        }
    }
}

/// 1 → 2. Layout 1 had a tree for each table, bare JSON as values, and the number of changes
/// in the default tree: a record that had fallen back to an older state was believed.
fn one_table_and_a_manifest(db: &sled::Db) -> Result<(), Failure> {
    let mut records = Records::new();
    for table in PAST_TREES {
        for entry in db.open_tree(table)?.iter() {
            let (key, value) = entry?;
            let key = format!("{table}/{}", String::from_utf8_lossy(&key));
            match serde_json::from_slice::<serde_json::Value>(&value) {
                Ok(_) => drop(records.insert(key, value.to_vec())),
                // Layout 1 passed over these, too.
                Err(error) => {
                    warn!(key, %error, "a record cannot be understood and is left behind")
                }
            }
        }
    }
    let sequence = db.get("sequence")?.and_then(|v| v.as_ref().try_into().ok());
    let sequence = sequence.map_or(0, u64::from_be_bytes);
    let manifest = Manifest::of(&records, sequence).encode().map_err(Failure::Damaged)?;
    let target = db.open_tree(RECORDS_TREE)?;
    let defaults: &sled::Tree = db;
    let done = (defaults, &target).transaction(|(defaults, target)| {
        for (key, value) in &records {
            target.insert(key.as_bytes(), seal(key, value))?;
        }
        target.insert(MANIFEST_KEY, manifest.clone())?;
        defaults.insert(SCHEMA_KEY, &SCHEMA.to_be_bytes())?;
        defaults.remove("sequence")?;
        Ok::<_, ConflictableTransactionError<()>>(())
    });
    match done {
        Ok(()) => Ok(()),
        Err(TransactionError::Storage(error)) => Err(error.into()),
        Err(TransactionError::Abort(())) => Err(Failure::Later("the migration was aborted".into())),
    }
}
