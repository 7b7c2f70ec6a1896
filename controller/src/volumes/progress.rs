//! How far copies are, for people: in the log, and in the answer to a call that is repeated
//! while its copy runs.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::routeros::wire::Slot;

/// How often the log tells of a copy.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The copies that run now, by their targets.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<HashMap<String, Progress>>);

/// How far one is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    done: u64,
    size: u64,
    taken: Duration,
}

/// One copy that runs, until it is dropped.
pub(super) struct Running<'a> {
    copies: &'a Copies,
    slot: Slot,
    size: u64,
    started: Instant,
    told: Instant,
}

impl Copies {
    /// The map is whole after any panic: each use is a single insertion or removal.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, slot: Slot, size: u64) -> Running<'_> {
        let started = Instant::now();
        tracing::info!(%slot, size, "copying");
        Running { copies: self, slot, size, started, told: started }
    }

    /// How far the copy to a slot is, if one runs.
    pub(super) fn to(&self, slot: &Slot) -> Option<Progress> {
        self.lock().get(slot.as_str()).copied()
    }
}

impl Running<'_> {
    pub(super) fn is_at(&mut self, done: u64) {
        let taken = self.started.elapsed();
        let progress = Progress { done, size: self.size, taken };
        self.copies.lock().insert(self.slot.as_str().to_owned(), progress);
        if done == self.size {
            tracing::info!(slot = %self.slot, seconds = taken.as_secs(), "all is copied");
        } else if self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            tracing::info!(slot = %self.slot, "{progress}");
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.copies.lock().remove(self.slot.as_str());
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = u128::from(self.done) * 100 / u128::from(self.size.max(1));
        write!(f, "{percent} % of {} bytes are copied", self.size)?;
        if self.done == 0 {
            return Ok(());
        }
        let left = u128::from(self.size.saturating_sub(self.done)) * self.taken.as_millis()
            / u128::from(self.done)
            / 1000;
        match left {
            0..120 => write!(f, ", about {left} s are left"),
            120..7200 => write!(f, ", about {} min are left", left / 60),
            _ => write!(f, ", about {} h are left", left / 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_units_for_people() {
        let at = |done, size, seconds| {
            Progress { done, size, taken: Duration::from_secs(seconds) }.to_string()
        };
        assert_eq!(at(0, 100, 5), "0 % of 100 bytes are copied");
        assert_eq!(at(50, 100, 30), "50 % of 100 bytes are copied, about 30 s are left");
        assert_eq!(at(1, 4, 600), "25 % of 4 bytes are copied, about 30 min are left");
        let large = at(1 << 40, 16 << 40, 3600);
        assert_eq!(large, "6 % of 17592186044416 bytes are copied, about 15 h are left");
        assert_eq!(at(0, 0, 0), "0 % of 0 bytes are copied");
    }
}
