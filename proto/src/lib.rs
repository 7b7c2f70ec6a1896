//! What the parts of rds-csi say to one another.
//!
//! Three generated protocols: [`csi`] (the Container Storage Interface 1.12, between
//! Kubernetes and us), [`registration`] (between kubelet and the shim) and [`agent`]
//! (between the node-agent, its command line and the shim). And the types that both ends
//! of a conversation must read alike: [`ids`] (names that are parsed once and cannot be
//! wrong afterwards), [`params`] (StorageClass keys, carried to the node in the volume
//! context) and [`context`] (what an attachment hands to the node).

pub mod connect;
pub mod context;
pub mod ids;
pub mod params;

/// `csi.v1`: Identity, Controller, Node (and the alpha services of 1.12).
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// `pluginregistration`: how a plugin makes itself known to kubelet.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// `rdscsi.agent.v1`: the state of the sessions that an agent keeps.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod agent {
    tonic::include_proto!("rdscsi.agent.v1");
}

/// The CSI driver name, unless configured otherwise. Shared with the Go driver that came
/// before, so that its volumes can be taken over (docs/compatibility).
pub const DRIVER_NAME: &str = "rds.csi.srvlab.io";
