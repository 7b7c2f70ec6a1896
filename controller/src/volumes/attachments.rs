//! What the appliance shows of attachments, counted.
//!
//! Each number of something that is now comes from the records that were read last, never
//! from adding and subtracting: it cannot drift. After a start, a volume is counted from the
//! first look at it on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};
use rds_csi_proto::ids::VolumeId;

use crate::rules::attach::{Change, Export, Why};
use crate::rules::owner::{Attachment, Stage};

/// Seconds; a migration of a large machine takes minutes.
const DURATIONS: &[f64] = &[15.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0];

/// The numbers.
pub(crate) struct Attachments {
    /// How many nodes have each volume that any has.
    nodes: Mutex<HashMap<VolumeId, usize>>,
    attached: IntGauge,
    migrating: IntGauge,
    migrations: IntCounterVec,
    durations: Histogram,
    fences: IntCounterVec,
}

impl Attachments {
    /// # Errors
    /// If a metric is declared wrongly.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let this = Self {
            nodes: Mutex::default(),
            attached: IntGauge::new(
                "rds_csi_attachments",
                "Nodes that hold a volume, summed over the volumes looked at since the start",
            )?,
            migrating: IntGauge::new(
                "rds_csi_migration_active_migrations",
                "Volumes that two nodes hold",
            )?,
            migrations: IntCounterVec::new(
                Opts::new(
                    "rds_csi_migration_migrations_total",
                    "Migrations that ended: the source left within the limit (success), the \
                     target left (failed), or later than the limit (timeout)",
                ),
                &["result"],
            )?,
            durations: Histogram::with_opts(
                HistogramOpts::new(
                    "rds_csi_migration_duration_seconds",
                    "From the second node's attachment until one of the two left",
                )
                .buckets(DURATIONS.to_vec()),
            )?,
            fences: IntCounterVec::new(
                Opts::new(
                    "rds_csi_fences_total",
                    "Exports turned off, by cause: the last node left (detach), one of two left \
                     (shut-out), other hosts were allowed than recorded (correct), nobody was on \
                     record (close)",
                ),
                &["cause"],
            )?,
        };
        for result in ["success", "failed", "timeout"] {
            this.migrations.with_label_values(&[result]);
        }
        for cause in [Why::Detach, Why::ShutOut, Why::Correct, Why::Close] {
            this.fences.with_label_values(&[cause.word()]);
        }
        registry.register(Box::new(this.attached.clone()))?;
        registry.register(Box::new(this.migrating.clone()))?;
        registry.register(Box::new(this.migrations.clone()))?;
        registry.register(Box::new(this.durations.clone()))?;
        registry.register(Box::new(this.fences.clone()))?;
        Ok(this)
    }

    /// A volume's record was read.
    pub(crate) fn saw(&self, volume: &VolumeId, stage: &Stage) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match stage {
            Stage::Attached(a) => nodes.insert(volume.clone(), a.nodes().count()),
            Stage::Ready | Stage::Deleting | Stage::Filling(_) => nodes.remove(volume),
        };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.attached.set(count(nodes.values().sum()));
        self.migrating.set(count(nodes.values().filter(|n| **n > 1).count()));
    }

    /// A change was made and seen; `before` is the record that it changed.
    pub(crate) fn changed(&self, volume: &VolumeId, before: &Stage, change: &Change, now: u64) {
        if change.export == Some(Export::Off) && change.why != Why::Clear {
            self.fences.with_label_values(&[change.why.word()]).inc();
        }
        let Some(after) = &change.stage else { return };
        self.saw(volume, after);
        if let Some((result, seconds)) = ended(before, after, now) {
            self.migrations.with_label_values(&[result]).inc();
            // Exact far beyond any migration.
            self.durations.observe(seconds as f64);
            tracing::info!(%volume, result, seconds, "migration ended");
        }
    }
}

/// How a migration ended, if this change ends one, and how long it took.
pub(crate) fn ended(before: &Stage, after: &Stage, now: u64) -> Option<(&'static str, u64)> {
    let Stage::Attached(two) = before else { return None };
    let migration = two.migration.as_ref()?;
    let seconds = now.saturating_sub(two.since);
    let moved = match after {
        Stage::Attached(Attachment { migration: Some(_), .. }) => return None,
        Stage::Attached(left) => left.node == migration.target,
        Stage::Ready | Stage::Deleting | Stage::Filling(_) => false,
    };
    let result = match moved {
        true if seconds < migration.limit => "success",
        true => "timeout",
        false => "failed",
    };
    Some((result, seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::owner::{NodeKey, Sharing};
    use rds_csi_proto::ids::HostNqn;

    #[test]
    fn migrations_are_judged_by_who_stays() {
        let key = |name: &str| NodeKey::of(&name.parse().unwrap());
        let one = Attachment::new(key("a"), HostNqn::random(), Sharing::Shared, 0);
        let two = one.joined_by(key("b"), 300, 100);
        let without = |name, now| Stage::Attached(two.without(|n| n == &key(name), now).unwrap());
        let before = Stage::Attached(two.clone());
        for (after, now, want) in [
            (without("a", 150), 150, Some(("success", 50))),
            (without("a", 400), 400, Some(("timeout", 300))),
            (without("b", 150), 150, Some(("failed", 50))),
            (Stage::Ready, 150, Some(("failed", 50))),
            (before.clone(), 150, None),
        ] {
            assert_eq!(ended(&before, &after, now), want);
        }
        assert_eq!(ended(&Stage::Attached(one), &Stage::Ready, 9), None);
    }

    #[test]
    fn what_is_now_follows_from_what_was_read_last() {
        let registry = Registry::new();
        let numbers = Attachments::new(&registry).unwrap();
        let key = |name: &str| NodeKey::of(&name.parse().unwrap());
        let one = Attachment::new(key("a"), HostNqn::random(), Sharing::Shared, 0);
        let volume = VolumeId::from_request_name("x");
        for _ in 0..2 {
            numbers.saw(&volume, &Stage::Attached(one.joined_by(key("b"), 300, 1)));
            assert_eq!((numbers.attached.get(), numbers.migrating.get()), (2, 1));
        }
        numbers.saw(&volume, &Stage::Attached(one));
        assert_eq!((numbers.attached.get(), numbers.migrating.get()), (1, 0));
        numbers.saw(&volume, &Stage::Ready);
        assert_eq!((numbers.attached.get(), numbers.migrating.get()), (0, 0));
    }
}
