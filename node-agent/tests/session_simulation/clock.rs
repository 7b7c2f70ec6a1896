//! Simulated time: what is due, in order. Things due in the same millisecond happen in the
//! order in which they were planned.

use std::collections::BTreeMap;

use rds_node_agent::session::machine::{Millis, Observation, Outcome, ShieldSeen};

use crate::target::Later;

/// Something that will happen. Its first number tells which tick, look,
/// agent, action or controller it belongs to: those that are past are ignored.
#[derive(Debug, Clone)]
pub(crate) enum Due {
    // The driver.
    Tick(u64),
    LookBegins(u64),
    LookReads(u64, Option<ShieldSeen>, Millis),
    LookArrives(u64, Observation),
    PortalAsked(u64),
    Probe(u64),
    ConnectWrite(u64),
    MapReads(u64),
    MapTakesEffect(u64),
    FailTakesEffect(u64),
    Answer(u64),
    Done(u64, Outcome),
    AgentStarts,
    DrainRefused,
    TakeDown(u64, u8),
    Stage,
    // The kernel.
    ConnectEnds(u64, u64),
    DeleteEnds(u64),
    Retry(u64),
    Notice(u64),
    Scan(u64),
    // The world outside.
    Fault,
    Target(Later),
    BusyChanges,
}

impl Due {
    /// Whether it stands still when the whole host is paused.
    fn on_host(&self) -> bool {
        // Faults wait with it: most of them are doings of the host's.
        !matches!(self, Self::Target(_))
    }

    /// Whether it may be long in coming by a fault, which ends when faults end.
    fn is_slow_work(&self) -> bool {
        !matches!(self, Self::Target(_) | Self::Fault | Self::BusyChanges)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Clock {
    pub(crate) now: Millis,
    planned: u64,
    queue: BTreeMap<(Millis, u64), Due>,
}

impl Clock {
    pub(crate) fn after(&mut self, pause: Millis, due: Due) {
        self.planned += 1;
        self.queue.insert((self.now + pause, self.planned), due);
    }

    pub(crate) fn next_at(&self) -> Option<Millis> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<Due> {
        let ((at, _), due) = self.queue.pop_first()?;
        self.now = at;
        Some(due)
    }

    /// The host is paused: all its doings move, the target's do not.
    pub(crate) fn pause_host(&mut self, pause: Millis) {
        for ((at, order), due) in std::mem::take(&mut self.queue) {
            let at = if due.on_host() { at + pause } else { at };
            self.queue.insert((at, order), due);
        }
    }

    /// Faults are over: nothing that is under way takes longer than `within` any more, and
    /// no further fault comes.
    pub(crate) fn calm(&mut self, within: Millis) {
        let limit = self.now + within;
        for ((at, order), due) in std::mem::take(&mut self.queue) {
            if !matches!(due, Due::Fault | Due::Target(_)) {
                let at = if due.is_slow_work() { at.min(limit) } else { at };
                self.queue.insert((at, order), due);
            }
        }
    }
}
