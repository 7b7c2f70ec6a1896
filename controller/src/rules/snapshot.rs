//! The snapshot tag: what the `comment` of a snapshot's record says.
//!
//! Each snapshot has an item of its own on the appliance, which is never exported. For a full
//! copy it is the copy's file; a copy-on-write snapshot is a read-only subvolume, which has
//! no comment, so its record is a small file beside it. Either way the record is there before
//! the snapshot is, and says how far it came:
//!
//! ```text
//! rds-csi v1 cluster=<id> snap=<uuid> of=<uuid> size=<bytes> kind=cow|copy created=<ms> stage=making epoch=<uuid>
//! rds-csi v1 cluster=<id> snap=<uuid> of=<uuid> size=<bytes> kind=cow|copy created=<ms> stage=ready
//! rds-csi v1 cluster=<id> snap=<uuid> of=<uuid> size=<bytes> kind=cow|copy created=<ms> stage=deleting
//! ```
//!
//! Read strictly, as the owner tag is, and never longer than one.

use std::fmt;

use rds_csi_proto::ids::{SnapshotId, VolumeId};

use super::owner::ClusterId;

const PREFIX: &str = "rds-csi v1 ";

/// How a snapshot is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A read-only btrfs snapshot of the volume's subvolume: atomic, at once.
    CopyOnWrite,
    /// A copy of the whole volume, which must not be written meanwhile.
    FullCopy,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapStage {
    /// Begun. `epoch` is the UUID of the host that the source admitted at that moment: each
    /// attachment and each detachment gives the source another, so one that is still there
    /// proves that nobody had the volume meanwhile.
    Making {
        /// The UUID of a host NQN.
        epoch: String,
    },
    /// All of it is there.
    Ready,
    /// Its deletion has begun and its data may be gone.
    Deleting,
}

/// The whole comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapTag {
    /// Whose.
    pub cluster: ClusterId,
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Of which volume.
    pub source: VolumeId,
    /// Its exact size in bytes.
    pub size: u64,
    /// How it was made.
    pub method: Method,
    /// When, in milliseconds of Unix time.
    pub created_ms: u64,
    /// How far it is.
    pub stage: SnapStage,
}

impl SnapTag {
    /// The same snapshot at another stage.
    #[must_use]
    pub fn at(&self, stage: SnapStage) -> Self {
        Self { stage, ..self.clone() }
    }

    /// Reads a comment; `None` if it is not, to the letter, a snapshot tag of ours.
    #[must_use]
    pub fn parse(comment: &str) -> Option<Self> {
        let mut words = comment.strip_prefix(PREFIX)?.split(' ');
        let mut field = |key: &str| {
            let (found, value) = words.next()?.split_once('=')?;
            (found == key).then_some(value)
        };
        let tag = Self {
            cluster: field("cluster")?.parse().ok()?,
            snapshot: format!("snap-{}", field("snap")?).parse().ok()?,
            source: format!("pvc-{}", field("of")?).parse().ok()?,
            size: field("size")?.parse().ok()?,
            method: match field("kind")? {
                "cow" => Method::CopyOnWrite,
                "copy" => Method::FullCopy,
                _ => return None,
            },
            created_ms: field("created")?.parse().ok()?,
            stage: match field("stage")? {
                "making" => SnapStage::Making { epoch: field("epoch")?.to_owned() },
                "ready" => SnapStage::Ready,
                "deleting" => SnapStage::Deleting,
                _ => return None,
            },
        };
        // One spelling only, and nothing behind it.
        (tag.to_string() == comment).then_some(tag)
    }
}

impl fmt::Display for SnapTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.method {
            Method::CopyOnWrite => "cow",
            Method::FullCopy => "copy",
        };
        let source = self.source.as_str().strip_prefix("pvc-").unwrap_or_default();
        write!(
            f,
            "{PREFIX}cluster={} snap={} of={source} size={} kind={kind} created={}",
            self.cluster,
            self.snapshot.uuid(),
            self.size,
            self.created_ms
        )?;
        match &self.stage {
            SnapStage::Making { epoch } => write!(f, " stage=making epoch={epoch}"),
            SnapStage::Ready => f.write_str(" stage=ready"),
            SnapStage::Deleting => f.write_str(" stage=deleting"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::owner::MAX_LEN;
    use proptest::prelude::*;

    const UUID: &str = "3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    fn tag(cluster: &str, size: u64, created_ms: u64, stage: SnapStage) -> SnapTag {
        SnapTag {
            cluster: cluster.parse().unwrap(),
            snapshot: format!("snap-{UUID}").parse().unwrap(),
            source: format!("pvc-{UUID}").parse().unwrap(),
            size,
            method: Method::FullCopy,
            created_ms,
            stage,
        }
    }

    #[test]
    fn a_tag_is_written_as_documented() {
        let text = tag("lab", 4096, 1_700_000_000_000, SnapStage::Ready).to_string();
        assert_eq!(
            text,
            format!(
                "rds-csi v1 cluster=lab snap={UUID} of={UUID} size=4096 kind=copy \
                 created=1700000000000 stage=ready"
            )
        );
        for bad in [
            format!("{text} "),
            format!("{text} x=1"),
            text.replace("v1", "v2"),
            text.replace("4096", "+4096"),
            text.replace("ready", "making"),
            text.replace("kind=copy", "kind=fake"),
            text.replace("snap=", "vol="),
        ] {
            assert_eq!(SnapTag::parse(&bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_tag_is_short_and_round_trips(
            cluster in "[A-Za-z0-9._-]{1,36}",
            size in 0..=i64::MAX as u64,
            created in 0u64..10_000_000_000_000,
        ) {
            for stage in [
                SnapStage::Making { epoch: UUID.into() },
                SnapStage::Ready,
                SnapStage::Deleting,
            ] {
                let t = tag(&cluster, size, created, stage);
                let text = t.to_string();
                prop_assert!(text.len() <= MAX_LEN, "{} bytes", text.len());
                prop_assert_eq!(SnapTag::parse(&text), Some(t));
                prop_assert_eq!(super::super::owner::OwnerTag::parse(&text), None);
            }
        }

        #[test]
        fn reading_never_panics(text in "(rds-csi v1 )?[ -~]{0,80}") {
            if let Some(t) = SnapTag::parse(&text) {
                prop_assert_eq!(t.to_string(), text);
            }
        }
    }
}
