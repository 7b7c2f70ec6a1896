//! The CSI controller: makes volumes on a MikroTik RDS and decides which node may have them.
//!
//! A request comes in at [`server`] (a unix socket), is read and checked by [`csi`], runs
//! as one tracked operation on one volume ([`operations`]) on the appliance that it means or
//! that has the volume ([`fleet`]). It is told by [`rules`] (decisions without I/O) what to
//! do and does it in [`volumes`] through the typed client of [`routeros`]. What goes wrong on the way is an [`error::Error`], mapped to a gRPC code
//! in one table. The volume's item on the appliance carries all state there is (owner,
//! node, epoch) in its comment: the controller keeps none of its own and may be restarted
//! at any moment.

pub mod adopt;
pub mod appliances;
pub mod config;
pub mod crash;
pub mod credentials;
mod csi;
pub mod error;
mod fleet;
mod kubernetes;
pub mod logging;
pub mod metrics;
mod operations;
pub mod orphans;
pub mod routeros;
pub mod rules;
pub mod server;
mod volumes;
mod watch;

pub use server::run;
