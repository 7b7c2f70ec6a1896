//! The values that labels take: few and fixed, so that no text of a kernel or a target ever
//! becomes a time series.

use rds_csi_proto::agent::State;

use crate::session::machine::Attachment;

/// All states, as labels and the command line name them.
pub const STATES: [State; 9] = [
    State::Absent,
    State::Connecting,
    State::Live,
    State::Degraded,
    State::Lost,
    State::Backoff,
    State::Blocked,
    State::Fenced,
    State::Draining,
];

/// Why a session changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The agent tries to connect.
    Attempt,
    /// I/O goes to the namespace.
    IoFlows,
    /// The controller is there and not live.
    LinkLost,
    /// No controller of ours, or one on its way out.
    ControllerGone,
    /// The controller is live and its namespace is not there.
    NamespaceGone,
    /// Controller and namespace are there, I/O does not go to them.
    PathFailed,
    /// An attempt to connect did not succeed.
    ConnectFailed,
    /// The target, or whoever grants attachments, does not let us have the volume any more.
    ClaimLost,
    /// The namespace holds something else.
    OtherContent,
    /// Somebody asked for it on the command line.
    Operator,
    /// Unstage began.
    Unstage,
    /// Unstage was refused.
    UnstageRefused,
    /// Nothing of these.
    Other,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Attempt,
        Self::IoFlows,
        Self::LinkLost,
        Self::ControllerGone,
        Self::NamespaceGone,
        Self::PathFailed,
        Self::ConnectFailed,
        Self::ClaimLost,
        Self::OtherContent,
        Self::Operator,
        Self::Unstage,
        Self::UnstageRefused,
        Self::Other,
    ];

    /// Its value as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Attempt => "attempt",
            Self::IoFlows => "io_flows",
            Self::LinkLost => "link_lost",
            Self::ControllerGone => "controller_gone",
            Self::NamespaceGone => "namespace_gone",
            Self::PathFailed => "path_failed",
            Self::ConnectFailed => "connect_failed",
            Self::ClaimLost => "claim_lost",
            Self::OtherContent => "other_content",
            Self::Operator => "operator",
            Self::Unstage => "unstage",
            Self::UnstageRefused => "unstage_refused",
            Self::Other => "other",
        }
    }
}

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// There is a controller now.
    Connected,
    /// There was one already.
    Existed,
    /// The portal's port is closed.
    PortClosed,
    /// The portal does not answer.
    Unreachable,
    /// Connect Invalid Host, NVMe status 0x184.
    HostRefused,
    /// Connect Invalid Parameters, NVMe status 0x182.
    NoSuchSubsystem,
    /// Another NVMe status, or one that could not be learned.
    OtherStatus,
    /// The kernel has not finished in time.
    Timeout,
    /// The kernel could not try.
    Error,
}

impl Attempt {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Connected,
        Self::Existed,
        Self::PortClosed,
        Self::Unreachable,
        Self::HostRefused,
        Self::NoSuchSubsystem,
        Self::OtherStatus,
        Self::Timeout,
        Self::Error,
    ];

    /// Its value as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Existed => "existed",
            Self::PortClosed => "port_closed",
            Self::Unreachable => "unreachable",
            Self::HostRefused => "host_refused",
            Self::NoSuchSubsystem => "no_such_subsystem",
            Self::OtherStatus => "other_status",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// What can be answered to whether an attachment still exists.
pub const ANSWERS: [&str; 3] = ["exists", "gone", "unknown"];

/// An answer's label.
#[must_use]
pub fn answer(answer: &Attachment) -> &'static str {
    match answer {
        Attachment::Exists => "exists",
        Attachment::Gone(_) => "gone",
        Attachment::Unknown(_) => "unknown",
    }
}

/// What the start of the agent made of a session that it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// Taken over as the journal has it.
    Journal,
    /// The journal lacked it; taken over from its copy in `/run`.
    Copy,
    /// Of an earlier boot: history.
    EarlierBoot,
    /// A shield of which nothing is known: nobody reconnects it.
    UnknownShield,
}

impl Adopted {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Journal, Self::Copy, Self::EarlierBoot, Self::UnknownShield];

    /// Its value as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Copy => "copy",
            Self::EarlierBoot => "earlier_boot",
            Self::UnknownShield => "unknown_shield",
        }
    }
}

/// The calls of all services on the socket, by the last part of their path.
pub const RPCS: [&str; 15] = [
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeGetVolumeStats",
    "NodeExpandVolume",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "Status",
    "Reconnect",
    "Rescan",
    "Fail",
    "History",
    "Watch",
    "Answer",
];

/// The name of a call by its path; whatever else is asked for is `other`.
#[must_use]
pub fn rpc_of(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    RPCS.into_iter().find(|known| *known == name).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_calls_become_labels() {
        assert_eq!(rpc_of("/csi.v1.Node/NodeStageVolume"), "NodeStageVolume");
        assert_eq!(rpc_of("/csi.v1.Node/NodeStageVolume1"), "other");
        assert_eq!(rpc_of(""), "other");
    }

    #[test]
    fn every_call_of_the_services_is_known() {
        // What prost made of the protocols has the paths in it; a call that is added there
        // must be added here.
        let generated = [
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/proto/agent.proto")),
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/proto/csi.proto")),
        ];
        let mut node = false;
        for line in generated.iter().flat_map(|text| text.lines()) {
            if let Some(service) = line.strip_prefix("service ") {
                let ours = ["Node ", "Sessions ", "Attachments "];
                node = ours.iter().any(|name| service.starts_with(name));
            }
            let Some(rest) = line.trim().strip_prefix("rpc ").filter(|_| node) else { continue };
            let name = rest.split(['(', ' ']).next().unwrap_or_default();
            assert!(RPCS.contains(&name), "{name} is not in RPCS");
        }
    }
}
