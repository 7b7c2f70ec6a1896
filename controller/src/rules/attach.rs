//! Who may have a volume: the rules of ControllerPublish and ControllerUnpublish.
//!
//! ```text
//!            publish(node)                       unpublish(node | all)
//!   Ready ───────────────────► Attached(node) ───────────────────────► Ready
//!                                │      ▲                 (export off, read back, first)
//!               publish(same) ───┘──────┘  same epoch
//!               publish(other): refused, names the holder
//! ```
//!
//! Record, host and export are set together (why that is safe: `attach` in
//! [`crate::volumes`]); the record is cleared only after the export is seen to be off.

use rds_csi_proto::ids::HostNqn;

use super::owner::{Attachment, NodeKey, Sharing, Stage};

/// What ControllerPublish has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// Make a new attachment with a fresh host NQN. If it is exported although nobody holds
    /// it, whoever may be connected has to be thrown out first.
    Attach,
    /// This node holds it already: make sure of it, with the same host NQN.
    Resume(HostNqn),
    /// This node holds it on other terms.
    Incompatible(Attachment),
    /// Another node holds it.
    HeldBy(Attachment),
    /// It is being deleted.
    Deleting,
    /// Its data is not there yet.
    Filling,
}

/// Decides on a ControllerPublish.
#[must_use]
pub fn publish(stage: &Stage, node: &NodeKey, sharing: Sharing) -> Publish {
    match stage {
        Stage::Deleting => Publish::Deleting,
        Stage::Filling(_) => Publish::Filling,
        Stage::Ready => Publish::Attach,
        Stage::Attached(a) if &a.node != node => Publish::HeldBy(a.clone()),
        Stage::Attached(a) if a.sharing != sharing => Publish::Incompatible(a.clone()),
        Stage::Attached(a) => Publish::Resume(a.host.clone()),
    }
}

/// What ControllerUnpublish has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpublish {
    /// Nothing: this node does not hold it. Whoever does is left alone.
    Nothing,
    /// Turn the export off, see that it is, clear the record.
    Close,
}

/// Decides on a ControllerUnpublish; no node means all of them.
#[must_use]
pub fn unpublish(stage: &Stage, exported: bool, node: Option<&NodeKey>) -> Unpublish {
    match stage {
        Stage::Attached(a) if node.is_none_or(|n| n == &a.node) => Unpublish::Close,
        Stage::Attached(_) => Unpublish::Nothing,
        // Exported with nobody on record: the call promises that no node has it afterwards.
        Stage::Ready | Stage::Deleting | Stage::Filling(_) if exported => Unpublish::Close,
        Stage::Ready | Stage::Deleting | Stage::Filling(_) => Unpublish::Nothing,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> NodeKey {
        NodeKey::of(&format!("node-{n}").parse().unwrap())
    }

    fn attached(n: u8, sharing: Sharing) -> Stage {
        Stage::Attached(Attachment { node: key(n), host: HostNqn::random(), sharing, since: 0 })
    }

    #[test]
    fn the_rules() {
        use Sharing::{Exclusive, Shared};
        assert_eq!(publish(&Stage::Ready, &key(1), Exclusive), Publish::Attach);
        assert_eq!(publish(&Stage::Deleting, &key(1), Exclusive), Publish::Deleting);
        let held = attached(1, Exclusive);
        assert!(matches!(publish(&held, &key(1), Exclusive), Publish::Resume(_)));
        assert!(matches!(publish(&held, &key(1), Shared), Publish::Incompatible(_)));
        assert!(matches!(publish(&held, &key(2), Exclusive), Publish::HeldBy(_)));
        assert_eq!(unpublish(&held, true, Some(&key(2))), Unpublish::Nothing);
        assert_eq!(unpublish(&held, true, Some(&key(1))), Unpublish::Close);
        assert_eq!(unpublish(&held, true, None), Unpublish::Close);
        assert_eq!(unpublish(&Stage::Ready, false, None), Unpublish::Nothing);
        assert_eq!(unpublish(&Stage::Ready, true, Some(&key(1))), Unpublish::Close);
    }

    proptest! {
        // Whatever the order of calls, a node gets the volume only when no other has it.
        #[test]
        fn never_two_holders(calls in proptest::collection::vec((0u8..3, any::<bool>()), 0..60)) {
            let mut stage = Stage::Ready;
            let mut exported = false;
            let mut connected: Option<(u8, HostNqn)> = None;
            for (n, is_publish) in calls {
                if is_publish {
                    match publish(&stage, &key(n), Sharing::Exclusive) {
                        Publish::Attach => {
                            prop_assert!(connected.is_none());
                            stage = attached(n, Sharing::Exclusive);
                            exported = true;
                            let Stage::Attached(a) = &stage else { unreachable!() };
                            connected = Some((n, a.host.clone()));
                        }
                        Publish::Resume(host) => {
                            prop_assert_eq!(connected.clone(), Some((n, host)));
                        }
                        _ => prop_assert!(connected.as_ref().is_some_and(|(c, _)| *c != n)),
                    }
                } else if unpublish(&stage, exported, Some(&key(n))) == Unpublish::Close {
                    prop_assert!(connected.as_ref().is_some_and(|(c, _)| *c == n));
                    stage = Stage::Ready;
                    exported = false;
                    connected = None;
                }
            }
        }
    }
}
