//! What the pods of `make e2e` run: the standard library only, so that rustc alone makes a static
//! program of it (tests/e2e/pod/build.sh), which is all that its image holds.
//!
//! Records are numbered, follow from their numbers, and are on the volume before they are
//! reported. They go round in a fixed number of places, so that a long run fills nothing. A writer
//! goes on after the newest record that it finds, as a database would. An error ends it: kubelet
//! counts that as a restart.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const RECORD: usize = 4096;
const PLACES: u64 = 256;
const PAUSE: Duration = Duration::from_millis(20);
const REPORT: Duration = Duration::from_millis(500);
const O_DIRECT: i32 = 0o40000;
const O_DSYNC: i32 = 0o10000;

#[repr(align(4096))]
struct Aligned([u8; RECORD]);

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        // The process that holds a pod's namespaces.
        [] | ["pause"] => loop {
            std::thread::park();
        },
        ["write", path] => write(path, None),
        // The two sides of a virtual machine that moves.
        ["write", path, "until", file] => write(path, Some(file)),
        ["write", path, "after", file] => after(path, file),
        ["check", path] => check(path),
        _ => Err(io::Error::other("usage: pod pause | write PATH [until|after FILE] | check PATH")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn record(number: u64) -> Box<Aligned> {
    let mut bytes = Box::new(Aligned([0; RECORD]));
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (index, word) in bytes.0.chunks_exact_mut(8).enumerate() {
        if index > 0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        } else {
            state = state.max(1);
        }
        word.copy_from_slice(&if index == 0 { number } else { state }.to_le_bytes());
    }
    bytes
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn open(path: &str) -> io::Result<File> {
    let block = path.starts_with("/dev/");
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(if block { O_DIRECT | O_DSYNC } else { O_DSYNC });
    options.create(!block).open(path)
}

/// The newest record, once all that are there have been found whole.
fn newest(file: &File) -> io::Result<u64> {
    let mut newest = 0;
    for place in 0..PLACES {
        let mut found = Box::new(Aligned([0; RECORD]));
        match file.read_at(&mut found.0, place * RECORD as u64)? {
            0 => break,
            RECORD => {}
            n => return Err(io::Error::other(format!("{n} bytes at place {place}"))),
        }
        let number = number_of(&found.0);
        if number == 0 && found.0.iter().all(|b| *b == 0) {
            continue;
        }
        if number % PLACES != place || record(number).0 != found.0 {
            return Err(io::Error::other(format!("place {place} holds no record: number {number}")));
        }
        newest = newest.max(number);
    }
    Ok(newest)
}

/// Of the records up to the newest none may be missing: as many as there are places.
fn whole(file: &File) -> io::Result<u64> {
    let newest = newest(file)?;
    for number in newest.saturating_sub(PLACES - 1).max(1)..=newest {
        let mut found = Box::new(Aligned([0; RECORD]));
        file.read_exact_at(&mut found.0, number % PLACES * RECORD as u64)?;
        if found.0 != record(number).0 {
            let there = number_of(&found.0);
            return Err(io::Error::other(format!("record {number} is not there, but {there}")));
        }
    }
    Ok(newest)
}

/// Until this file is there, if one is named; then it stays and writes nothing more.
fn write(path: &str, until: Option<&str>) -> io::Result<()> {
    let file = open(path)?;
    let mut number = whole(&file)?;
    println!("found {number}");
    let (mut reported, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        if until.is_some_and(|file| std::path::Path::new(file).exists()) {
            println!("stopped {number}");
            loop {
                std::thread::park();
            }
        }
        number += 1;
        let begun = Instant::now();
        file.write_all_at(&record(number).0, number % PLACES * RECORD as u64)?;
        longest = longest.max(begun.elapsed());
        if reported.elapsed() > REPORT {
            println!("wrote {number} longest {}", longest.as_millis());
            io::stdout().flush()?;
            reported = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
}

/// Has it open from the start on, and writes once this file is there.
fn after(path: &str, gate: &str) -> io::Result<()> {
    let _held = open(path)?;
    println!("waits");
    while !std::path::Path::new(gate).exists() {
        std::thread::sleep(PAUSE);
    }
    write(path, None)
}

fn check(path: &str) -> io::Result<()> {
    println!("whole {}", whole(&open(path)?)?);
    Ok(())
}
