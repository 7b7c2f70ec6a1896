//! The node-agent: the only privileged part of rds-csi, one per host.
//!
//! It promises that a volume stays usable whatever happens to its NVMe/TCP session.
//! In the order in which a volume meets them:
//!
//! - [`server`]: the unix socket on which `csi.v1.Node` and `rdscsi.agent.v1` are served;
//! - [`panics`]: what a panic may do, which is little;
//! - [`node`]: the CSI calls: stage, publish, unpublish, unstage, statistics;
//! - [`session`]: what keeps a volume's session alive: the pure state machine, the task
//!   that drives it, and the shield, a dm-multipath device that holds I/O meanwhile;
//! - [`kernel`]: the edge: fabrics, sysfs, device-mapper, block devices, mounts, udev;
//! - [`notices`]: what people have to hear of all that;
//! - [`journal`]: what was intended and done, in sled, so that a crash at any point is
//!   understood at the next start;
//! - [`crash`]: points at which tests kill the agent, to see that this holds;
//! - [`doctor`]: what on this host could keep all of that from working, and how to mend it;
//! - [`udev_rules`]: what keeps others off the volumes' devices, where no package has put it;
//! - [`host_shutdown`]: the last that is done for volumes before the host goes down;
//! - [`metrics`]: what is counted and shown of all that, alive and ready;
//! - [`watchdog`]: tells systemd that all loops go round;
//! - [`logging`], [`cli`]: the command line, for the daemon and for the people who run it.

pub mod cli;
pub mod crash;
mod doctor;
pub mod error;
pub mod host_shutdown;
pub mod journal;
pub mod kernel;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod notices;
mod panics;
pub mod server;
pub mod session;
mod udev_rules;
pub mod watchdog;
