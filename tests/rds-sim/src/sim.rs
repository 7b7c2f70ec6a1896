//! All parts of one simulator, as the transports and the control socket see them.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::appliance::core::Appliance;
use crate::appliance::exports::Exports;
use crate::config::Serve;
use crate::desk::Desk;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::management::Management;

pub struct Sim {
    pub config: Serve,
    pub password: String,
    pub appliance: Arc<Appliance>,
    pub exports: Arc<Exports>,
    pub management: Management,
    pub faults: Faults,
    pub journal: Journal,
    pub desk: Desk,
    /// Held by the reboot that is under way.
    pub rebooting: Arc<Mutex<()>>,
}
