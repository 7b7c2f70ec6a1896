//! A pod with many writes on their way at once, so that a node that is cut off has a queue.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::writer::{Aligned, RECORD, record};

/// Writes on their way at a time.
pub(super) const DEPTH: u64 = 16;
/// No writer's records have such numbers.
const MARK: u64 = 1 << 60;
/// A line each so many writes.
const TOLD: u64 = 64;

/// Writes into `places` records from `from` on, until it is told to stop or nothing is
/// written any more. Reports as the writer does: `W` with how many were written, `E` for each
/// that failed.
pub(crate) fn child(path: &Path, from: u64, places: u64) -> ExitCode {
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) => {
            println!("E 0 open {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    let (stop, written) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    let told = stop.clone();
    // Nobody waits for this one: with all writes failed the pod ends.
    thread::spawn(move || {
        let mut line = String::new();
        // Any line, or the end of whoever started this, means stop.
        let _ = std::io::stdin().read_line(&mut line);
        told.store(true, Ordering::SeqCst);
    });
    thread::scope(|scope| {
        for lane in 0..DEPTH {
            let (file, stop, written) = (&file, &stop, &written);
            scope.spawn(move || {
                let lanes = (lane..places).step_by(usize::try_from(DEPTH).unwrap_or(1));
                for place in lanes.cycle() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let mut buffer = Box::new(Aligned([0; RECORD]));
                    let number = MARK + written.load(Ordering::SeqCst);
                    buffer.0.copy_from_slice(&record(number));
                    let place = from + place;
                    if let Err(error) = file.write_all_at(&buffer.0, place * RECORD as u64) {
                        let _ = writeln!(std::io::stdout(), "E {place} {error}");
                        break;
                    }
                    let count = written.fetch_add(1, Ordering::SeqCst) + 1;
                    if count.is_multiple_of(TOLD) {
                        let _ = writeln!(std::io::stdout(), "W {count}");
                    }
                }
            });
        }
    });
    ExitCode::SUCCESS
}
