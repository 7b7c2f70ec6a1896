//! A reboot of the appliance, in the order that hurts.
//!
//! ```text
//! management refused, exports gone, portal closed ── down ──▶ state restored
//!     ├─ portal opens with no export (portal-first) ─ export-delay ─▶ exports, one by one, new identities
//!     └─ management: refused ▶ reset ▶ 401 ▶ 200 with a wrong body ▶ right
//! ```
//! Powered off silently, the portal's packets are dropped first, so that hosts see neither FIN nor RST.

use std::sync::Arc;
use std::time::Duration;

use crate::management::Mode;
use crate::sim::Sim;
use crate::target::{TargetError, network};

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub down: Duration,
    pub export_delay: Duration,
    pub stagger: Duration,
    pub portal_first: bool,
    pub silent: bool,
}

/// Carries out the plan; the caller makes sure that only one runs.
pub async fn run(sim: Arc<Sim>, plan: Plan) -> Result<(), TargetError> {
    tracing::info!(?plan, "reboot");
    sim.management.set(Mode::Refuse);
    if plan.silent {
        network::drop_packets(sim.config.portal).await?;
    }
    sim.appliance.power_off();
    let gone = sim.exports.tear_down().await;
    if plan.silent {
        // A machine without power has no sockets that send FIN again once packets pass.
        if let Err(e) = network::reset_connections(sim.config.portal).await {
            tracing::warn!("{e}");
        }
    }
    gone?;
    tokio::time::sleep(plan.down).await;

    sim.appliance.boot().map_err(|e| TargetError::Other(format!("restore: {e}")))?;
    if plan.portal_first || sim.exports.portal_held() {
        sim.exports.open_portal().await?;
    }
    if plan.silent {
        network::heal(sim.config.portal).await?;
    }
    let management = tokio::spawn(bring_up_management(sim.clone()));
    tokio::time::sleep(plan.export_delay).await;
    for (n, disk) in
        sim.appliance.configured().into_iter().filter(|d| d.nvme_tcp_export).enumerate()
    {
        if n > 0 {
            tokio::time::sleep(plan.stagger).await;
        }
        sim.appliance.release(disk.id);
        sim.exports.settle_patiently(disk.id).await;
    }
    sim.appliance.release_all();
    sim.exports.settle_all().await;
    sim.exports.release_portal().await?;
    management.await.map_err(|e| TargetError::Other(format!("management: {e}")))?;
    tracing::info!("reboot done");
    Ok(())
}

async fn bring_up_management(sim: Arc<Sim>) {
    let stage = Duration::from_millis(sim.config.switches.boot_stage_ms);
    for mode in [Mode::Refuse, Mode::Reset, Mode::Unauthorised, Mode::WrongBody] {
        sim.management.set(mode);
        tokio::time::sleep(stage).await;
    }
    sim.management.set(Mode::Serve);
}
