//! Light writers, one thread a volume: each writes a block now and then and remembers how
//! long the slowest one took. A write that is sent into an outage lasts as long as the device
//! stands still, so the slowest one is the truth that metrics are compared with.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// 32 of them must not keep an emulated guest busy.
const PACE: Duration = Duration::from_millis(400);
const BLOCK: usize = 4096;
const SLOTS: u64 = 64;

#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

#[derive(Default)]
struct Seen {
    done: AtomicU64,
    slowest_ms: AtomicU64,
    error: Mutex<Option<String>>,
    stop: AtomicBool,
}

pub(super) struct Writer {
    seen: Arc<Seen>,
}

impl Writer {
    pub(super) fn start(device: &Path) -> Result<Self> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(device)
            .with_context(|| format!("open {}", device.display()))?;
        let seen = Arc::new(Seen::default());
        let own = seen.clone();
        std::thread::Builder::new().name("writer".into()).spawn(move || own.write_to(&file))?;
        Ok(Self { seen })
    }

    pub(super) fn done(&self) -> u64 {
        self.seen.done.load(Ordering::SeqCst)
    }

    pub(super) fn error(&self) -> Option<String> {
        self.seen.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The slowest write since this was last asked.
    pub(super) fn slowest(&self) -> Duration {
        Duration::from_millis(self.seen.slowest_ms.swap(0, Ordering::SeqCst))
    }

    /// It ends after the write that it is at.
    pub(super) fn stop(&self) {
        self.seen.stop.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        Arc::strong_count(&self.seen) == 1
    }
}

impl Seen {
    fn write_to(&self, file: &File) {
        let mut buffer = Box::new(Aligned([0; BLOCK]));
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.done.load(Ordering::SeqCst) + 1;
            buffer.0[..8].copy_from_slice(&number.to_le_bytes());
            let began = Instant::now();
            if let Err(error) = file.write_all_at(&buffer.0, number % SLOTS * BLOCK as u64) {
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(format!("write {number}: {error}"));
                return;
            }
            let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.slowest_ms.fetch_max(took, Ordering::SeqCst);
            self.done.store(number, Ordering::SeqCst);
            std::thread::sleep(PACE);
        }
    }
}
