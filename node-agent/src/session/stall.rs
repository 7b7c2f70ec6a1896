//! How long I/O really stands still, from the counters that the block layer keeps.
//!
//! A stall begins when requests are in flight and nothing completes, and ends when
//! something does: also by failing, since then its user is told. Counters are looked at, not
//! followed, so each end is known as exactly as looks are close: a second at most, less where
//! an event caused a look. What begins and ends between two looks is not seen.

use std::time::Duration;

use crate::kernel::iostat::IoCounters;

use super::machine::Millis;

/// Requests that take this long are slow, not standing still.
const SHORTEST: Millis = 500;

/// Follows one device.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    last: Option<IoCounters>,
    /// The newest look that saw something complete, or the first one, if requests were in
    /// flight by then.
    since: Option<Millis>,
    /// A later look has seen that nothing completed.
    standing: bool,
}

impl Tracker {
    /// Takes a look; looks come in the order of their times. Gives the stall that has ended
    /// since the one before.
    pub fn look(&mut self, seen: IoCounters, now: Millis) -> Option<Duration> {
        let moved = self.last.is_none_or(|last| last.completed != seen.completed);
        self.last = Some(seen);
        if !moved && seen.in_flight > 0 {
            self.standing = self.since.is_some();
            self.since.get_or_insert(now);
            return None;
        }
        let stood = std::mem::take(&mut self.standing);
        let since = std::mem::replace(&mut self.since, (seen.in_flight > 0).then_some(now));
        let lasted = now.saturating_sub(since?);
        (stood && lasted >= SHORTEST).then(|| Duration::from_millis(lasted))
    }

    /// Since when I/O stands still, if it does.
    #[must_use]
    pub fn stalled_since(&self, now: Millis) -> Option<Millis> {
        self.since.filter(|since| self.standing && now.saturating_sub(*since) >= SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn counters(completed: u64, in_flight: u64) -> IoCounters {
        IoCounters { completed, in_flight, changes: 0 }
    }

    #[test]
    fn a_stall_lasts_from_the_last_progress_to_the_next() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.look(counters(10, 1), 1_000), None);
        assert_eq!(tracker.look(counters(25, 1), 2_000), None);
        assert_eq!(tracker.stalled_since(2_000), None);
        assert_eq!(tracker.look(counters(25, 3), 3_000), None);
        assert_eq!(tracker.stalled_since(3_000), Some(2_000));
        assert_eq!(tracker.look(counters(25, 4), 9_000), None);
        assert_eq!(tracker.look(counters(26, 3), 9_300), Some(Duration::from_millis(7_300)));
        assert_eq!(tracker.stalled_since(9_300), None);
    }

    #[test]
    fn an_idle_volume_does_not_stand_still() {
        let mut tracker = Tracker::default();
        for second in 0..100 {
            assert_eq!(tracker.look(counters(5, 0), second * 1_000), None);
            assert_eq!(tracker.stalled_since(second * 1_000), None);
        }
        // What is sent into an outage stands still from then on.
        assert_eq!(tracker.look(counters(5, 1), 200_000), None);
        assert_eq!(tracker.look(counters(5, 1), 201_000), None);
        assert_eq!(tracker.look(counters(6, 0), 202_000), Some(Duration::from_secs(2)));
    }

    #[test]
    fn slow_requests_are_no_stall() {
        let mut tracker = Tracker::default();
        tracker.look(counters(0, 1), 0);
        tracker.look(counters(0, 1), 10);
        assert_eq!(tracker.look(counters(1, 1), 499), None);
    }

    /// A device whose requests complete except in given windows, and when it is looked at.
    fn schedule() -> impl Strategy<Value = (Vec<(u64, u64)>, Vec<u64>)> {
        let windows = prop::collection::vec((1_500u64..5_000, 1u64..60_000), 1..6);
        let gaps = prop::collection::vec(10u64..=1_000, 400);
        (windows, gaps)
    }

    proptest! {
        /// What the tracker says of each stall differs from the truth by a look at each end
        /// at most, and nothing is counted twice or forgotten.
        #[test]
        fn stalls_are_measured_to_a_look((windows, gaps) in schedule()) {
            let mut truth = Vec::new();
            let mut at = 0;
            for (flows, stands) in windows {
                at += flows;
                truth.push((at, at + stands));
                at += stands;
            }
            let end = at + 3_000;
            // One request completes each millisecond while I/O flows; one is always in flight.
            let completed = |now: u64| {
                now - truth.iter().map(|(a, b)| now.min(*b).saturating_sub(*a)).sum::<u64>()
            };
            let mut tracker = Tracker::default();
            let (mut now, mut found) = (0, Vec::new());
            for gap in gaps.iter().cycle() {
                now += gap;
                found.extend(tracker.look(counters(completed(now), 1), now));
                if now > end { break; }
            }
            prop_assert!(tracker.stalled_since(now).is_none());
            let long: Vec<_> = truth.iter().map(|(a, b)| b - a).filter(|t| *t > 2_000).collect();
            let seen: Vec<_> = found.iter().map(|d| u64::try_from(d.as_millis()).unwrap()).collect();
            prop_assert!(seen.len() >= long.len() && seen.len() <= truth.len(), "{truth:?} {seen:?}");
            let (told, real): (u64, u64) = (seen.iter().sum(), truth.iter().map(|(a, b)| b - a).sum());
            prop_assert!(told.abs_diff(real) <= 2_000 * truth.len() as u64, "{told} of {real}");
        }
    }
}
