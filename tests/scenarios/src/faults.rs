//! The ways in which a session is lost. Each returns when the cause is over; whether the
//! volume came back is for the story to see.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::csi::Volume;
use crate::stack::Stack;

/// One way to lose a session.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The portal drops all packets for 15 s.
    PacketsDropped,
    /// The export is switched off and on, which gives it another identity.
    ExportToggled,
    /// Somebody deletes the controller on the host.
    ControllerDeleted,
    /// The appliance is gone for 10 s, then its portal answers, and the exports come back
    /// seconds later, with other identities. Linux 6.12 gives the device up for good here.
    ApplianceRebooted,
    /// The agent is killed in the middle of an outage, and started again.
    AgentKilled,
    /// The agent is killed, its state directory is deleted, and the export toggled before it
    /// is started again.
    JournalLost,
}

/// All of them, in the order of the story.
pub(crate) const ALL: [Fault; 6] = [
    Fault::PacketsDropped,
    Fault::ExportToggled,
    Fault::ControllerDeleted,
    Fault::ApplianceRebooted,
    Fault::AgentKilled,
    Fault::JournalLost,
];

pub(crate) async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PacketsDropped => "portal drops packets, 15 s",
            Self::ExportToggled => "export toggled, new identity",
            Self::ControllerDeleted => "controller deleted on the host",
            Self::ApplianceRebooted => "appliance reboots, 10 s, exports late",
            Self::AgentKilled => "agent killed during an outage",
            Self::JournalLost => "agent killed, journal deleted, export toggled",
        }
    }

    pub(crate) async fn inflict(self, stack: &mut Stack, volumes: &[&Volume]) -> Result<()> {
        match self {
            Self::PacketsDropped => packets_dropped(stack, 15).await,
            Self::ExportToggled => export_toggled(stack, volumes, "2"),
            Self::ControllerDeleted => controllers_deleted(stack, volumes),
            Self::ApplianceRebooted => {
                rebooted(stack, "--down 10 --export-delay 4 --stagger 2 --portal-first true")
            }
            Self::AgentKilled => agent_killed(stack).await,
            Self::JournalLost => {
                stack.kill_agent()?;
                std::fs::remove_dir_all(&stack.agent_options.state_dir)?;
                export_toggled(stack, volumes, "1")?;
                stack.restart_agent().await
            }
        }
    }
}

/// No packet passes for so long.
pub(crate) async fn packets_dropped(stack: &Stack, secs: u64) -> Result<()> {
    stack.order(&["drop-packets"])?;
    seconds(secs).await;
    stack.order(&["heal"])?;
    Ok(())
}

/// Off, and on again with another identity, one after the other.
pub(crate) fn export_toggled(stack: &Stack, volumes: &[&Volume], off_for: &str) -> Result<()> {
    for volume in volumes {
        stack.order(&["export-toggle", &volume.id, "--off-for", off_for])?;
    }
    Ok(())
}

/// As `nvme disconnect` would.
pub(crate) fn controllers_deleted(stack: &Stack, volumes: &[&Volume]) -> Result<()> {
    for volume in volumes {
        let status = stack.status(&volume.id)?;
        let name = status["controller"].as_str().context("no controller")?;
        std::fs::write(format!("/sys/class/nvme/{name}/delete_controller"), "1")
            .with_context(|| format!("delete {name}"))?;
    }
    Ok(())
}

/// The appliance goes down and comes up; `how` are the options of `rds-sim ctl reboot`.
pub(crate) fn rebooted(stack: &Stack, how: &str) -> Result<()> {
    let words: Vec<_> = ["reboot", "--wait"].into_iter().chain(how.split(' ')).collect();
    stack.order(&words)?;
    Ok(())
}

/// SIGKILL in the middle of an outage, and another agent before its end.
pub(crate) async fn agent_killed(stack: &mut Stack) -> Result<()> {
    stack.order(&["drop-packets"])?;
    seconds(9).await;
    stack.kill_agent()?;
    seconds(2).await;
    stack.restart_agent().await?;
    seconds(2).await;
    stack.order(&["heal"])?;
    Ok(())
}
