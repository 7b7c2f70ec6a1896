//! The pod: writes numbered, checksummed records, each synced before it is reported, until
//! it is told to stop. One process for the whole story: it is never restarted.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Size of a record in bytes: a sector's multiple, so that raw devices take it directly.
pub(crate) const RECORD: usize = 4096;
/// How fast records come, and how many of them are kept.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Pace {
    /// Milliseconds between two records.
    #[arg(long)]
    pub(crate) pause_ms: u64,
    /// Records go round in this many places, so that a long run does not fill the volume.
    #[arg(long)]
    pub(crate) slots: u64,
}

impl Pace {
    /// The stories are about outages, not about throughput.
    fn usual(block: bool) -> Self {
        Self { pause_ms: 5, slots: if block { 4096 } else { 8192 } }
    }
}

/// One record: its number, and bytes that follow from the number, and their checksum.
pub(crate) fn record(number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD);
    bytes.extend_from_slice(&number.to_le_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < RECORD - 4 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(RECORD - 4);
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

#[repr(align(4096))]
pub(crate) struct Aligned(pub(crate) [u8; RECORD]);

/// The writer's own process. Reports `W <number>` for each record that is on the volume,
/// `E <number> <error>` for one that failed, and ends at the end of its input.
pub(crate) fn child(path: &Path, block: bool, pace: Pace, first: u64) -> ExitCode {
    let mut options = File::options();
    options.write(true).read(true);
    if block {
        options.custom_flags(libc::O_DIRECT | libc::O_DSYNC);
    } else {
        options.create(true);
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) => {
            println!("E 0 open {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = stop.clone();
    std::thread::spawn(move || {
        let mut line = String::new();
        // Any line, or the end of the parent, means stop.
        let _ = std::io::stdin().read_line(&mut line);
        told.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let mut out = std::io::stdout();
    let mut number = first;
    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
        let mut buffer = Box::new(Aligned([0; RECORD]));
        buffer.0.copy_from_slice(&record(number));
        let offset = (number % pace.slots) * RECORD as u64;
        let written = file
            .write_all_at(&buffer.0, offset)
            .and_then(|()| if block { Ok(()) } else { file.sync_data() });
        if let Err(error) = written {
            let _ = writeln!(out, "E {number} {error}");
            return ExitCode::FAILURE;
        }
        if writeln!(out, "W {number}").and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
        number += 1;
        std::thread::sleep(Duration::from_millis(pace.pause_ms));
    }
    ExitCode::SUCCESS
}

/// The writer as the story sees it.
pub(crate) struct Writer {
    child: Child,
    path: PathBuf,
    block: bool,
    slots: u64,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// The last record that is on the volume.
    last: u64,
    /// When each one was reported.
    times: Vec<Instant>,
    error: Option<String>,
    errors: usize,
}

impl Writer {
    pub(crate) fn start(path: &Path, block: bool) -> Result<Self> {
        Self::start_paced(path, block, Pace::usual(block))
    }

    pub(crate) fn start_paced(path: &Path, block: bool, pace: Pace) -> Result<Self> {
        let path = if block { path.to_owned() } else { path.join("records") };
        Self::start_from(Command::new(std::env::current_exe()?), &path, block, pace, 1)
    }

    /// From a record on, by a command that runs this program: here, or in another guest.
    pub(crate) fn start_from(
        mut program: Command,
        path: &Path,
        block: bool,
        pace: Pace,
        first: u64,
    ) -> Result<Self> {
        program.arg("writer").arg("--path").arg(path);
        program.args(["--pause-ms", &pace.pause_ms.to_string()]);
        program.args(["--slots", &pace.slots.to_string(), "--first", &first.to_string()]);
        if block {
            program.arg("--block");
        }
        let writer = Self::watch(program, path, block, pace.slots)?;
        // None of its records is on the volume yet.
        let mut seen = writer.seen();
        seen.last = seen.last.max(first.saturating_sub(1));
        drop(seen);
        Ok(writer)
    }

    /// Starts anything that reports as a writer does.
    pub(crate) fn watch(
        mut command: Command,
        path: &Path,
        block: bool,
        slots: u64,
    ) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("the writer has no output")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let heard = seen.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(|l| l.ok()) {
                let mut seen = heard.lock().unwrap_or_else(PoisonError::into_inner);
                match line.split_once(' ') {
                    Some(("W", n)) => {
                        seen.last = n.parse().unwrap_or(seen.last);
                        seen.times.push(Instant::now());
                    }
                    _ => (seen.error, seen.errors) = (Some(line), seen.errors + 1),
                }
            }
        });
        Ok(Self { child, path: path.to_owned(), block, slots, seen })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn last(&self) -> u64 {
        self.seen().last
    }

    pub(crate) fn error(&self) -> Option<String> {
        self.seen().error.clone()
    }

    /// How many writes have failed.
    pub(crate) fn errors(&self) -> usize {
        self.seen().errors
    }

    /// When the first record after a moment was on the volume.
    pub(crate) fn first_after(&self, moment: Instant) -> Option<Instant> {
        self.seen().times.iter().copied().find(|at| *at > moment)
    }

    /// The longest time without a record between two moments, the present pause included.
    pub(crate) fn longest_stall(&self, from: Instant, to: Instant) -> Duration {
        let seen = self.seen();
        let mut longest = Duration::ZERO;
        let mut previous = from;
        for at in seen.times.iter().filter(|t| **t >= from && **t <= to) {
            longest = longest.max(at.duration_since(previous));
            previous = *at;
        }
        longest.max(to.duration_since(previous))
    }

    /// Waits for the write under way to fail, and gives its error.
    pub(crate) async fn fails(&self, patience: Duration) -> Result<String> {
        let began = Instant::now();
        loop {
            if let Some(error) = self.error() {
                return Ok(error);
            }
            if began.elapsed() > patience {
                bail!("after {patience:?} the waiting write has not failed");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until `more` further records are on the volume.
    pub(crate) async fn progress(&self, more: u64, patience: Duration) -> Result<()> {
        let (began, goal) = (Instant::now(), self.last() + more);
        while self.last() < goal {
            if let Some(error) = self.error() {
                bail!("a write failed: {error}");
            }
            if began.elapsed() > patience {
                bail!("no progress for {patience:?}: record {} of {goal}", self.last());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Tells it to stop, and waits for its end.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Result<()> {
        drop(self.child.stdin.take());
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > patience {
                bail!("the writer does not end");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The reader thread may be a line behind.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(())
    }

    /// Reads everything back: each place must hold the newest record that was reported for
    /// it, whole. Returns how many records were checked.
    pub(crate) fn verify(&self, last: u64) -> Result<u64> {
        verify(&self.path, self.block, self.slots, last)
    }
}

/// Checks a volume's records against the number of the last one reported.
fn verify(path: &Path, block: bool, slots: u64, last: u64) -> Result<u64> {
    let mut options = File::options();
    options.read(true);
    if block {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path).with_context(|| format!("open {}", path.display()))?;
    let newest_first = (last.saturating_sub(slots - 1)..=last).filter(|n| *n > 0);
    let mut checked = 0;
    for number in newest_first {
        let mut buffer = Box::new(Aligned([0; RECORD]));
        let offset = (number % slots) * RECORD as u64;
        file.read_exact_at(&mut buffer.0, offset)
            .with_context(|| format!("read record {number}"))?;
        let found = u64::from_le_bytes(buffer.0[..8].try_into()?);
        // The one after the last, in the place of the oldest, may have been on its way when
        // the writer was stopped or cut off.
        let next = number + slots == last + 1 && buffer.0[..] == record(last + 1);
        if buffer.0[..] != record(number) && !next {
            bail!("record {number} is lost or damaged: its place holds record {found}");
        }
        checked += 1;
    }
    Ok(checked)
}

/// In how many places something else is than what the newest writer, with records from
/// `first` to `last`, has written there: each of them has been written by another since.
pub(crate) fn overwritten(path: &Path, slots: u64, [first, last]: [u64; 2]) -> Result<u64> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut buffer = vec![0; RECORD];
    let mut others = 0;
    for number in first.max(last.saturating_sub(slots - 1))..=last {
        file.read_exact_at(&mut buffer, (number % slots) * RECORD as u64)?;
        others += u64::from(buffer != record(number));
    }
    Ok(others)
}

/// Looks at a copy of a volume that was made while its writer went on: all records up to
/// `least` are in it, and none after `most`, up to the `last` there is. Returns the newest.
pub(crate) fn verify_copy(
    path: &Path,
    pace: Pace,
    block: bool,
    [least, most, last]: [u64; 3],
) -> Result<u64> {
    anyhow::ensure!(last < pace.slots, "record {last} has overwritten others");
    verify(path, block, pace.slots, least)?;
    let mut options = File::options();
    options.read(true);
    if block {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path)?;
    let holds = |number: u64| -> Result<bool> {
        let mut buffer = Box::new(Aligned([0; RECORD]));
        let read = file.read_at(&mut buffer.0, number * RECORD as u64)?;
        Ok(read == RECORD && buffer.0[..] == record(number))
    };
    let mut newest = least;
    for number in least + 1..=last {
        match holds(number)? {
            false => {}
            true if number > most => bail!("record {number} is of after the copy, at {most}"),
            true if number > newest + 1 => bail!("record {number} without the one before it"),
            true => newest = number,
        }
    }
    Ok(newest)
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}
