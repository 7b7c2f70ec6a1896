//! Who leads: the rule, without I/O and without a clock of its own.
//!
//! ```text
//!            free, or the same for a whole lease: write
//!  looking ─────────────────────────────────────────────► leading ──┐ renew: write
//!     ▲                                                    │   ▲────┘
//!     └────────────────────────────────────────────────────┘
//!        another one's name is read, or no write was answered in time
//! ```
//!
//! Clocks of two machines are never compared. Who waits takes the lease when it has seen it
//! unchanged for its whole duration *by its own clock*, counted from when the answer came; who
//! leads counts from when it *sent* the last write that was answered, and gives up a margin
//! earlier. Each write holds only for the version that was read. So of two that believe to lead
//! at once one must have a clock that runs faster than the other's by more than the margin
//! allows: a fifth. Not covered: a clock that stands still (a machine that sleeps).
//!
//! A Lease that is not there may have been deleted under somebody who leads, so absence too has
//! to last. One that nobody holds was given back, and is free at once.

use std::time::Duration;

/// Since some moment of the past, on the own clock.
pub(crate) type Moment = Duration;

/// How long things take. With these, another one leads within 13 s of a death: it looks at most
/// `renew` after the last renewal, and waits for `lease` from then on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// How long a lease lasts without renewal.
    pub(crate) lease: Duration,
    /// How long before its end the holder stops to rely on it.
    pub(crate) margin: Duration,
    /// How often it is renewed, and looked at.
    pub(crate) renew: Duration,
}

pub(crate) const TIMING: Timing = Timing {
    lease: Duration::from_secs(9),
    margin: Duration::from_secs(3),
    renew: Duration::from_secs(2),
};

/// The Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its resourceVersion; none if there is no Lease.
    pub(crate) version: Option<String>,
    /// Who holds it.
    pub(crate) holder: Option<String>,
    /// What it says of its own duration, by a holder that may be of another version.
    pub(crate) lease: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the Lease.
    Look,
    /// Write it, in the own name, over the version that was read.
    Write,
    /// Nothing before then.
    Wait(Moment),
}

/// One who would lead.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    id: String,
    timing: Timing,
    /// What was read last, and since when it reads so.
    seen: Option<(Seen, Moment)>,
    looked: Moment,
    /// What was read may have changed by an own write.
    doubtful: bool,
    /// When the last write was sent that was answered.
    held: Option<Moment>,
}

impl Candidate {
    pub(crate) fn new(id: String, timing: Timing) -> Self {
        Self { id, timing, seen: None, looked: Moment::ZERO, doubtful: false, held: None }
    }

    pub(crate) fn step(&self, now: Moment) -> Step {
        let Timing { renew, lease, .. } = self.timing;
        let Some((seen, since)) = self.seen.as_ref().filter(|_| !self.doubtful) else {
            return Step::Look;
        };
        let write_at = match &seen.holder {
            Some(holder) if *holder == self.id => self.held.map_or(now, |held| held + renew),
            None if seen.version.is_some() => now,
            Some(_) | None => *since + lease.max(seen.lease),
        };
        let look_at = self.looked + renew;
        match (write_at <= now, look_at <= now) {
            (true, _) => Step::Write,
            (false, true) if !self.is_holder() => Step::Look,
            (false, true) => Step::Wait(write_at),
            (false, false) => Step::Wait(write_at.min(look_at)),
        }
    }

    /// The Lease was read, by an answer that came now.
    pub(crate) fn saw(&mut self, seen: Seen, now: Moment) {
        if seen.holder.as_ref() != Some(&self.id) {
            self.held = None;
        }
        if self.seen.as_ref().is_none_or(|(before, _)| *before != seen) {
            self.seen = Some((seen, now));
        }
        (self.looked, self.doubtful) = (now, false);
    }

    /// A write, sent then, was answered: the Lease reads so.
    pub(crate) fn wrote(&mut self, seen: Seen, sent: Moment, now: Moment) {
        self.saw(seen, now);
        if self.is_holder() {
            self.held = Some(sent);
        }
    }

    /// A write was refused, since something else is there, or was not answered: it may have
    /// been made, or be made yet.
    pub(crate) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Until when it leads. Over at the same time for everybody who asks, late or early.
    pub(crate) fn leads_until(&self) -> Option<Moment> {
        self.held.map(|held| held + self.timing.lease - self.timing.margin)
    }

    /// When others may begin to.
    pub(crate) fn over_at(&self) -> Option<Moment> {
        self.held.map(|held| held + self.timing.lease)
    }

    /// What was read last.
    pub(crate) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref().map(|(seen, _)| seen)
    }

    pub(crate) fn is_holder(&self) -> bool {
        self.seen().and_then(|s| s.holder.as_ref()) == Some(&self.id)
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
