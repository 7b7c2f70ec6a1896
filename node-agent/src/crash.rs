//! Named points at which a test kills the agent, to see that the next start understands
//! what it finds.
//!
//! In a normal build [`point`] is empty. With the feature `crash-points`, the environment
//! variable `RDS_CSI_CRASH_AT=NAME[:N][,NAME[:N]...]` makes the process SIGKILL itself when it
//! passes one of the named points for the N-th time; `tests/scenarios` does that for each
//! name in [`POINTS`], under file systems and raw volumes. `NAME!` panics there instead.

/// Every point, in the order in which a volume's life passes them.
pub const POINTS: &[&str] = &[
    // Each change of the journal: nothing of it is in the database yet; in its memory; in
    // the page cache; on the disk; and counted in the sidecar.
    "journal.begin",
    "journal.inserted",
    "journal.flushed",
    "journal.synced",
    "journal.sealed",
    // A session's copy in /run is written, its journal record is not.
    "session.copied",
    "session.begun",
    "connect.begin",
    "connect.done",
    "map.checked",
    "map.created",
    "map.loaded",
    "map.suspended",
    "map.done",
    "stage.recorded",
    "stage.attached",
    "mkfs.recorded",
    "mkfs.done",
    "stage.content",
    "mount.recorded",
    "mount.directory",
    "mount.done",
    "stage.done",
    "publish.recorded",
    "publish.grouped",
    "publish.created",
    "publish.bound",
    "publish.sealed",
    "publish.done",
    "expand.sized",
    "expand.grown",
    "unpublish.unmounted",
    "unpublish.removed",
    "unpublish.done",
    "unstage.recorded",
    "unstage.unmounted",
    "detach.unshielded",
    "detach.recorded",
    "detach.deleted",
    "detach.forgotten",
    "unstage.detached",
    "unstage.done",
];

/// Passes a point.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_name: &'static str) {}

/// Passes a point, and ends here if that was asked for.
#[cfg(feature = "crash-points")]
pub fn point(name: &'static str) {
    if armed::is_due(&format!("{name}!")) {
        panic!("as asked for at {name}");
    }
    if armed::is_due(name) {
        // To the log, for whoever reads the test's results; not through tracing, which may
        // hold a lock that this thread has.
        eprintln!("crash point {name}");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};

    static ARMED: LazyLock<Mutex<HashMap<String, u32>>> = LazyLock::new(|| {
        let wanted = std::env::var("RDS_CSI_CRASH_AT").unwrap_or_default();
        let passages = wanted.split(',').filter(|part| !part.is_empty()).map(|part| {
            let (name, count) = part.split_once(':').unwrap_or((part, "1"));
            (name.to_owned(), count.parse().unwrap_or(1))
        });
        Mutex::new(passages.collect())
    });

    /// Counts down the passages.
    pub(super) fn is_due(name: &str) -> bool {
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left) = armed.get_mut(name) else { return false };
        // Once: a panic is survived, and the point passed again.
        let due = *left == 1;
        *left = left.saturating_sub(1);
        due
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn used_below(dir: &Path, used: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                used_below(&path, used);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = text.split("crash::point(\"").skip(1);
                used.extend(calls.filter_map(|c| Some(c.split_once('"')?.0.to_owned())));
            }
        }
    }

    #[test]
    fn the_list_names_each_point_in_the_source_and_no_other() {
        let mut used = BTreeSet::new();
        used_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut used);
        let listed: BTreeSet<String> = POINTS.iter().map(|p| (*p).to_owned()).collect();
        assert_eq!(listed.len(), POINTS.len(), "a name is listed twice");
        assert_eq!(used, listed);
    }
}
