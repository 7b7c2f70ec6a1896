//! Carries out control commands.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::command::{ControlCommand, Drop, Portal};
use crate::appliance::command::{Command, Menu, Property, Reply};
use crate::appliance::reboot::{self, Plan};
use crate::appliance::seed::Seed;
use crate::faults::{Action, Rule};
use crate::management::Mode;
use crate::ros::number::Origin;
use crate::sim::Sim;
use crate::target::network;

/// What went wrong, for a person.
pub type Failure = String;

fn text(e: impl std::fmt::Display) -> Failure {
    e.to_string()
}

fn seconds(s: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(s).map_err(|e| format!("{s} seconds: {e}"))
}

pub async fn perform(sim: &Arc<Sim>, command: ControlCommand) -> Result<Value, Failure> {
    let done = json!({ "ok": true });
    match command {
        ControlCommand::List => return list(sim).await,
        ControlCommand::Status => return Ok(status(sim)),
        ControlCommand::Stats { reset } => {
            let counts = sim.journal.counts();
            if reset {
                sim.journal.reset();
            }
            let total: u64 = counts.values().map(|c| c.requests).sum();
            return Ok(json!({ "total": total, "requests": counts }));
        }
        ControlCommand::Reject { pattern, times, status, detail } => {
            sim.faults.add(Rule {
                pattern,
                times: Some(times),
                action: Action::Reject { status, detail },
            });
        }
        ControlCommand::Delay { ms, pattern, times } => {
            sim.faults.add(Rule { pattern, times, action: Action::Delay { ms } });
        }
        ControlCommand::LoseAnswer { pattern, times } => {
            sim.faults.add(Rule { pattern, times: Some(times), action: Action::LoseAnswer });
        }
        ControlCommand::Hang { pattern, times } => {
            sim.faults.add(Rule { pattern, times: Some(times), action: Action::Hang });
        }
        ControlCommand::Seed { count, slot, file_path, comment, bytes } => {
            let seed = Seed { count, slot, file_path, comment, bytes };
            let appliance = sim.appliance.clone();
            let made = tokio::task::spawn_blocking(move || appliance.seed(&seed)).await;
            made.map_err(text)?.map_err(text)?;
        }
        ControlCommand::Reading { name, value } => sim.appliance.set_reading(name, value),
        ControlCommand::Clear => {
            sim.faults.clear();
            sim.management.set(Mode::Serve);
        }
        ControlCommand::DropConnections { mode, seconds: duration } => {
            let mode = match mode {
                Drop::Refuse => Mode::Refuse,
                Drop::Reset => Mode::Reset,
                Drop::Close => Mode::Close,
                Drop::HalfOpen => Mode::Hang,
            };
            management(sim, mode, duration.map(seconds).transpose()?);
        }
        ControlCommand::HangMgmt { seconds: duration } => {
            management(sim, Mode::Hang, Some(seconds(duration)?))
        }
        ControlCommand::Reboot { down, export_delay, stagger, portal_first, silent, wait } => {
            let plan = Plan {
                down: seconds(down)?,
                export_delay: seconds(export_delay)?,
                stagger: seconds(stagger)?,
                portal_first,
                silent,
            };
            let running =
                sim.rebooting.clone().try_lock_owned().map_err(|_| "a reboot is under way")?;
            let task_sim = sim.clone();
            let task = tokio::spawn(async move {
                let _running = running;
                reboot::run(task_sim, plan).await.inspect_err(|e| tracing::error!("reboot: {e}"))
            });
            if wait {
                task.await.map_err(text)?.map_err(text)?;
            }
        }
        ControlCommand::ExportToggle { slot, off_for } => {
            let pause = seconds(off_for)?;
            set(sim, &slot, "nvme-tcp-export", "no").await?;
            tokio::time::sleep(pause).await;
            set(sim, &slot, "nvme-tcp-export", "yes").await?;
            return one(sim, &slot).await;
        }
        ControlCommand::ExportOff { slot } => {
            set(sim, &slot, "nvme-tcp-export", "no").await?;
            return one(sim, &slot).await;
        }
        ControlCommand::ExportOn { slot } => {
            set(sim, &slot, "nvme-tcp-export", "yes").await?;
            return one(sim, &slot).await;
        }
        ControlCommand::DropPackets { seconds: duration } => {
            let duration = duration.map(seconds).transpose()?;
            network::drop_packets(sim.config.portal).await.map_err(text)?;
            heal_after(sim, duration);
        }
        ControlCommand::RefuseConnections { seconds: duration } => {
            let duration = duration.map(seconds).transpose()?;
            network::refuse(sim.config.portal).await.map_err(text)?;
            heal_after(sim, duration);
        }
        ControlCommand::Heal => network::heal(sim.config.portal).await.map_err(text)?,
        ControlCommand::ResetConnections => {
            network::reset_connections(sim.config.portal).await.map_err(text)?
        }
        ControlCommand::Portal { mode } => {
            sim.exports.hold_portal(mode == Portal::Open).await.map_err(text)?
        }
        ControlCommand::Grow { slot, bytes } => {
            set(sim, &slot, "file-size", &bytes.to_string()).await?;
            return one(sim, &slot).await;
        }
    }
    Ok(done)
}

fn heal_after(sim: &Arc<Sim>, duration: Option<Duration>) {
    let Some(duration) = duration else { return };
    let portal = sim.config.portal;
    tokio::spawn(async move {
        tokio::time::sleep(duration).await;
        if let Err(e) = network::heal(portal).await {
            tracing::error!("heal: {e}");
        }
    });
}

fn management(sim: &Arc<Sim>, mode: Mode, duration: Option<Duration>) {
    sim.management.set(mode);
    let Some(duration) = duration else { return };
    let sim = sim.clone();
    tokio::spawn(async move {
        tokio::time::sleep(duration).await;
        // A reboot or another fault may have taken over meanwhile.
        if sim.management.mode() == mode && sim.rebooting.try_lock().is_ok() {
            sim.management.set(Mode::Serve);
        }
    });
}

async fn execute(sim: &Arc<Sim>, command: Command) -> Result<Reply, Failure> {
    let appliance = sim.appliance.clone();
    let result = tokio::task::spawn_blocking(move || appliance.execute(&command)).await;
    result.map_err(text)?.map_err(text)
}

/// Sets a property and brings the target in line before it returns.
async fn set(sim: &Arc<Sim>, slot: &str, name: &str, value: &str) -> Result<(), Failure> {
    let id = sim.appliance.id_of(slot).ok_or_else(|| format!("no disk in slot {slot}"))?;
    let property = Property { name: name.into(), value: value.into(), origin: Origin::Text };
    let targets = vec![slot.to_owned()];
    execute(sim, Command::Set { menu: Menu::Disk, targets, properties: vec![property] }).await?;
    sim.exports.settle(id).await.map_err(text)
}

async fn one(sim: &Arc<Sim>, slot: &str) -> Result<Value, Failure> {
    let Value::Array(disks) = list(sim).await? else { return Ok(Value::Null) };
    Ok(disks.into_iter().find(|d| d["slot"] == slot).unwrap_or(Value::Null))
}

async fn list(sim: &Arc<Sim>) -> Result<Value, Failure> {
    let live = sim.appliance.live();
    let mut out = Vec::new();
    for disk in sim.appliance.configured() {
        let live = live.get(&disk.id);
        let nqn = live.map_or_else(|| disk.nqn(), |l| l.spec.nqn.clone());
        let target = sim.exports.with(move |t| Ok(t.describe(&nqn))).await.map_err(text)?;
        out.push(json!({
            "id": disk.id.to_string(),
            "slot": disk.slot,
            "nqn": disk.nqn(),
            "file": sim.appliance.image(disk.id).map(|(path, _)| path),
            "file_size": disk.file_size,
            "export_configured": disk.nvme_tcp_export && !disk.disabled,
            "exported": live.is_some_and(|l| !l.parked),
            "exported_size": live.map(|l| l.size),
            "serial": live.map(|l| &l.identity.serial),
            "uuid": live.map(|l| &l.identity.uuid),
            "allow_host_name": disk.allow_host_name,
            "comment": disk.comment,
            "nvmet": target,
        }));
    }
    Ok(Value::Array(out))
}

fn status(sim: &Sim) -> Value {
    json!({
        "rebooting": sim.rebooting.try_lock().is_err(),
        "management": format!("{:?}", sim.management.mode()),
        "boots": sim.appliance.boots(),
        "portal_held": sim.exports.portal_held(),
        "faults": sim.faults.rules(),
    })
}
