//! Asks the target why it refuses us: [`rds_csi_proto::connect`], with our errors.

use std::net::SocketAddr;

use rds_csi_proto::connect;
pub use rds_csi_proto::connect::Answer;
use rds_csi_proto::ids::{HostNqn, Nqn};

use crate::error::{Error, Result};

/// Asks once. Blocks for some seconds at most.
///
/// # Errors
/// If the portal cannot be reached or does not speak NVMe/TCP: then nothing is known.
pub fn ask(portal: SocketAddr, nqn: &Nqn, host_nqn: &HostNqn) -> Result<Answer> {
    connect::ask(portal, nqn, host_nqn).map_err(Error::kernel("ask the target at", portal))
}
