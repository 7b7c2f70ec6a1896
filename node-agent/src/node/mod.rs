//! The CSI calls of a node: stage, publish, unpublish, unstage, statistics, expansion.
//!
//! In the order in which a request meets them: [`service`] takes it from the socket and
//! runs it in a task of its own, `request` checks it, `locks` lets one operation at a time
//! work on a volume, `record` writes down what is about to be done, and `stage`, `publish`,
//! `unpublish`, `unstage`, `stats` and `expand` do it. What they decide on is in pure
//! functions: `decide` (mount points), `format` (content), `options` (mount flags), `selinux` (labels).

use std::time::Duration;

mod busy;
mod decide;
mod expand;
mod format;
mod group;
pub(crate) mod locks;
mod options;
mod paths;
mod publish;
mod record;
mod request;
mod selinux;
pub mod service;
pub mod sessions;
mod stage;
mod stats;
mod stranger;
mod turns;
mod unpublish;
mod unstage;

#[cfg(test)]
mod fuzz_tests;
#[cfg(all(test, feature = "kernel-tests"))]
mod tests;

pub use service::{NodeConfig, NodeService};
pub use sessions::Sessions;

/// For calls on local directories and tables of the kernel, which answer at once unless
/// the node itself is ill.
const LOCAL: Duration = Duration::from_secs(20);

/// What every call needs.
pub(crate) struct Node<S> {
    sessions: S,
    records: record::Records,
    locks: locks::Locks,
    /// By NodeGetVolumeStats.
    measuring: turns::Turns,
    /// By NodePublishVolume, which must not go without because of the former.
    examining: turns::Turns,
    config: NodeConfig,
}
