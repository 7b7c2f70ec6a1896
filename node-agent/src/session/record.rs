//! What the journal keeps of a session.

use rds_csi_proto::agent::State;
use rds_csi_proto::ids::VolumeId;
use serde::{Deserialize, Serialize};

use super::content::Samples;
use super::{Content, SessionSpec};

/// How far a session's life has come, written before the step that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// To be connected and shielded; there may be a controller and a device, or not.
    Attached,
    /// To be taken down; there may be a device, a controller, or neither any more.
    Detaching,
}

/// One session, by volume id, in [`crate::journal::Table::Sessions`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionRecord {
    /// How to connect.
    pub spec: SessionSpec,
    /// The boot in which this was true. After another one nothing of it is, and the volume
    /// may belong to another node by then.
    pub boot_id: String,
    /// How far.
    pub phase: Phase,
    /// What the volume holds.
    pub content: Content,
    /// For a raw volume, what was sampled of it.
    pub samples: Samples,
}

/// One entry of a volume's history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransitionRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// As the protocol numbers it.
    pub from: i32,
    /// As the protocol numbers it.
    pub to: i32,
    /// Milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// For people.
    pub cause: String,
}

impl TransitionRecord {
    /// Its form on the wire.
    #[must_use]
    pub fn to_proto(&self) -> rds_csi_proto::agent::Transition {
        rds_csi_proto::agent::Transition {
            volume_id: self.volume.to_string(),
            from: self.from,
            to: self.to,
            at_unix_ms: self.at_unix_ms,
            cause: self.cause.clone(),
        }
    }
}

/// A state's name, as people and programs read it.
#[must_use]
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "Unknown",
        State::Absent => "Absent",
        State::Connecting => "Connecting",
        State::Live => "Live",
        State::Degraded => "Degraded",
        State::Lost => "Lost",
        State::Backoff => "Backoff",
        State::Blocked => "Blocked",
        State::Fenced => "Fenced",
        State::Draining => "Draining",
    }
}
