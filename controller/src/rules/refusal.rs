//! Why a node does not get a volume, in words. Each sends its reader to the part of
//! docs/rwx.md that says what to do.

use rds_csi_proto::ids::VolumeId;

use super::attachment::{Attachment, Sharing};

/// Why a node does not get a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It is being deleted.
    Deleting,
    /// Its data is not there yet.
    Filling,
    /// This node holds it with another access mode.
    OtherTerms,
    /// Another node holds it, and it is not for two.
    HeldBy(Attachment),
    /// Another node holds it, and nothing proves a live migration; what would.
    NotAMigration(Attachment, String),
    /// Two nodes hold it.
    HeldByTwo(Attachment),
    /// Two nodes have held it for longer than a migration may take.
    MigrationStuck(Attachment),
}

impl Refusal {
    /// For people, at this moment of Unix time.
    #[must_use]
    pub fn message(&self, volume: &VolumeId, now: u64) -> String {
        let lasts = |a: &Attachment| now.saturating_sub(a.since);
        let both =
            |a: &Attachment| a.nodes().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        match self {
            Self::Deleting => format!("volume {volume} is being deleted"),
            Self::Filling => {
                format!("volume {volume} is still being filled with its content")
            }
            Self::OtherTerms => {
                format!("volume {volume} is attached to this node with another access mode")
            }
            Self::HeldBy(a) => {
                let mut text = format!(
                    "volume {volume} is attached to {} {} (for {} s); it must be detached there \
                     first",
                    if a.migration.is_some() { "nodes" } else { "node" },
                    both(a),
                    lasts(a)
                );
                if a.sharing == Sharing::Exclusive {
                    text.push_str(". Its access mode is for one node (docs/rwx.md#one-node)");
                }
                text
            }
            Self::NotAMigration(a, why) => format!(
                "volume {volume} is attached to node {} (for {} s), and a second node gets it \
                 only for a live migration: {why} (docs/rwx.md#who-may-be-second)",
                a.node,
                lasts(a)
            ),
            Self::HeldByTwo(a) => format!(
                "volume {volume} is attached to nodes {} (for {} s), and two is the most; one of \
                 them must be detached first (docs/rwx.md#two-nodes-at-most)",
                both(a),
                lasts(a)
            ),
            Self::MigrationStuck(a) => format!(
                "the live migration of volume {volume} between nodes {} has lasted {} s, its limit \
                 is {} s (migrationTimeoutSeconds): no further node gets it. What runs goes on; \
                 let the migration finish, or cancel it so that one of the two is detached \
                 (docs/rwx.md#a-stuck-migration)",
                both(a),
                lasts(a),
                a.migration.as_ref().map_or(0, |m| m.limit)
            ),
        }
    }
}
