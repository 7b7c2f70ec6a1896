//! Process 1 of the guest, as an administrator asks it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::run;

pub(crate) const AGENT: &str = "rds-node-agent.service";
pub(crate) const SHUTDOWN: &str = "rds-csi-shutdown.service";
/// Where the unit's agent serves.
pub(crate) const SOCKET: &str = "/run/rds-csi/agent.sock";

pub(crate) fn property(unit: &str, name: &str) -> Result<String> {
    Ok(run(&["systemctl", "show", "--value", "-p", name, unit])?.trim().to_owned())
}

pub(crate) fn main_pid() -> Result<u32> {
    property(AGENT, "MainPID")?.parse().context("MainPID")
}

/// Waits until the agent's service is active, under another process id than `before`.
pub(crate) async fn agent_after(before: u32, patience: Duration) -> Result<u32> {
    let began = Instant::now();
    loop {
        let (pid, state) = (main_pid()?, property(AGENT, "ActiveState")?);
        if pid != 0 && pid != before && state == "active" {
            return Ok(pid);
        }
        if began.elapsed() > patience {
            bail!("{AGENT} is {state} with process {pid}, {before} before:\n{}", log(AGENT));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The end of what a unit said.
pub(crate) fn log(unit: &str) -> String {
    run(&["journalctl", "--no-pager", "-n", "40", "-u", unit]).unwrap_or_else(|e| e.to_string())
}
