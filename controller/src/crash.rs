//! Named points at which a test kills the controller, to see that the next one goes on from
//! what it finds on the appliance.
//!
//! In a normal build [`point`] is empty. With the feature `crash-points`, the environment
//! variable `RDS_CSI_CRASH_AT=NAME` makes the process SIGKILL itself when it passes that
//! point.

/// Passes a point.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Passes a point, and ends here if that was asked for.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    if std::env::var("RDS_CSI_CRASH_AT").is_ok_and(|wanted| wanted == name) {
        eprintln!("crash point {name}");
        let pid = std::process::id().to_string();
        // `kill` and not abort: no handler, no flush, nothing is tidied up.
        let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
        std::process::abort();
    }
}
