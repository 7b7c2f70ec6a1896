//! What this process must be, since it stands in the write-back path: a page that is to be
//! written to a volume may wait for this agent, so the agent may not wait for that page.

use std::fs;

use tracing::warn;

/// Marks the process as one that write-back depends on, locks its memory, and lets the
/// out-of-memory killer take others first. Each is best effort: without it the agent
/// still works, less surely under memory pressure.
pub fn prepare_for_write_back() {
    // 1 below the value that exempts it altogether: a leak must still be ended.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-999") {
        warn!(%error, "the out-of-memory killer may choose the agent");
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        warn!(%error, "the agent's own memory allocations may wait for a volume");
    }
    use rustix::mm::MlockAllFlags;
    // On fault: without it every thread's whole stack would be made resident.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        warn!(%error, "the agent's memory may be swapped out");
    }
}
