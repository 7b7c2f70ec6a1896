#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
use std::fs;
use std::path::Path;
use std::time::Instant;

use super::*;

fn open(dir: &Path) -> (Journal, Opened) {
    Journal::open(dir).unwrap()
}

fn stages(journal: &Journal) -> Vec<(String, u32)> {
    journal.all::<u32>(Table::Stages).unwrap()
}

#[test]
fn records_survive_and_removed_ones_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact);
    journal.put(Table::Stages, "a", &1u32).unwrap();
    journal.put(Table::Stages, "b", &2u32).unwrap();
    journal.put(Table::Sessions, "b", &"another table").unwrap();
    journal.remove(Table::Stages, "a").unwrap();
    drop(journal);
    let (journal, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact);
    assert_eq!(stages(&journal), vec![("b".to_owned(), 2)]);
    assert_eq!(journal.get::<u32>(Table::Stages, "a").unwrap(), None);
    assert!(journal.get::<u32>(Table::Sessions, "b").is_err(), "not understood is not absent");
}

#[test]
fn a_directory_that_was_made_for_the_agent_becomes_private_and_another_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let made = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let (by_kubelet, somebodys) = (made("by-kubelet"), made("somebodys"));
    fs::write(somebodys.join("file"), "").unwrap();
    for path in [&by_kubelet, &somebodys, &dir.path().join("none")] {
        drop(open(path));
    }
    assert_eq!(mode(&by_kubelet), 0o700);
    assert_eq!(mode(&dir.path().join("none")), 0o700);
    assert_eq!(mode(&somebodys), 0o755);
}

#[test]
fn a_damaged_journal_is_set_aside_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    journal.put(Table::Stages, "a", &1u32).unwrap();
    drop(journal);
    let damaged = dir.path().join("journal/db");
    let size = fs::metadata(&damaged).unwrap().len();
    fs::write(&damaged, vec![0x5a; usize::try_from(size).unwrap()]).unwrap();
    let (journal, opened) = open(dir.path());
    let Opened::SetAside(path, _) = opened else { panic!("{opened:?}") };
    assert!(path.join("db").exists(), "the damaged journal is kept for people to look at");
    assert_eq!(journal.get::<u32>(Table::Stages, "a").unwrap(), None);
}

#[test]
fn a_silent_roll_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    journal.put(Table::Stages, "a", &1u32).unwrap();
    drop(journal);
    fs::write(dir.path().join("journal.sequence"), "99").unwrap();
    let (_, opened) = open(dir.path());
    assert!(matches!(opened, Opened::SetAside(_, reason) if reason.contains("rolled back")));
}

#[test]
fn one_record_that_fell_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    journal.put(Table::Stages, "a", &1u32).unwrap();
    journal.put(Table::Stages, "a", &2u32).unwrap();
    drop(journal);
    // Whole, sealed, once written: only older than the manifest says.
    let db = sled::open(dir.path().join("journal")).unwrap();
    let tree = db.open_tree(format::RECORDS_TREE).unwrap();
    tree.insert("stages/a", format::seal("stages/a", b"1")).unwrap();
    db.flush().unwrap();
    drop((tree, db));
    let (journal, opened) = open(dir.path());
    assert!(matches!(&opened, Opened::SetAside(_, r) if r.contains("are not")), "{opened:?}");
    assert!(stages(&journal).is_empty());
}

#[test]
fn a_layout_that_is_not_known_is_set_aside_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let db = sled::open(dir.path().join("journal")).unwrap();
    db.insert("schema", &99u32.to_be_bytes()).unwrap();
    db.open_tree("anything").unwrap().insert("k", "v").unwrap();
    db.flush().unwrap();
    drop(db);
    let (_, opened) = open(dir.path());
    let Opened::SetAside(path, reason) = opened else { panic!("{opened:?}") };
    assert!(reason.contains("version 99"), "{reason}");
    let kept = sled::open(path).unwrap();
    assert_eq!(kept.open_tree("anything").unwrap().get("k").unwrap().unwrap(), "v");
}

/// A journal as the first release wrote it.
fn layout_1(dir: &Path) {
    let db = sled::open(dir.join("journal")).unwrap();
    db.insert("schema", &1u32.to_be_bytes()).unwrap();
    db.insert("sequence", &41u64.to_be_bytes()).unwrap();
    db.open_tree("sessions").unwrap().insert("s", "\"session\"").unwrap();
    let stages = db.open_tree("stages").unwrap();
    stages.insert("a", "1").unwrap();
    stages.insert("b", "2").unwrap();
    stages.insert("c", "{ not JSON").unwrap();
    let history = db.open_tree("history").unwrap();
    history.insert("v/000000000000005/00000000000000000001", "5").unwrap();
    db.flush().unwrap();
    fs::write(dir.join("journal.sequence"), "41").unwrap();
}

#[test]
fn layout_1_is_brought_to_the_present_one() {
    let dir = tempfile::tempdir().unwrap();
    layout_1(dir.path());
    for _ in 0..2 {
        let (journal, opened) = open(dir.path());
        assert_eq!(opened, Opened::Intact);
        assert_eq!(stages(&journal), vec![("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let session = journal.get::<String>(Table::Sessions, "s").unwrap();
        assert_eq!(session.as_deref(), Some("session"));
        assert_eq!(journal.history::<i64>("v").unwrap(), [5]);
        let store = journal.store();
        assert!(store.as_ref().unwrap().sequence > 41, "the count of changes goes on");
        let trees = store.as_ref().unwrap().db().tree_names();
        assert!(!trees.iter().any(|t| t == b"stages"), "{trees:?}");
        assert!(!dir.path().join("journal.before-migration").exists());
    }
}

#[test]
fn an_interrupted_migration_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    layout_1(dir.path());
    // Killed while the copy was made: a part of it lies there.
    let copy = dir.path().join("journal.before-migration");
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("db"), "half").unwrap();
    let (journal, _) = open(dir.path());
    assert_eq!(stages(&journal).len(), 2);
    assert!(!copy.exists());
}

#[test]
fn a_rolled_back_layout_1_is_not_migrated_into_trust() {
    let dir = tempfile::tempdir().unwrap();
    layout_1(dir.path());
    fs::write(dir.path().join("journal.sequence"), "42").unwrap();
    let (journal, opened) = open(dir.path());
    assert!(matches!(opened, Opened::SetAside(..)), "{opened:?}");
    assert!(stages(&journal).is_empty());
}

#[test]
fn a_journal_that_another_agent_has_open_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path());
    first.put(Table::Stages, "a", &1u32).unwrap();
    let error = Journal::open(dir.path()).err().unwrap();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.to_string().contains("journal"), "{error}");
    first.put(Table::Stages, "b", &2u32).unwrap();
    assert_eq!(stages(&first).len(), 2);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing was set aside");
}

#[test]
fn a_journal_that_is_deleted_under_the_agent_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (journal, _) = open(&state);
    journal.put(Table::Stages, "a", &1u32).unwrap();
    fs::remove_dir_all(&state).unwrap();
    // Noticed at a change.
    journal.put(Table::Stages, "b", &2u32).unwrap();
    assert!(state.join("journal/db").exists());
    fs::remove_dir_all(&state).unwrap();
    // And without one.
    journal.tend();
    assert!(state.join("journal/db").exists());
    drop(journal);
    let (journal, opened) = open(&state);
    assert_eq!(opened, Opened::Intact);
    assert_eq!(stages(&journal), vec![("a".to_owned(), 1), ("b".to_owned(), 2)]);
}

#[test]
fn the_agent_starts_without_its_disk_and_opens_the_journal_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (journal, _) = open(&state);
    journal.put(Table::Stages, "a", &1u32).unwrap();
    drop(journal);
    // Away: a file is in its place, so that neither root nor anybody else can open it.
    let away = dir.path().join("away");
    fs::rename(&state, &away).unwrap();
    fs::write(&state, "").unwrap();
    let journal = Journal::start(&state).unwrap();
    wait_for(|| journal.progress().borrow().failures > 0);
    for error in [
        journal.put(Table::Stages, "b", &2u32).unwrap_err(),
        journal.get::<u32>(Table::Stages, "a").unwrap_err(),
        journal.all::<u32>(Table::Stages).unwrap_err(),
        journal.history::<u32>("v").unwrap_err(),
    ] {
        assert_eq!(error.code(), tonic::Code::Unavailable);
        assert!(error.to_string().contains(state.to_str().unwrap()), "{error}");
    }
    assert!(journal.health().problem.is_some());
    fs::remove_file(&state).unwrap();
    fs::rename(&away, &state).unwrap();
    wait_for(|| journal.progress().borrow().openings > 0);
    assert_eq!(journal.health().problem, None);
    assert_eq!(stages(&journal), vec![("a".to_owned(), 1)], "what was there, and nothing else");
    journal.put(Table::Stages, "b", &2u32).unwrap();
}

fn wait_for(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A disk that takes no more: the kernel refuses to let files grow, in a process of its own,
/// since that holds for all of a process.
#[test]
fn after_a_failed_write_nothing_is_half_done_and_later_ones_work() {
    const CHILD: &str = "RDS_CSI_TEST_FULL_DISK";
    if let Some(dir) = std::env::var_os(CHILD) {
        return with_a_full_disk(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "journal::tests::after_a_failed_write_nothing_is_half_done_and_later_ones_work";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (journal, opened) = open(dir.path());
    assert_eq!(opened, Opened::Intact);
    assert_eq!(stages(&journal), vec![("a".to_owned(), 1), ("c".to_owned(), 3)]);
}

fn with_a_full_disk(dir: &Path) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigSet, Signal};
    let mut refused = SigSet::empty();
    refused.add(Signal::SIGXFSZ);
    refused.thread_block().unwrap();
    let (journal, _) = open(dir);
    journal.put(Table::Stages, "a", &1u32).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 64, hard).unwrap();
    for _ in 0..3 {
        let error = journal.put(Table::Stages, "b", &2u32).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
    }
    assert!(journal.health().problem.is_some());
    assert_eq!(stages(&journal), vec![("a".to_owned(), 1)], "reading needs no disk");
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    journal.put(Table::Stages, "c", &3u32).unwrap();
    assert_eq!(journal.health().problem, None);
    assert_eq!(journal.health().opened, Some(Opened::Intact), "nothing had to be set aside");
}

#[test]
fn history_is_bounded_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    for n in 0..(history::PER_VOLUME as i64 + 20) {
        journal.remember("v", 1000 + n, &n).unwrap();
    }
    let kept: Vec<i64> = journal.history("v").unwrap();
    assert_eq!(kept.len(), history::PER_VOLUME);
    assert_eq!(kept.first(), Some(&20));
    assert!(kept.is_sorted());
    for n in 0..history::VOLUMES as i64 {
        journal.remember(&format!("w{n}"), 10_000 + n, &n).unwrap();
    }
    assert!(journal.history::<i64>("v").unwrap().is_empty(), "the oldest volume is forgotten");
    assert_eq!(journal.history::<i64>("w0").unwrap(), [0]);
}

#[test]
fn the_export_tells_all_beside_a_running_agent() {
    let dir = tempfile::tempdir().unwrap();
    assert!(export(dir.path()).is_err());
    let (journal, _) = open(dir.path());
    journal.put(Table::Stages, "a", &1u32).unwrap();
    journal.remember("a", 5, &"live").unwrap();
    // History is written when sled comes to it.
    journal.put(Table::Sessions, "a", &2u32).unwrap();
    let told = export(dir.path()).unwrap();
    assert_eq!(told["problem"], serde_json::Value::Null, "{told}");
    assert_eq!(told["stages"]["a"], 1);
    assert_eq!(told["sessions"]["a"], 2);
    assert_eq!(told["history"]["a"][0], "live");
    fs::write(dir.path().join("journal.sequence"), "99").unwrap();
    assert!(export(dir.path()).unwrap()["problem"].as_str().unwrap().contains("rolled back"));
}
