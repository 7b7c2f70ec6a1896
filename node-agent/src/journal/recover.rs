//! Opening a database: whole, or repaired, or set aside, or not at all for now.
//!
//! A database is believed only if all of it is what was written last. One that is not is
//! kept for people, and the agent begins anew: what is in use is known from the kernel and
//! from the copies in `/run`, and a stale record could make it format what holds data.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tracing::{error, warn};

use super::format::{MANIFEST_KEY, Manifest, RECORDS_TREE, Records, SCHEMA, SCHEMA_KEY, unseal};
use super::store::{Failure, Layout, Store, caught};
use super::{Opened, files, migrate, now_unix_ms};

/// sled's page cache, in bytes; its own default is a gigabyte. A host's records are kilobytes.
const CACHE: u64 = 4 << 20;
/// A database that this process has just closed is let go of a moment later.
const LET_GO_ATTEMPTS: u32 = 10;
const LET_GO_PAUSE: Duration = Duration::from_millis(50);

/// Opens it, whatever state it is in; what is found is what was written last, or nothing.
/// `known` are the records if they are known already: then the database is made to say so,
/// whatever it holds.
///
/// # Errors
/// [`Failure::Later`] while the disk does not allow it.
pub(super) fn open(
    layout: &Layout,
    known: Option<&Records>,
) -> Result<(Store, Records, Opened), Failure> {
    private(&layout.state_dir)
        .map_err(|e| Failure::Later(format!("create the state directory: {e}")))?;
    let mut opened = Opened::Intact;
    let tried = match try_open(layout, known) {
        Err(Failure::Damaged(reason)) => {
            let (tried, how) = mend(layout, known, reason)?;
            opened = how;
            Ok(tried)
        }
        other => other,
    };
    let (mut store, found) = tried?;
    let records = known.unwrap_or(&found);
    // Also when nothing changes: a disk that does not take a write is found out now.
    store.apply(&found, records)?;
    Ok((store, records.clone(), opened))
}

/// A directory for root alone: it tells host NQNs, which open volumes. One that is there and empty was
/// made for the agent by whoever starts it, as kubelet does (for all to read); one that has
/// something in it is somebody's own choice, of which `doctor` tells.
fn private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let open_to_others = fs::metadata(dir)?.permissions().mode() & 0o077 != 0;
    if open_to_others && fs::read_dir(dir)?.next().is_none() {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Files that sled left half-written are removed, then the whole database, until one opens.
fn mend(
    layout: &Layout,
    known: Option<&Records>,
    reason: String,
) -> Result<((Store, Records), Opened), Failure> {
    let later = |what: &str, e: std::io::Error| Failure::Later(format!("{what}: {e}"));
    let database = layout.database();
    let aside = free_name(&layout.state_dir, "journal.damaged");
    let leftovers = files::leftovers(&database);
    if !leftovers.is_empty() {
        files::copy(&database, &aside).map_err(|e| {
            // A part of it would only take more of the space that is lacking.
            let _ = files::remove(&aside);
            later("keep a copy of the journal", e)
        })?;
        for path in &leftovers {
            fs::remove_file(path).map_err(|e| later("remove a leftover snapshot", e))?;
        }
        match try_open(layout, known) {
            Ok(opened) => {
                warn!(%reason, copy = %aside.display(), "the journal was mended by removing sled's leftover snapshots");
                return Ok((opened, Opened::Mended(aside, reason)));
            }
            Err(Failure::Later(reason)) => return Err(Failure::Later(reason)),
            Err(Failure::Damaged(_)) => files::remove(&database)
                .map_err(|e| later("remove the journal, of which a copy was kept", e))?,
        }
    } else if database.exists() {
        fs::rename(&database, &aside).map_err(|e| later("set the damaged journal aside", e))?;
    }
    error!(%reason, aside = %aside.display(), "the journal is not what was written last; it is set aside, and sessions are taken over from the kernel");
    layout.forget_promise();
    match try_open(layout, known) {
        Ok(opened) => Ok((opened, Opened::SetAside(aside, reason))),
        // An empty directory that cannot be opened is the disk's fault.
        Err(failure) => Err(Failure::Later(failure.to_string())),
    }
}

fn try_open(layout: &Layout, known: Option<&Records>) -> Result<(Store, Records), Failure> {
    let db = open_db(&layout.database())?;
    let db = migrate::run(db, layout)?;
    let read = caught("read", || read(&db));
    let (manifest, records) = read?;
    let sequence = match known {
        None => {
            expect_promised(manifest.sequence, layout.promised()?)?;
            manifest.sequence
        }
        // The truth is in memory: what lies here is only what has to be changed.
        Some(_) => manifest.sequence.max(layout.promised().unwrap_or(0)),
    };
    Ok((Store::new(db, layout.clone(), sequence)?, records))
}

/// Whether the database has all the changes that it was seen to have. It may have one more,
/// of an agent that was killed before it wrote that down.
pub(super) fn expect_promised(sequence: u64, promised: u64) -> Result<(), Failure> {
    if sequence < promised {
        return Err(Failure::Damaged(format!(
            "it has rolled back from change {promised} to {sequence}"
        )));
    }
    if promised == 0 && sequence > 1 {
        return Err(Failure::Damaged(format!(
            "it has {sequence} changes, but journal.sequence, which would tell whether these are all, is missing"
        )));
    }
    Ok(())
}

/// Opens sled's files.
pub(super) fn open_db(dir: &Path) -> Result<sled::Db, Failure> {
    let mut attempt = 1;
    loop {
        let opened =
            caught("open", || Ok(sled::Config::new().path(dir).cache_capacity(CACHE).open()?));
        match opened {
            Err(Failure::Later(reason))
                if reason.contains("acquire lock") && attempt < LET_GO_ATTEMPTS =>
            {
                attempt += 1;
                thread::sleep(LET_GO_PAUSE);
            }
            other => return other,
        }
    }
}

/// All records, if they are all there.
pub(super) fn read(db: &sled::Db) -> Result<(Manifest, Records), Failure> {
    let damaged = Failure::Damaged;
    match db.get(SCHEMA_KEY)? {
        Some(found) if found.as_ref() == SCHEMA.to_be_bytes() => {}
        // Made a moment ago, and not written to yet.
        None if db.is_empty() && db.tree_names().len() == 1 => {
            db.insert(SCHEMA_KEY, &SCHEMA.to_be_bytes())?;
            return Ok((Manifest::of(&Records::new(), 0), Records::new()));
        }
        found => {
            let version = found.and_then(|v| Some(u32::from_be_bytes(v.as_ref().try_into().ok()?)));
            return Err(damaged(match version {
                Some(v) => format!("its layout is version {v}, this agent knows {SCHEMA}"),
                None => "it does not tell its layout".into(),
            }));
        }
    }
    let mut records = Records::new();
    let mut manifest = None;
    for entry in db.open_tree(RECORDS_TREE)?.iter() {
        let (key, value) = entry?;
        let key = std::str::from_utf8(&key).map_err(|e| damaged(format!("a key: {e}")))?;
        if key == MANIFEST_KEY {
            manifest = Some(Manifest::decode(&value).map_err(damaged)?);
        } else {
            records.insert(key.to_owned(), unseal(key, &value).map_err(damaged)?.to_vec());
        }
    }
    let Some(manifest) = manifest else {
        // The layout is written before the first change.
        return match records.is_empty() {
            true => Ok((Manifest::of(&records, 0), records)),
            false => Err(damaged("its manifest is missing".into())),
        };
    };
    if Manifest::of(&records, manifest.sequence) != manifest {
        return Err(damaged(format!(
            "its {} records are not the {} of change {}",
            records.len(),
            manifest.records,
            manifest.sequence
        )));
    }
    Ok((manifest, records))
}

fn free_name(state_dir: &Path, stem: &str) -> PathBuf {
    let now = now_unix_ms();
    let name = |n: i64| state_dir.join(format!("{stem}-{}", now + n));
    (0..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(0))
}
