//! Who goes round, and until when each has promised to be back.
//!
//! Every loop that volumes depend on promises at each turn to be back within
//! [`ROUND`]; before a long step that is as it should be it promises a later time. A promise
//! that is not kept means that the loop hangs, or has died: one that ends as it should says
//! so. [`Board::overdue`] is what the watchdog and `/healthz` ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A turn takes a second at most by itself. The rest is for a host under load: systemd's own
/// limit comes on top.
pub const ROUND: Duration = Duration::from_secs(5);

/// All loops. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    began: Instant,
    promises: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
}

/// A loop that is not back when it said it would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// Which.
    pub who: String,
    /// For how long.
    pub by: Duration,
}

/// One loop's side. Dropped without [`Beat::end`] it stays on the board: it has died.
#[must_use]
pub struct Beat {
    board: Board,
    who: String,
    due: Arc<AtomicU64>,
}

impl Default for Board {
    fn default() -> Self {
        Self { began: Instant::now(), promises: Arc::default() }
    }
}

impl Board {
    /// Adds a loop, in place of an earlier one of that name.
    pub fn join(&self, who: impl Into<String>) -> Beat {
        let beat = Beat { board: self.clone(), who: who.into(), due: Arc::default() };
        beat.round();
        self.lock().insert(beat.who.clone(), Arc::clone(&beat.due));
        beat
    }

    /// Those that are not back at `now`, by name.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let now = self.millis(now);
        let late =
            |due: &AtomicU64| now.checked_sub(due.load(Ordering::Relaxed)).filter(|n| *n > 0);
        let mut found: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(who, due)| {
                late(due).map(|ms| Overdue { who: who.clone(), by: Duration::from_millis(ms) })
            })
            .collect();
        found.sort_by(|a, b| a.who.cmp(&b.who));
        found
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Held for a look at the map only, never across anything that waits.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<AtomicU64>>> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beat {
    /// A turn begins: back within [`ROUND`].
    pub fn round(&self) {
        self.busy(Duration::ZERO);
    }

    /// A step begins that may rightly take this long.
    pub fn busy(&self, at_most: Duration) {
        self.promise(Instant::now(), at_most);
    }

    fn promise(&self, now: Instant, at_most: Duration) {
        let due = self.board.millis(now.checked_add(at_most + ROUND).unwrap_or(now));
        self.due.store(due, Ordering::Relaxed);
    }

    /// The loop is over, as it should be.
    pub fn end(self) {
        let mut promises = self.board.lock();
        // A successor of the same name has a promise of its own.
        if promises.get(&self.who).is_some_and(|due| Arc::ptr_eq(due, &self.due)) {
            promises.remove(&self.who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(board: &Board, seconds: u64) -> Vec<String> {
        let now = board.began + Duration::from_secs(seconds);
        board.overdue(now).into_iter().map(|o| o.who).collect()
    }

    fn beat(beat: &Beat, seconds: u64, at_most: u64) {
        let now = beat.board.began + Duration::from_secs(seconds);
        beat.promise(now, Duration::from_secs(at_most));
    }

    #[test]
    fn a_loop_that_goes_round_is_never_overdue_and_one_that_stops_is() {
        let board = Board::default();
        let (going, stuck) = (board.join("a"), board.join("b"));
        for second in 0..100 {
            beat(&going, second, 0);
            if second < 10 {
                beat(&stuck, second, 0);
            }
        }
        assert_eq!(after(&board, 14), Vec::<String>::new());
        assert_eq!(after(&board, 15), ["b"]);
        assert_eq!(after(&board, 103), ["b"]);
        assert_eq!(after(&board, 105), ["a", "b"]);
        let overdue = board.overdue(board.began + Duration::from_secs(20));
        assert_eq!(overdue[0].by, Duration::from_secs(20 - 14));
    }

    #[test]
    fn a_long_step_is_no_hang_until_it_is_overdue() {
        let board = Board::default();
        let busy = board.join("a");
        beat(&busy, 10, 60);
        assert_eq!(after(&board, 74), Vec::<String>::new());
        assert_eq!(after(&board, 76), ["a"]);
        // Back early: the next hang is noticed as soon as any.
        beat(&busy, 20, 0);
        assert_eq!(after(&board, 26), ["a"]);
    }

    #[test]
    fn an_end_is_no_hang_but_a_death_is() {
        let board = Board::default();
        board.join("ended").end();
        drop(board.join("died"));
        assert_eq!(after(&board, 60), ["died"]);
    }

    #[test]
    fn the_end_of_a_predecessor_leaves_its_successor_on_the_board() {
        let board = Board::default();
        let first = board.join("volume");
        let second = board.join("volume");
        first.end();
        assert_eq!(after(&board, 60), ["volume"]);
        second.end();
        assert_eq!(after(&board, 60), Vec::<String>::new());
    }

    #[test]
    fn a_task_that_panics_has_died() {
        let board = Board::default();
        let beat = board.join("task");
        let ended = std::thread::spawn(move || {
            let _beat = beat;
            panic!("on purpose");
        });
        assert!(ended.join().is_err());
        assert_eq!(after(&board, 60), ["task"]);
    }
}
