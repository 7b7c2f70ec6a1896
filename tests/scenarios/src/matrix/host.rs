//! On the node, beside the agent: its kernel, its udev, and its administrators.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::root::controllers_of;
use super::scene::Scene;
use crate::faults::{self, export_toggled, seconds};
use crate::process::run;
use crate::stack::APPLIANCE;

/// How often each volume's reconnect is asked for at once.
const AT_ONCE: usize = 3;
/// Until a second controller is gone again.
const ALONE: Duration = Duration::from_secs(60);

pub(super) async fn controllers_deleted(scene: &mut Scene) -> Result<String> {
    faults::controllers_deleted(&scene.stack, &scene.volumes())?;
    Ok(String::new())
}

/// udevd and its workers.
pub(super) fn signal_udevd(signal: Signal) -> Result<usize> {
    let mut told = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if matches!(name.trim(), "systemd-udevd" | "(udev-worker)") {
            // A worker may end meanwhile.
            told += usize::from(kill(Pid::from_raw(pid), signal).is_ok());
        }
    }
    ensure!(told > 0, "udevd does not run");
    Ok(told)
}

/// No event is handled until the volumes are back.
pub(super) async fn udevd_stopped(scene: &mut Scene) -> Result<String> {
    signal_udevd(Signal::SIGSTOP)?;
    export_toggled(&scene.stack, &scene.volumes(), "1")?;
    let back = scene.writes_flow().await;
    signal_udevd(Signal::SIGCONT)?;
    back.context("while udevd was stopped")?;
    Ok("back before udevd was".into())
}

/// The agent has to resume what it did not suspend.
pub(super) async fn suspended(scene: &mut Scene) -> Result<String> {
    for volume in scene.volumes() {
        run(&["dmsetup", "suspend", "--noudevsync", &format!("rds-{}", volume.id)])?;
    }
    Ok(String::new())
}

/// Several people at once, before, during and after the outage.
pub(super) async fn reconnected_by_hand(scene: &mut Scene) -> Result<String> {
    reconnect_all(scene)?;
    scene.exports("export-off")?;
    seconds(3).await;
    reconnect_all(scene)?;
    scene.exports("export-on")?;
    reconnect_all(scene)?;
    scene.writes_flow().await?;
    reconnect_all(scene)?;
    Ok(format!("{} reconnects", 4 * AT_ONCE * scene.three.len()))
}

fn reconnect_all(scene: &Scene) -> Result<()> {
    let stack = &scene.stack;
    std::thread::scope(|threads| {
        let mut asked = Vec::new();
        for volume in scene.volumes() {
            for _ in 0..AT_ONCE {
                asked.push(threads.spawn(|| stack.agent_cli(&["reconnect", &volume.id])));
            }
        }
        for answer in asked {
            answer.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// Somebody connects under our own host NQN. The kernel refuses, unless it is asked for a
/// duplicate, as `nvme connect --duplicate-connect` does; then the agent has to end it.
pub(super) async fn second_controller(scene: &mut Scene) -> Result<String> {
    let mut before = Vec::new();
    for volume in scene.volumes() {
        let status = scene.stack.status(&volume.id)?;
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let (nqn, host) = (text("nqn"), text("hostNqn"));
        ensure!(
            connect(&nqn, &host, "").is_err(),
            "the kernel made a second controller without being asked for one"
        );
        connect(&nqn, &host, ",duplicate_connect").context("a duplicate that was asked for")?;
        before.push((nqn, text("controller")));
    }
    let began = Instant::now();
    let mut kept = 0;
    for (nqn, controller) in &before {
        let only = alone(nqn, began).await?;
        kept += usize::from(only.file_name() == Path::new(controller).file_name());
    }
    let took = began.elapsed().as_secs_f64();
    Ok(format!(
        "{0} duplicates made, all gone within {took:.1} s, {kept} of {0} volumes kept their controller",
        before.len()
    ))
}

fn connect(nqn: &str, host: &str, more: &str) -> Result<()> {
    let id = host.rsplit(':').next().unwrap_or_default();
    let line = format!(
        "transport=tcp,traddr={APPLIANCE},trsvcid=4420,nqn={nqn},hostnqn={host},hostid={id}{more}"
    );
    Ok(fs::write("/dev/nvme-fabrics", line)?)
}

/// The controller that is left when there is one only.
async fn alone(nqn: &str, began: Instant) -> Result<PathBuf> {
    loop {
        let now = controllers_of(nqn)?;
        if let [only] = now.as_slice() {
            return Ok(only.clone());
        }
        ensure!(began.elapsed() < ALONE, "{} controllers of {nqn}", now.len());
        seconds(1).await;
    }
}
