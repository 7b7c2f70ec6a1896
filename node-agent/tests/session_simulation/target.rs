//! The appliance and the network, as far as a session can tell.

use rds_node_agent::session::machine::Millis;

/// Whose data an export shows.
pub(crate) const OURS: u32 = 0;
pub(crate) const SIZE: u64 = 1 << 30;

/// What happens at the target some time after a fault began.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Later {
    NetworkReturns,
    PortalOpens,
    ExportOn { content: u32, size: u64 },
    HostAdmitted,
}

/// Writes that were under way when their connection was lost, and that the target may
/// still carry out until it lets go of that connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OldWrites {
    pub(crate) wwid: u64,
    pub(crate) dead_at: Millis,
}

#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) reachable: bool,
    pub(crate) portal_open: bool,
    pub(crate) exported: bool,
    pub(crate) admits: bool,
    /// Another one for each time that the export is made.
    pub(crate) wwid: u64,
    pub(crate) content: u32,
    pub(crate) size: u64,
    pub(crate) old_writes: Vec<OldWrites>,
}

impl Target {
    pub(crate) fn new() -> Self {
        Self {
            reachable: true,
            portal_open: true,
            exported: true,
            admits: true,
            wwid: 1,
            content: OURS,
            size: SIZE,
            old_writes: Vec::new(),
        }
    }

    pub(crate) fn answers(&self) -> bool {
        self.reachable && self.portal_open
    }

    pub(crate) fn export_on(&mut self, content: u32, size: u64) {
        if !self.exported {
            self.exported = true;
            self.wwid += 1;
            (self.content, self.size) = (content, size);
        }
    }
}
