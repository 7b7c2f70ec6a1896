//! The corpus of `controller/tests/corpus`: whole texts that the parsers meet or must survive.
//!
//! A file's name begins with what has to come out. Beside that, each is damaged in many ways:
//! nothing may panic, and damage must never turn into absence: an answer that says "there is
//! none" says so in its own text. A text that once made trouble is added here.
#![allow(clippy::unwrap_used)]
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;

use super::disk::{DISK_PROPS, DiskItem, DiskUse, FileItem};
use super::error::{Verdict, read_answer};
use super::ssh::answer;
use super::ssh::console::Sentinel;
use super::version::{FLOOR, Version};
use crate::config::RdsUrl;
use crate::credentials::ssh::HostKeys;
use crate::rules::owner::OwnerTag;

/// Name and content of each file of a folder.
fn corpus(folder: &str) -> Vec<(String, Vec<u8>)> {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let files = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = files
        .map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap()))
        .collect();
    all.sort();
    assert!(all.len() > 5, "{} is nearly empty", dir.display());
    all
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Rows(rows) if rows.is_empty() => "empty",
        Verdict::Rows(_) => "rows",
        Verdict::Unauthorized => "unauthorized",
        Verdict::PolicyMissing(_) => "policy",
        Verdict::NoSuchItem => "nosuch",
        Verdict::AlreadyExists(_) => "exists",
        Verdict::InvalidValue(_) => "invalid",
        Verdict::Refused(_) => "refused",
        Verdict::Nonsense(_) => "nonsense",
        Verdict::Cut(_) => "cut",
    }
}

fn good(is_good: bool) -> &'static str {
    if is_good { "good" } else { "bad" }
}

/// What a parser makes of one text of its folder.
fn outcome(folder: &str, name: &str, data: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(data);
    match folder {
        "rest" => {
            let status = name.split('-').nth(1).unwrap().parse().unwrap();
            word(&read_answer(status, data, true))
        }
        "ssh" => word(&read_ssh(data)),
        "item" => match read_answer(200, data, true) {
            Verdict::Rows(rows) => {
                for row in &rows {
                    let _ = (DiskUse::read(row), FileItem::read(row));
                }
                good(rows.iter().all(|row| DiskItem::read(row).is_ok()))
            }
            _ => "bad",
        },
        "tag" => {
            let tag = OwnerTag::parse(&text);
            if let Some(tag) = &tag {
                assert_eq!(tag.to_string(), text, "read as another text");
            }
            good(tag.is_some())
        }
        "version" => match Version::parse(&text) {
            Some(version) if version < FLOOR => "old",
            version => good(version.is_some()),
        },
        "url" => good(text.parse::<RdsUrl>().is_ok()),
        "host-keys" => good(HostKeys::parse(&text).is_ok()),
        _ => unreachable!("{folder}"),
    }
}

/// `@` in a file stands for the mark of the line.
fn read_ssh(data: &[u8]) -> Verdict {
    let mark = Sentinel::random();
    let mut output = Vec::new();
    for byte in data {
        match byte {
            b'@' => output.extend_from_slice(mark.as_str().as_bytes()),
            byte => output.push(*byte),
        }
    }
    answer::read(&output, &mark, true, DISK_PROPS)
}

const FOLDERS: [&str; 7] = ["rest", "ssh", "item", "tag", "version", "url", "host-keys"];

#[test]
fn each_text_comes_out_as_its_name_says() {
    for folder in FOLDERS {
        for (name, data) in corpus(folder) {
            let want = name.split('-').next().unwrap();
            assert_eq!(outcome(folder, &name, &data), want, "{folder}/{name}");
        }
    }
}

/// One way of damaging a text.
#[derive(Debug, Clone)]
enum Damage {
    Cut(Index),
    Drop(Index),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Append(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..6),
        Just(b"\r\n".to_vec()),
        Just(b"@ OK".to_vec()),
        Just(b"@ ERR no such item".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"{}".to_vec()),
    ];
    prop_oneof![
        any::<Index>().prop_map(Damage::Cut),
        any::<Index>().prop_map(Damage::Drop),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), piece).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        any::<Index>().prop_map(Damage::Append),
    ]
}

fn apply(damage: &Damage, data: &mut Vec<u8>, others: &[(String, Vec<u8>)]) {
    if data.is_empty() {
        return;
    }
    match damage {
        Damage::Cut(at) => data.truncate(at.index(data.len())),
        Damage::Drop(at) => drop(data.remove(at.index(data.len()))),
        Damage::Set(at, byte) => {
            let at = at.index(data.len());
            data[at] = *byte;
        }
        Damage::Insert(at, bytes) => {
            let at = at.index(data.len());
            data.splice(at..at, bytes.iter().copied());
        }
        Damage::Append(other) => data.extend_from_slice(&other.get(others).1),
    }
}

proptest! {
    #[test]
    fn damage_never_panics_and_never_becomes_absence(
        which in any::<Index>(),
        damages in proptest::collection::vec(damage(), 1..5),
    ) {
        for folder in FOLDERS {
            let all = corpus(folder);
            let (name, mut data) = which.get(&all).clone();
            for damage in &damages {
                apply(damage, &mut data, &all);
            }
            if outcome(folder, &name, &data) == "empty" {
                let text: String = String::from_utf8_lossy(&data)
                    .chars()
                    .filter(|c| !c.is_whitespace())
                    .collect();
                prop_assert!(text == "[]" || text.ends_with("[]@OK"), "{}: {:?}", name, text);
            }
        }
    }
}
