//! Who may have a volume: the rules of ControllerPublish and ControllerUnpublish.
//!
//! ```text
//!            publish(a)                    publish(b), proven migration, rwx only
//!   Ready ──────────────► Attached(a) ──────────────────────────────► Attached(a, b)
//!     ▲                     │    ▲                                      │
//!     └─────────────────────┘    └──────────────────────────────────────┘
//!        unpublish(a | all):        unpublish(a) or (b): the export goes off, is seen to
//!        off, seen, then cleared    be off, and on again for the one who stays
//!
//!   publish of a node that is on record: same epoch, whatever is missing is put right
//!   publish of any other node: refused, names who has it. Time changes nothing in that.
//! ```
//!
//! Each rule is a step: it is given what the appliance shows now, and says which one change
//! comes next, or that all is done. It keeps no memory, so it goes on from wherever a call
//! that was cut short has left the item, whoever made it. The driver
//! ([`crate::volumes`]) looks, asks, changes, and looks again until a step says `Done`; the
//! model checker of this module's tests drives the same functions.
//!
//! # One change for record, host and export
//!
//! An attachment is made by one `set` of all three, which halves the time a pod waits. That
//! the appliance applies them together is likely and not known, so no order may do harm:
//! - export first: it still admits only the host that nobody was given (`Allow::nobody`),
//!   which is why a volume that cannot be shown to admit nobody is closed in a step of its
//!   own before;
//! - host first: not exported, nobody connects;
//! - record first: claims an attachment that is not there, which is harmless.
//!
//! And if it stops half-way, then either the record is there, and the next call goes on by
//! it; or it is not, and what is exported with nobody on record is closed by the next call,
//! whichever it is. The host NQN of an attachment is told to the node only when all three
//! were read back.
//!
//! Taking away stays in two: the record is cleared only after the export is seen to be off.

use rds_csi_proto::ids::HostNqn;

use super::attachment::{Allow, Attachment, Grant, Hosts, NodeKey, Sharing};
use super::owner::Stage;
pub use super::refusal::Refusal;

/// What the appliance shows.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The record.
    pub stage: &'a Stage,
    /// False only if it is proven to be off.
    pub exported: bool,
    /// The allowed hosts, as text.
    pub allow: &'a str,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step<T> {
    /// Make this change, and look again.
    Change(Change),
    /// Nothing is missing.
    Done(T),
    /// It must not be.
    Refused(Refusal),
}

/// Properties of one item that are set together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// What for.
    pub why: Why,
    /// The record.
    pub stage: Option<Stage>,
    /// The allowed hosts.
    pub allow: Option<Allow>,
    /// The export.
    pub export: Option<Export>,
}

/// What a change is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Exported, or open to somebody, with nobody on record.
    Close,
    Attach,
    /// A second node.
    Join,
    /// The allowed hosts were not those on record.
    Correct,
    /// Exported again for whoever is on record.
    Resume,
    /// The last node leaves: the export goes,
    Detach,
    /// and then the record.
    Clear,
    /// One of two leaves: the export goes,
    ShutOut,
    /// and comes back for the other.
    Leave,
}

impl Why {
    /// In few words, for messages.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Close => "closing it",
            Self::Attach => "attaching",
            Self::Join => "recording the second node",
            Self::Correct => "correcting the allowed hosts",
            Self::Resume => "turning the export on",
            Self::Detach => "turning the export off",
            Self::Clear => "clearing the attachment",
            Self::ShutOut => "turning the export off for the node that leaves",
            Self::Leave => "leaving it to the other node",
        }
    }

    /// In one word, for crash points and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Attach => "attach",
            Self::Join => "join",
            Self::Correct => "correct",
            Self::Resume => "resume",
            Self::Detach => "detach",
            Self::Clear => "clear",
            Self::ShutOut => "shut-out",
            Self::Leave => "leave",
        }
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Export {
    On,
    Off,
}

/// Whether a second node may have a volume that another one holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MayShare {
    /// All its users are one machine that moves, or the user has taken it upon himself.
    Yes,
    /// Nothing proves that, and what would.
    Unproven(String),
}

/// A ControllerPublish.
#[derive(Debug, Clone)]
pub struct Publish {
    /// For which node.
    pub node: NodeKey,
    /// On which terms.
    pub sharing: Sharing,
    /// How a new shared attachment names its nodes.
    pub hosts: Hosts,
    /// Whether it may be the second node.
    pub may_share: MayShare,
    /// How many seconds a migration may take.
    pub limit: u64,
    /// Seconds of Unix time.
    pub now: u64,
    /// The epoch, should a new one begin.
    pub fresh: HostNqn,
    /// A host NQN for nobody.
    pub closed: HostNqn,
}

/// Decides on a ControllerPublish. Done gives what the node connects with.
#[must_use]
pub fn publish(view: View<'_>, request: &Publish) -> Step<Grant> {
    let held = match view.stage {
        Stage::Deleting => return Step::Refused(Refusal::Deleting),
        Stage::Filling(_) => return Step::Refused(Refusal::Filling),
        Stage::Ready => return attach(view, request),
        Stage::Attached(held) => held,
    };
    if held.nodes().any(|n| n == &request.node) {
        if held.sharing != request.sharing {
            return Step::Refused(Refusal::OtherTerms);
        }
        return match restore(view, held) {
            Some(change) => Step::Change(change),
            None => Step::Done(held.grant_of(&request.node)),
        };
    }
    if let Some(refusal) = refuse(held, request) {
        return Step::Refused(refusal);
    }
    // First as it should be for the one who has it, then the second.
    if let Some(change) = restore(view, held).filter(|c| c.allow.is_some()) {
        return Step::Change(change);
    }
    let joined = held.joined_by(request.node.clone(), request.limit, request.now);
    Step::Change(Change {
        why: Why::Join,
        allow: Some(joined.allow()),
        stage: Some(Stage::Attached(joined)),
        export: Some(Export::On),
    })
}

/// A new attachment of a volume that nobody has.
fn attach(view: View<'_>, request: &Publish) -> Step<Grant> {
    if view.exported || !Allow::is_nobody(view.allow) {
        return Step::Change(close(Why::Close, &request.closed));
    }
    let hosts = match request.sharing {
        Sharing::Exclusive => Hosts::One,
        Sharing::Shared => request.hosts,
    };
    let new = Attachment {
        hosts,
        ..Attachment::new(request.node.clone(), request.fresh.clone(), request.sharing, request.now)
    };
    Step::Change(Change {
        why: Why::Attach,
        allow: Some(new.allow()),
        stage: Some(Stage::Attached(new)),
        export: Some(Export::On),
    })
}

/// Why another node than those on record is refused. The time comes before the number: a
/// migration that is stuck has two nodes by definition, and would never be told of.
fn refuse(held: &Attachment, request: &Publish) -> Option<Refusal> {
    let both_shared = held.sharing == Sharing::Shared && request.sharing == Sharing::Shared;
    if !both_shared {
        return Some(Refusal::HeldBy(held.clone()));
    }
    match (&held.migration, &request.may_share) {
        (Some(m), _) if request.now.saturating_sub(held.since) >= m.limit => {
            Some(Refusal::MigrationStuck(held.clone()))
        }
        (Some(_), _) => Some(Refusal::HeldByTwo(held.clone())),
        (None, MayShare::Unproven(why)) => Some(Refusal::NotAMigration(held.clone(), why.clone())),
        // The target could not shut out one of them for good.
        (None, MayShare::Yes) if held.hosts == Hosts::One => {
            Some(Refusal::NotAMigration(held.clone(), ONE_HOST.into()))
        }
        (None, MayShare::Yes) => None,
    }
}

const ONE_HOST: &str = "both nodes would connect as the same host, and one that is detached by \
    force could come back and write. That takes a controller with Kubernetes, whom the nodes' \
    agents can ask, or a RouterOS that allows a list of hosts and --allow-host-list; either \
    before the first node is attached";

/// What is missing for the nodes on record. The allowed hosts are never corrected under an
/// export that is on, nor together with turning it on: who is connected by the wrong ones
/// has to go, and nobody else may come.
fn restore(view: View<'_>, held: &Attachment) -> Option<Change> {
    let change =
        |why, allow, export| Some(Change { why, stage: None, allow, export: Some(export) });
    let allow = held.allow();
    if view.allow != allow.to_string() {
        return change(Why::Correct, Some(allow), Export::Off);
    }
    match view.exported {
        true => None,
        false => change(Why::Resume, None, Export::On),
    }
}

fn close(why: Why, closed: &HostNqn) -> Change {
    let allow = Some(Allow::nobody(closed));
    Change { why, stage: None, allow, export: Some(Export::Off) }
}

/// Whether the node that leaves is known to have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Departure {
    /// Its session is proven to be closed.
    Proven,
    /// It may still be connected. A call that says "detached" proves nothing.
    Unproven,
}

/// A ControllerUnpublish.
#[derive(Debug, Clone)]
pub struct Unpublish {
    /// From which node; none means all.
    pub node: Option<NodeKey>,
    /// Whether it has left already.
    pub departure: Departure,
    /// Seconds of Unix time.
    pub now: u64,
    /// A host NQN for nobody.
    pub closed: HostNqn,
}

/// Decides on a ControllerUnpublish. When it is done, none of the nodes named can reach the
/// volume any more.
#[must_use]
pub fn unpublish(view: View<'_>, request: &Unpublish) -> Step<()> {
    let held = match view.stage {
        // Exported with nobody on record: the call promises that no node has it afterwards.
        Stage::Ready | Stage::Deleting | Stage::Filling(_) if view.exported => {
            return Step::Change(close(Why::Close, &request.closed));
        }
        Stage::Ready | Stage::Deleting | Stage::Filling(_) => return Step::Done(()),
        Stage::Attached(held) => held,
    };
    let leaves = |node: &NodeKey| request.node.as_ref().is_none_or(|n| n == node);
    if !held.nodes().any(leaves) {
        // Whoever has it is left alone. Except that the last of two may have left by a call
        // that ended between taking the export away and giving it back, or that a second one
        // was let in before it came on record (a change done in part): then more hosts are
        // allowed than recorded, and one of them may be the node that leaves.
        let shared = held.sharing == Sharing::Shared;
        let unfinished = !view.exported || view.allow != held.allow().to_string();
        return match restore(view, held).filter(|_| shared && unfinished) {
            Some(change) => Step::Change(change),
            None => Step::Done(()),
        };
    }
    let off = Step::Change(Change {
        why: Why::Detach,
        stage: None,
        allow: None,
        export: Some(Export::Off),
    });
    match held.without(leaves, request.now) {
        None if view.exported => off,
        None => {
            Step::Change(Change { stage: Some(Stage::Ready), ..close(Why::Clear, &request.closed) })
        }
        Some(rest) => Step::Change(leave(view, rest, request.departure)),
    }
}

/// One of two leaves. Only the end of the export ends its sessions; that it takes the
/// other's with it is what the shield is for. The export is not given back in the same
/// change that shuts the leaver out: that one has to be seen first.
fn leave(view: View<'_>, rest: Attachment, departure: Departure) -> Change {
    let allow = rest.allow();
    let open = view.exported && departure == Departure::Unproven;
    let wide = !view.exported && view.allow != allow.to_string();
    if open || wide {
        let why = Why::ShutOut;
        return Change { why, stage: None, allow: Some(allow), export: Some(Export::Off) };
    }
    Change {
        why: Why::Leave,
        allow: Some(allow),
        stage: Some(Stage::Attached(rest)),
        export: Some(Export::On),
    }
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "attach_model.rs"]
mod model;
