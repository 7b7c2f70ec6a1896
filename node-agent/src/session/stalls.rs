//! Whether I/O stands still, on all shields.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rds_csi_proto::ids::VolumeId;

use crate::error::Result;
use crate::kernel::DeviceNumber;
use crate::kernel::iostat::IoCounters;

use super::machine::ShieldSeen;
use super::stall::Tracker;

/// How I/O on a volume fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    /// Requests that wait for an answer.
    pub in_flight: u64,
    /// Since when none has got one, if that is so.
    pub stalled_since: Option<Instant>,
    /// Requests so far that may have changed what the volume holds.
    pub changes: u64,
}

/// A tracker for each shield.
pub struct Stalls {
    epoch: Instant,
    trackers: HashMap<VolumeId, (DeviceNumber, Tracker)>,
}

impl Stalls {
    /// Without any, at first.
    #[must_use]
    pub fn new(epoch: Instant) -> Self {
        Self { epoch, trackers: HashMap::new() }
    }

    /// Looks at all shields that could be read, and tells of each stall that has ended. What
    /// `read` does not know is not in the result; a shield that is gone is forgotten.
    pub fn look(
        &mut self,
        shields: &HashMap<VolumeId, Result<ShieldSeen>>,
        mut read: impl FnMut(DeviceNumber) -> Option<IoCounters>,
        now: Instant,
        mut ended: impl FnMut(Duration),
    ) -> HashMap<VolumeId, Io> {
        self.trackers.retain(|volume, _| shields.contains_key(volume));
        let millis = u64::try_from((now - self.epoch).as_millis()).unwrap_or(u64::MAX);
        let mut fares = HashMap::new();
        for (volume, seen) in shields {
            let Ok(seen) = seen else { continue };
            let Some(counters) = read(seen.number) else { continue };
            let new = || (seen.number, Tracker::default());
            let (number, tracker) = self.trackers.entry(volume.clone()).or_insert_with(new);
            // Another device under the same name counts from zero.
            if *number != seen.number {
                (*number, *tracker) = new();
            }
            if let Some(lasted) = tracker.look(counters, millis) {
                ended(lasted);
            }
            let since = tracker.stalled_since(millis);
            let stalled_since = since.map(|ms| self.epoch + Duration::from_millis(ms));
            let IoCounters { in_flight, changes, .. } = counters;
            fares.insert(volume.clone(), Io { in_flight, stalled_since, changes });
        }
        fares
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::Error;

    fn shield(minor: u32) -> ShieldSeen {
        ShieldSeen {
            number: DeviceNumber { major: 254, minor },
            path: None,
            path_active: false,
            suspended: false,
            queueing: true,
            size_bytes: 1 << 20,
        }
    }

    #[test]
    fn each_shield_is_followed_and_what_cannot_be_read_is_not_shown() {
        let start = Instant::now();
        let mut stalls = Stalls::new(start);
        let volume =
            |n: u32| format!("pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e1{n}").parse().unwrap();
        let (stuck, flowing, dark): (VolumeId, VolumeId, VolumeId) =
            (volume(1), volume(2), volume(3));
        let mut shields = HashMap::from([
            (stuck.clone(), Ok(shield(1))),
            (flowing.clone(), Ok(shield(2))),
            (dark.clone(), Err(Error::Unavailable("x".into()))),
        ]);
        let mut ended = Vec::new();
        for second in 0..10u64 {
            let now = start + Duration::from_secs(second);
            let read = |n: DeviceNumber| {
                let completed = if n.minor == 1 { 7 } else { second };
                Some(IoCounters { completed, in_flight: 2, changes: 1 })
            };
            let fares = stalls.look(&shields, read, now, |d| ended.push(d));
            assert_eq!(fares.get(&dark), None);
            assert_eq!(fares[&flowing], Io { in_flight: 2, stalled_since: None, changes: 1 });
            assert_eq!(fares[&stuck].stalled_since, (second > 0).then_some(start));
        }
        assert!(ended.is_empty());
        // A new device under the name: its counters have nothing to do with the old one's.
        shields.insert(stuck.clone(), Ok(shield(9)));
        let now = start + Duration::from_secs(10);
        let read = |_| Some(IoCounters { completed: 7, in_flight: 1, changes: 1 });
        let fares = stalls.look(&shields, read, now, |d| ended.push(d));
        assert_eq!(fares[&stuck].stalled_since, None);
        let fares = stalls.look(&shields, |_| None, now, |d| ended.push(d));
        assert!(fares.is_empty());
    }
}
