//! Whatever happens to the files, the journal opens with exactly what was written last, or
//! is set aside and kept. It never ends the process, and never tells what is not true.
//!
//! `RDS_CSI_DAMAGE_SEEDS=20000` tries more seeds; `RDS_CSI_DAMAGE_SEED=17` one of them.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const SEEDS: u64 = 150;

type Said = BTreeMap<String, String>;

/// A journal with a past: records of many sizes, changed and removed, and some history.
fn a_journal(dir: &Path) -> Said {
    let mut rng = StdRng::seed_from_u64(1);
    let mut said = Said::new();
    let (mut journal, _) = Journal::open(dir).unwrap();
    for n in 0..120u32 {
        let key = format!("pvc-{}", rng.random_range(0..12));
        if rng.random_ratio(1, 5) {
            journal.remove(Table::Stages, &key).unwrap();
            said.remove(&key);
        } else {
            let value = format!("{n} {}", "x".repeat(rng.random_range(0..1500)));
            journal.put(Table::Stages, &key, &value).unwrap();
            said.insert(key.clone(), value);
        }
        journal.remember(&key, i64::from(n), &n).unwrap();
        if n % 40 == 39 {
            drop(journal);
            journal = Journal::open(dir).unwrap().0;
        }
    }
    said
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// Opens what was damaged; true if it was believed.
fn opens_or_is_set_aside(dir: &Path, said: &Said, how: &str) -> bool {
    let (journal, opened) = Journal::open(dir).unwrap_or_else(|e| panic!("{how}: {e}"));
    let read: Said = journal.all(Table::Stages).unwrap().into_iter().collect();
    let believed = match &opened {
        Opened::Intact => true,
        Opened::Mended(copy, _) => {
            assert!(copy.is_dir(), "{how}: no copy is kept");
            true
        }
        Opened::SetAside(aside, _) => {
            assert!(aside.is_dir(), "{how}: it is not kept");
            assert!(read.is_empty(), "{how}: {read:?}");
            false
        }
    };
    if believed {
        assert!(&read == said, "{how}: {opened:?}, but it says something else");
    }
    // Whatever it was, it works from here on, and next time.
    journal.put(Table::Stages, "new", &"n").unwrap();
    drop(journal);
    let (journal, opened) = Journal::open(dir).unwrap();
    assert_eq!(opened, Opened::Intact, "{how}");
    let new = journal.get::<String>(Table::Stages, "new").unwrap();
    assert_eq!(new.as_deref(), Some("n"), "{how}");
    believed
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn flipped_bytes() {
    let template = tempfile::tempdir().unwrap();
    let said = a_journal(template.path());
    let seeds = match number("RDS_CSI_DAMAGE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RDS_CSI_DAMAGE_SEEDS").unwrap_or(SEEDS),
    };
    let (mut believed, total) = (0, seeds.end - seeds.start);
    for seed in seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        files::copy(template.path(), dir.path()).unwrap();
        let files = files_below(dir.path());
        for _ in 0..[1, 1, 3, 40][rng.random_range(0..4usize)] {
            let path = &files[rng.random_range(0..files.len())];
            let mut bytes = fs::read(path).unwrap();
            // Mostly where something is written: the rest of a segment is zeros.
            let written = bytes.iter().rposition(|b| *b != 0).map_or(1, |at| at + 1);
            let within = if rng.random_ratio(9, 10) { written } else { bytes.len() };
            if !bytes.is_empty() {
                let at = rng.random_range(0..within.min(bytes.len()).max(1));
                bytes[at] ^= rng.random_range(1..=255u8);
                fs::write(path, bytes).unwrap();
            }
        }
        believed += u64::from(opens_or_is_set_aside(dir.path(), &said, &format!("seed {seed}")));
    }
    println!("{believed} of {total} were still believed");
}

#[test]
fn truncated_files() {
    let template = tempfile::tempdir().unwrap();
    let said = a_journal(template.path());
    for (n, path) in files_below(template.path()).into_iter().enumerate() {
        let whole = fs::metadata(&path).unwrap().len();
        // Nothing, a part of a header, a header, a part of a message, of a segment, a whole
        // segment, all but the end.
        let lengths = [0, 1, 19, 20, 64, 1000, 4096, 65_536, 524_288, whole / 2];
        for length in lengths.into_iter().chain([whole.saturating_sub(1)]) {
            if length >= whole {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            files::copy(template.path(), dir.path()).unwrap();
            let cut = &files_below(dir.path())[n];
            fs::File::options().write(true).open(cut).unwrap().set_len(length).unwrap();
            opens_or_is_set_aside(dir.path(), &said, &format!("{path:?} cut to {length}"));
        }
    }
}

#[test]
fn missing_and_leftover_files() {
    let template = tempfile::tempdir().unwrap();
    let said = a_journal(template.path());
    for (n, path) in files_below(template.path()).into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        files::copy(template.path(), dir.path()).unwrap();
        fs::remove_file(&files_below(dir.path())[n]).unwrap();
        opens_or_is_set_aside(dir.path(), &said, &format!("without {path:?}"));
    }
    let leftovers = ["snap.00000000000000FF", "snap.00000000000000FF.in___motion", "snap.x"];
    for name in leftovers {
        for content in ["", "half a snapshot", &"z".repeat(5000)] {
            let dir = tempfile::tempdir().unwrap();
            files::copy(template.path(), dir.path()).unwrap();
            fs::write(dir.path().join("journal").join(name), content).unwrap();
            let how = format!("{name} with {} bytes", content.len());
            assert!(opens_or_is_set_aside(dir.path(), &said, &how), "{how} costs the journal");
        }
    }
}
