//! What people are told of a change: which Events it makes, in which words.

use crate::rules::attach::{Change, Why};
use crate::rules::owner::{Attachment, NodeKey, Stage};
use crate::volumes::{News, ended};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tale {
    Attached { node: NodeKey },
    Detached { node: NodeKey, seconds: u64 },
    MigrationStarted { source: NodeKey, target: NodeKey, limit: u64 },
    MigrationCompleted { source: NodeKey, target: NodeKey, seconds: u64, limit: u64 },
    MigrationFailed { source: NodeKey, target: NodeKey, seconds: u64 },
    Fenced { node: NodeKey },
    Repaired { why: Why },
}

/// What a change makes. Names are found later.
pub(super) fn tales(news: &News<'_>) -> Vec<Tale> {
    let Change { why, stage, .. } = news.change;
    let mut tales = Vec::new();
    match why {
        Why::Correct | Why::Close | Why::Resume => tales.push(Tale::Repaired { why: *why }),
        Why::ShutOut => {
            tales.extend(news.node.map(|node| Tale::Fenced { node: NodeKey::of(node) }));
        }
        Why::Attach | Why::Join | Why::Detach | Why::Clear | Why::Leave => {}
    }
    let Some(after) = stage else { return tales };
    let (before, after_nodes) = (holders(news.before), holders(after));
    let came = after_nodes.iter().filter(|n| !before.contains(n));
    tales.extend(came.map(|node| Tale::Attached { node: node.clone() }));
    if let Stage::Attached(held) = news.before {
        let seconds = news.now.saturating_sub(held.since);
        let gone = before.iter().filter(|n| !after_nodes.contains(n));
        tales.extend(gone.map(|node| Tale::Detached { node: node.clone(), seconds }));
    }
    tales.extend(migration(news.before, after, news.now));
    tales
}

fn migration(before: &Stage, after: &Stage, now: u64) -> Option<Tale> {
    if let (Some((result, seconds)), Stage::Attached(two)) = (ended(before, after, now), before) {
        let migration = two.migration.as_ref()?;
        let (source, target) = (two.node.clone(), migration.target.clone());
        let limit = migration.limit;
        return Some(match result {
            "failed" => Tale::MigrationFailed { source, target, seconds },
            _ => Tale::MigrationCompleted { source, target, seconds, limit },
        });
    }
    let (Stage::Attached(one), Stage::Attached(two)) = (before, after) else { return None };
    let migration = two.migration.as_ref().filter(|_| one.migration.is_none())?;
    Some(Tale::MigrationStarted {
        source: two.node.clone(),
        target: migration.target.clone(),
        limit: migration.limit,
    })
}

/// Who holds a volume.
pub(super) fn holders(stage: &Stage) -> Vec<NodeKey> {
    match stage {
        Stage::Attached(held) => Attachment::nodes(held).cloned().collect(),
        Stage::Ready | Stage::Deleting | Stage::Filling(_) => Vec::new(),
    }
}

impl Tale {
    /// The Event's reason, and whether somebody should look.
    pub(super) fn reason(&self) -> (&'static str, bool) {
        match self {
            Self::Attached { .. } => ("VolumeAttached", false),
            Self::Detached { .. } => ("VolumeDetached", false),
            Self::MigrationStarted { .. } => ("MigrationStarted", false),
            Self::MigrationCompleted { seconds, limit, .. } => {
                ("MigrationCompleted", seconds >= limit)
            }
            Self::MigrationFailed { .. } => ("MigrationFailed", true),
            Self::Fenced { .. } => ("FencedNode", false),
            Self::Repaired { .. } => ("ExportRepaired", true),
        }
    }

    /// The node that it is most about.
    pub(super) fn node(&self) -> Option<&NodeKey> {
        match self {
            Self::Attached { node } | Self::Detached { node, .. } | Self::Fenced { node } => {
                Some(node)
            }
            Self::MigrationStarted { target, .. }
            | Self::MigrationCompleted { target, .. }
            | Self::MigrationFailed { target, .. } => Some(target),
            Self::Repaired { .. } => None,
        }
    }

    /// The Event's text.
    pub(super) fn note(&self, name: impl Fn(&NodeKey) -> String) -> String {
        match self {
            Self::Attached { node } => {
                format!("Attached to node {}; only its host may connect", name(node))
            }
            Self::Detached { node, seconds } => format!(
                "Detached from node {} after {seconds} s: the appliance does not let it connect \
                 any more",
                name(node)
            ),
            Self::MigrationStarted { source, target, limit } => format!(
                "Migration from {} to {} has begun: both nodes may write, and have {limit} s \
                 (migrationTimeoutSeconds)",
                name(source),
                name(target)
            ),
            Self::MigrationCompleted { source, target, seconds, limit } if seconds >= limit => {
                format!(
                    "Migration from {} to {} took {seconds} s, longer than its limit of {limit} s. \
                     If that is usual, raise migrationTimeoutSeconds in the StorageClass",
                    name(source),
                    name(target)
                )
            }
            Self::MigrationCompleted { source, target, seconds, .. } => {
                format!("Migrated from {} to {} in {seconds} s", name(source), name(target))
            }
            Self::MigrationFailed { source, target, seconds } => format!(
                "Migration from {} to {} ended after {seconds} s without success; the volume stays \
                 on {0}, unless it was detached there too. See the VirtualMachineInstanceMigration",
                name(source),
                name(target)
            ),
            Self::Fenced { node } => format!(
                "Node {} was shut out: the export was turned off, which ends its sessions. I/O of \
                 the other node waits for some seconds",
                name(node)
            ),
            Self::Repaired { why } => match why {
                Why::Close => "The volume was exported with nobody on record: closed. If you did \
                     not do that by hand, see docs/rwx.md"
                    .into(),
                Why::Correct => "Other hosts were allowed to connect than those on record: \
                     corrected, with the export off. Who else changes the appliance's items?"
                    .into(),
                _ => "The export was off although a node has the volume: turned on again".into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::attach::Export;
    use crate::rules::owner::Sharing;
    use rds_csi_proto::ids::{HostNqn, VolumeId};

    fn told(before: &Stage, why: Why, after: Option<Stage>, now: u64) -> Vec<&'static str> {
        let change = Change { why, stage: after, allow: None, export: Some(Export::Off) };
        let volume = VolumeId::from_request_name("v");
        let node = "a".parse().unwrap();
        let news = News { volume: &volume, node: Some(&node), before, change: &change, now };
        tales(&news).iter().map(|t| t.reason().0).collect()
    }

    #[test]
    fn each_change_has_its_events() {
        let key = |name: &str| NodeKey::of(&name.parse().unwrap());
        let one = Attachment::new(key("a"), HostNqn::random(), Sharing::Shared, 0);
        let two = one.joined_by(key("b"), 300, 100);
        let rest =
            |gone, now| Some(Stage::Attached(two.without(|n| n == &key(gone), now).unwrap()));
        let (a, ab) = (Stage::Attached(one), Stage::Attached(two.clone()));
        assert_eq!(told(&Stage::Ready, Why::Attach, Some(a.clone()), 0), ["VolumeAttached"]);
        let joined = ["VolumeAttached", "MigrationStarted"];
        assert_eq!(told(&a, Why::Join, Some(ab.clone()), 100), joined);
        assert_eq!(told(&ab, Why::ShutOut, None, 150), ["FencedNode"]);
        let moved = ["VolumeDetached", "MigrationCompleted"];
        assert_eq!(told(&ab, Why::Leave, rest("a", 150), 150), moved);
        assert_eq!(
            told(&ab, Why::Leave, rest("b", 150), 150),
            ["VolumeDetached", "MigrationFailed"]
        );
        assert_eq!(told(&a, Why::Detach, None, 9), Vec::<&str>::new());
        assert_eq!(told(&a, Why::Clear, Some(Stage::Ready), 9), ["VolumeDetached"]);
        for why in [Why::Correct, Why::Close, Why::Resume] {
            assert_eq!(told(&a, why, None, 9), ["ExportRepaired"]);
        }
    }

    #[test]
    fn a_late_migration_says_what_to_do() {
        let key = |name: &str| NodeKey::of(&name.parse().unwrap());
        let (source, target) = (key("a"), key("b"));
        let late = Tale::MigrationCompleted { source, target, seconds: 400, limit: 300 };
        assert!(late.reason().1);
        let note = late.note(ToString::to_string);
        assert!(note.contains("migrationTimeoutSeconds") && note.contains("from a to b"), "{note}");
    }
}
