//! Which volumes nobody needs any more, as far as can be proven.
//!
//! Sweeps of other drivers have deleted live files by their names, volumes that had just been
//! made, and other clusters' volumes. Here a volume may be swept only if everything says so:
//! its item carries our tag, nobody has it, it is not exported, it is older than asked for by
//! our own stamp, and it is not among the handles that are in use. What is not known speaks
//! against it.

use std::collections::HashSet;
use std::fmt;

use rds_csi_proto::ids::VolumeId;

use super::owner::{OwnerTag, Stage};
use crate::routeros::DiskItem;

/// What is to be said of one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A PersistentVolume has it.
    InUse,
    /// A node has it, or could have it: it is attached or exported.
    Attached,
    /// Its tag has no stamp.
    UnknownAge,
    /// Not old enough.
    Young,
    /// No list of handles was given, so nobody knows.
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
            Self::UsersUnknown => "users unknown (no --known)",
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
    known: Option<&HashSet<VolumeId>>,
    now: u64,
    older_than: u64,
) -> Verdict {
    let Some(known) = known else { return Verdict::UsersUnknown };
    if known.contains(&tag.volume) {
        return Verdict::InUse;
    }
    // Not by listing the stages that are safe to end up here by accident: only these two.
    if item.export || !matches!(tag.stage, Stage::Ready | Stage::Deleting) {
        return Verdict::Attached;
    }
    match age(tag, now) {
        None => Verdict::UnknownAge,
        Some(age) if age < older_than => Verdict::Young,
        Some(_) => Verdict::Orphan,
    }
}

/// Reads a list of handles: words, such as kubectl prints them. Those of other drivers are
/// passed over.
#[must_use]
pub fn handles(text: &str) -> HashSet<VolumeId> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
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
    }
}
