//! Attachments that Kubernetes does not know of.
//!
//! Usually a VolumeAttachment goes only when its detach is done: a finalizer keeps it. One that
//! was removed by force leaves a volume attached for which nobody will ever ask again, and
//! which no other node gets. It is detached like any other, by turning the export off, and
//! only if all of this holds for some minutes:
//!
//! - no VolumeAttachment asks for that volume on that node, in a complete list that was read
//!   after the record;
//! - each VolumeAttachment of this driver could be told which volume it is for: one that could
//!   not may be for this one;
//! - a PersistentVolume of this cluster has the volume: without one it may be another cluster's;
//! - no pod on that node uses the claim. One that does was not ended by whoever removed the
//!   VolumeAttachment (or the cluster was restored from a backup): it goes on, and it is told.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;
use tokio::time::Instant;

use super::owner::NodeKey;

/// A volume on a node.
pub(crate) type Place = (VolumeId, NodeKey);

/// What Kubernetes asks for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) places: HashSet<Place>,
    /// VolumeAttachments of this driver of which the volume is not known, by name.
    pub(crate) unresolved: Vec<String>,
}

/// What is remembered between two looks.
#[derive(Debug)]
pub(crate) struct Stale {
    /// How long an attachment has to look stale.
    patience: Duration,
    since: HashMap<Place, Instant>,
}

impl Stale {
    pub(crate) fn after(patience: Duration) -> Self {
        Self { patience, since: HashMap::new() }
    }

    /// Takes a look at all records of the appliances that answered, and gives those that have
    /// looked stale for long enough. `unseen`: whether a volume's appliance did not answer.
    pub(crate) fn look(
        &mut self,
        records: &[Place],
        unseen: impl Fn(&VolumeId) -> bool,
        asked: &Asked,
        now: Instant,
    ) -> Vec<Place> {
        if !asked.unresolved.is_empty() {
            self.since.clear();
            return Vec::new();
        }
        let stale: HashSet<&Place> =
            records.iter().filter(|place| !asked.places.contains(place)).collect();
        self.since.retain(|place, _| {
            stale.contains(place) || (unseen(&place.0) && !asked.places.contains(place))
        });
        stale
            .into_iter()
            .filter(|place| {
                let since = *self.since.entry((*place).clone()).or_insert(now);
                now.duration_since(since) >= self.patience
            })
            .cloned()
            .collect()
    }

    /// Is to look stale for as long again before it is given again.
    pub(crate) fn forget(&mut self, place: &Place) {
        self.since.remove(place);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place(volume: &str, node: &str) -> Place {
        (VolumeId::from_request_name(volume), NodeKey::of(&node.parse().unwrap()))
    }
    fn asked(places: &[Place]) -> Asked {
        Asked { places: places.iter().cloned().collect(), unresolved: Vec::new() }
    }
    const PATIENCE: Duration = Duration::from_secs(120);
    const SEEN: fn(&VolumeId) -> bool = |_| false;

    #[test]
    fn it_takes_time_without_interruption() {
        let (mut stale, a, b) = (Stale::after(PATIENCE), place("a", "n"), place("b", "n"));
        let records = [a.clone(), b.clone()];
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let one = asked(std::slice::from_ref(&b));
        assert!(stale.look(&records, SEEN, &one, at(0)).is_empty());
        assert!(stale.look(&records, SEEN, &one, at(119)).is_empty());
        assert_eq!(stale.look(&records, SEEN, &one, at(120)), std::slice::from_ref(&a));
        // Asked for in between: the time begins anew.
        assert!(stale.look(&records, SEEN, &asked(&records), at(130)).is_empty());
        assert!(stale.look(&records, SEEN, &one, at(140)).is_empty());
        assert!(stale.look(&records, SEEN, &one, at(259)).is_empty());
        assert_eq!(stale.look(&records, SEEN, &one, at(260)), std::slice::from_ref(&a));
        stale.forget(&a);
        assert!(stale.look(&records, SEEN, &one, at(261)).is_empty());
    }

    #[test]
    fn the_node_is_part_of_it() {
        let mut stale = Stale::after(PATIENCE);
        let records = [place("a", "n")];
        let other = asked(&[place("a", "m")]);
        let begun = Instant::now();
        assert!(stale.look(&records, SEEN, &other, begun).is_empty());
        assert_eq!(stale.look(&records, SEEN, &other, begun + PATIENCE).len(), 1);
    }

    #[test]
    fn unknown_is_never_absent() {
        let (mut stale, a) = (Stale::after(PATIENCE), place("a", "n"));
        let records = [a.clone()];
        let begun = Instant::now();
        let none = asked(&[]);
        stale.look(&records, SEEN, &none, begun);
        let unresolved = Asked { unresolved: vec!["csi-1".into()], ..Asked::default() };
        assert!(stale.look(&records, SEEN, &unresolved, begun + PATIENCE).is_empty());
        // Not even what was seen before counts after that.
        assert!(stale.look(&records, SEEN, &none, begun + PATIENCE).is_empty());
        // An appliance that does not answer once neither ends nor shortens the time.
        assert!(stale.look(&[], |_| true, &none, begun + PATIENCE * 2).is_empty());
        assert_eq!(stale.look(&records, SEEN, &none, begun + PATIENCE * 2).len(), 1);
        stale.look(&[], SEEN, &none, begun + PATIENCE * 2);
        assert!(stale.look(&records, SEEN, &none, begun + PATIENCE * 3).is_empty());
    }
}
