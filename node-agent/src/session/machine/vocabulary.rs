//! What goes into the machine and what comes out of it.

use rds_csi_proto::agent::State;

use crate::kernel::DeviceNumber;
use crate::kernel::sysfs::{Controller, Namespace};

/// Milliseconds on a monotonic clock.
pub type Millis = u64;

/// What does not change during a session's life.
#[derive(Debug, Clone)]
pub struct Config {
    /// Only controllers with this host NQN are this session's.
    pub host_nqn: String,
    /// Whether a shield stands before the namespace.
    pub shield: bool,
    /// The keep-alive timeout.
    pub keep_alive: Millis,
    /// Outage after which waiting I/O is failed.
    pub io_timeout: Option<Millis>,
    /// Spreads the retries of many volumes; any number.
    pub jitter: u64,
    /// Whether other nodes connect as the same host: then a connection that succeeds proves
    /// nothing of this node's claim to the volume.
    pub shared: bool,
    /// Outage after which it is asked whether the attachment still exists before the session
    /// is given back. A shared volume is never given back without an answer.
    pub gate_after: Millis,
}

/// What is known of the attachment under which the volume was staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// It is there, complete, and not being ended.
    Exists,
    /// It is not, or is being ended, or is another one by now.
    Gone(String),
    /// Nobody could say, and why.
    Unknown(String),
}

/// The shield's device as device-mapper shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShieldSeen {
    /// Its own number.
    pub number: DeviceNumber,
    /// The path in its table.
    pub path: Option<DeviceNumber>,
    /// Whether device-mapper still sends I/O down that path.
    pub path_active: bool,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether it queues I/O that finds no path, or fails it.
    pub queueing: bool,
    /// Size of its table in bytes.
    pub size_bytes: u64,
}

/// One look at the kernel.
#[derive(Debug, Clone)]
pub struct Observation {
    /// When the look began: what happened since may be missing in it.
    pub taken_at: Millis,
    /// All controllers of the volume's subsystem, whoever made them.
    pub controllers: Vec<Controller>,
    /// The shield, if it exists.
    pub shield: Option<ShieldSeen>,
}

/// What a portal does when a TCP connection is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortalSeen {
    /// It accepts.
    Answers,
    /// It refuses, or somebody on the way does in its name.
    Refuses,
    /// Nothing comes back.
    Silent,
}

/// What can happen to a session.
#[derive(Debug, Clone)]
pub enum Event {
    /// A look at the kernel.
    Observed(Observation),
    /// Time has passed.
    Tick,
    /// What the portal does now; told during outages only, at each change.
    Portal(PortalSeen),
    /// The action under way has ended.
    Done(Outcome),
    /// An operator asks for an attempt now.
    Reconnect,
    /// An operator, or a fencing, asks for waiting I/O to fail.
    Fail,
    /// Unstage has begun, or was refused by the kernel.
    Drain { begun: bool },
}

/// How an action ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A controller was made, or the target did not let us.
    Connected(Result<(), ConnectFailure>),
    /// The rescan was asked for; its result shows in later observations.
    Rescanned,
    /// The controller is gone or going.
    Deleted,
    /// I/O goes to this namespace now.
    Mapped(Namespace),
    /// The namespace holds something else.
    Different(String),
    /// The namespace could not be read or mapped; nothing has changed.
    MapFailed(String),
    /// Waiting I/O fails from now on.
    FailedIo(Result<(), String>),
    /// Why the target refuses us, if it said that it does.
    Asked(Option<ConnectFailure>),
    /// What became of the attachment.
    Attachment(Attachment),
}

/// Why there is no controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectFailure {
    /// For people.
    pub reason: String,
    /// The target's port is closed: it has let go of every session it had.
    pub port_closed: bool,
    /// The target does not admit this host any more.
    pub host_refused: bool,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a controller.
    Connect,
    /// Look for the namespaces of this controller again.
    Rescan(String),
    /// Delete this controller.
    Delete(String),
    /// Delete this controller, unless it has come live since it was seen.
    GiveUp(String),
    /// Check that the namespace holds this volume, and send I/O to it.
    Map(Namespace),
    /// Stop queueing.
    FailIo,
    /// Ask the target whether it would admit us; changes nothing.
    AskTarget,
    /// Ask whether the attachment still exists.
    AskAttachment,
}

/// A change of state, for the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From this state,
    pub from: State,
    /// to this one,
    pub to: State,
    /// because.
    pub cause: String,
}
