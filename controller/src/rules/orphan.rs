//! Which volumes and snapshots nobody needs any more, as far as can be proven.
//!
//! Sweeps of other drivers have deleted live files by their names, volumes that had just been
//! made, and other clusters' volumes. Here a volume may be swept only if everything says so:
//! its item carries our tag, nobody has it, it is not exported, it is older than asked for by
//! our own stamp, and it is not among the handles that are in use. What is not known speaks
//! against it. The same goes for snapshots.

use std::collections::HashSet;
use std::fmt;

use rds_csi_proto::ids::{SnapshotId, VolumeId};

use super::owner::{OwnerTag, Stage};
use super::snapshot::SnapTag;
use crate::routeros::DiskItem;

/// The handles that are in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    pub volumes: HashSet<VolumeId>,
    pub snapshots: HashSet<SnapshotId>,
}

/// What is to be said of one volume or snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A PersistentVolume or a VolumeSnapshotContent has it.
    InUse,
    /// A node has it, or could have it: it is attached or exported.
    Attached,
    /// Its tag has no stamp.
    UnknownAge,
    /// Not old enough.
    Young,
    /// No list of handles was given, or none with a snapshot in it, so nobody knows.
    UsersUnknown,
    /// Nobody needs it.
    Orphan,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InUse => "in use",
            Self::Attached => "attached or exported",
            Self::UnknownAge => "age unknown, never swept",
            Self::Young => "too young",
            Self::UsersUnknown => "users unknown (none in --known)",
            Self::Orphan => "ORPHAN",
        })
    }
}

/// Seconds since the volume was made; `None` if its tag does not say, or says the future.
#[must_use]
pub fn age(tag: &OwnerTag, now: u64) -> Option<u64> {
    now.checked_sub(u64::from(tag.notes.made?))
}

/// Judges one volume of ours. `known`: the handles that are in use, if they are known.
#[must_use]
pub fn judge(
    item: &DiskItem,
    tag: &OwnerTag,
    known: Option<&Known>,
    now: u64,
    older_than: u64,
) -> Verdict {
    let Some(known) = known else { return Verdict::UsersUnknown };
    if known.volumes.contains(&tag.volume) {
        return Verdict::InUse;
    }
    // Only the stages in which nobody can have it: one that is added later is not among them.
    if item.export || !matches!(tag.stage, Stage::Ready | Stage::Deleting | Stage::Filling(_)) {
        return Verdict::Attached;
    }
    by_age(age(tag, now), older_than)
}

/// Judges one snapshot of ours. A list without any snapshot in it was made of volumes alone.
#[must_use]
pub fn judge_snapshot(tag: &SnapTag, known: Option<&Known>, now: u64, older_than: u64) -> Verdict {
    match known.filter(|known| !known.snapshots.is_empty()) {
        None => Verdict::UsersUnknown,
        Some(known) if known.snapshots.contains(&tag.snapshot) => Verdict::InUse,
        Some(_) => by_age(now.checked_sub(tag.created_ms / 1000), older_than),
    }
}

fn by_age(age: Option<u64>, older_than: u64) -> Verdict {
    match age {
        None => Verdict::UnknownAge,
        Some(age) if age < older_than => Verdict::Young,
        Some(_) => Verdict::Orphan,
    }
}

/// Reads a list of handles: words, such as kubectl prints them. Those of other drivers are
/// passed over.
#[must_use]
pub fn handles(text: &str) -> Known {
    Known {
        volumes: text.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        snapshots: text.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::owner::Notes;

    const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    fn tag(stage: &str, made: Option<u32>) -> OwnerTag {
        let tag =
            OwnerTag::parse(&format!("rds-csi v1 cluster=lab vol={ID} stage={stage}")).unwrap();
        OwnerTag { notes: Notes { made, ..Notes::default() }, ..tag }
    }

    #[test]
    fn only_what_everything_speaks_for_is_an_orphan() {
        let item = DiskItem::sample(ID, 4096);
        let exported = DiskItem { export: true, ..item.clone() };
        let none = handles("");
        let known = handles(&format!("csi-other-1\n{ID} vol-2"));
        let held = "attached node=a host=3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11 mode=rwo since=1";
        let judge = |item, stage, made, known| judge(item, &tag(stage, made), known, 10_000, 3600);
        assert_eq!(judge(&item, "ready", Some(1), Some(&none)), Verdict::Orphan);
        assert_eq!(judge(&item, "deleting", Some(1), Some(&none)), Verdict::Orphan);
        assert_eq!(judge(&item, "ready", Some(1), Some(&known)), Verdict::InUse);
        assert_eq!(judge(&item, "ready", Some(1), None), Verdict::UsersUnknown);
        assert_eq!(judge(&item, "ready", None, Some(&none)), Verdict::UnknownAge);
        assert_eq!(judge(&item, "ready", Some(20_000), Some(&none)), Verdict::UnknownAge);
        assert_eq!(judge(&item, "ready", Some(9_000), Some(&none)), Verdict::Young);
        assert_eq!(judge(&item, held, Some(1), Some(&none)), Verdict::Attached);
        assert_eq!(judge(&exported, "ready", Some(1), Some(&none)), Verdict::Attached);
        // Half a copy, of a call that was given up.
        let half = format!("filling from={ID}");
        assert_eq!(judge(&item, &half, Some(1), Some(&none)), Verdict::Orphan);
        assert_eq!(judge(&item, &half, Some(9_000), Some(&none)), Verdict::Young);
        assert_eq!(judge(&exported, &half, Some(1), Some(&none)), Verdict::Attached);
    }

    #[test]
    fn snapshots_need_a_list_that_has_snapshots() {
        const UUID: &str = "3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
        let tag = |created: u64| {
            let text = format!(
                "rds-csi v1 cluster=lab snap={UUID} of={UUID} size=4096 kind=copy \
                 created={created} stage=ready"
            );
            SnapTag::parse(&text).unwrap()
        };
        let volumes = handles(ID);
        let ours = handles(&format!("{ID} snap-{UUID}"));
        let others = handles(&format!("snap-{}", UUID.replace('3', "4")));
        let judge = |created: u64, known| judge_snapshot(&tag(created), known, 10_000, 3600);
        assert_eq!(judge(1000, None), Verdict::UsersUnknown);
        assert_eq!(judge(1000, Some(&volumes)), Verdict::UsersUnknown);
        assert_eq!(judge(1000, Some(&ours)), Verdict::InUse);
        assert_eq!(judge(1000, Some(&others)), Verdict::Orphan);
        assert_eq!(judge(9_000_000, Some(&others)), Verdict::Young);
        assert_eq!(judge(20_000_000, Some(&others)), Verdict::UnknownAge);
    }
}
