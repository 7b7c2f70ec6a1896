//! The Kubernetes side of a node, without any privilege.
//!
//! kubelet speaks CSI to the shim, and the shim passes every `csi.v1.Node` call on to the
//! node-agent, which does the work in the host's own namespaces. The shim holds no state but
//! which Events it told last: its restart or absence never touches a session, and an agent that
//! restarts is, to kubelet, only a call that took a little longer.
//!
//! In the order that a call flows through them:
//! - [`config`]: the command line;
//! - [`socket`]: the unix sockets that the shim listens on;
//! - [`serve`]: starts everything, ends everything;
//! - [`identity`]: `csi.v1.Identity`, answered here;
//! - [`forward`]: `csi.v1.Node`, passed on as bytes; only NodeGetInfo is looked into;
//! - [`topology`]: where the node is, which NodeGetInfo tells;
//! - [`deadline`]: how long a call may take;
//! - [`agent`]: the connection to the agent, and what is said when there is none;
//! - [`raw`]: the codec that leaves messages alone;
//! - [`attachments`]: answers the agent's questions after attachments, by [`verdict`] of what
//!   [`kubernetes`] says, over [`api`];
//! - [`notices`]: tells what happens to volumes, as an [`event`] on their claim;
//! - [`keep`]: opens the streams of these two again and again;
//! - [`registration`]: making ourselves known to kubelet, whose first words [`authority`] mends.

pub mod agent;
pub mod api;
pub mod attachments;
mod authority;
pub mod config;
pub mod deadline;
pub mod event;
pub mod forward;
pub mod identity;
pub mod keep;
pub mod kubernetes;
pub mod notices;
pub mod raw;
pub mod registration;
pub mod serve;
pub mod socket;
pub mod topology;
pub mod verdict;

use std::path::PathBuf;

/// Why the shim ended, or could not start.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The node cannot be in two places.
    #[error("--topology: {0}")]
    Topology(String),
    /// A socket could not be set up.
    #[error("cannot listen on {path}: {what}", path = path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What stood in the way, and what to do.
        what: String,
    },
    /// A server ended with an error.
    #[error("the server on {path} failed: {source}", path = path.display())]
    Serve {
        /// Whose.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// kubelet asked who we are, and did not take us.
    #[error(
        "kubelet refused the registration of this plugin: {reason}; ending, so that it is \
         tried again"
    )]
    RegistrationRefused {
        /// kubelet's own words.
        reason: String,
    },
}
