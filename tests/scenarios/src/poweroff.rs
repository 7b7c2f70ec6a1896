//! The last minute of a host with volumes in use, seen from inside. What it came to is seen
//! from outside only: how long the guest took to end, and what the appliance's files hold
//! then (tests/packages.sh).
//!
//! The appliance outlives the host here, as it does in life: its user-space part is killed,
//! and its targets are in the kernel, with sockets and files open, until the very end.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::csi::{Csi, Volume, filesystem};
use crate::demo::status;
use crate::process::{results, run as command};
use crate::stack::Stack;
use crate::systemd::{SHUTDOWN, SOCKET, agent_after};
use crate::writer::Writer;

const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    deb: PathBuf,
    #[arg(long)]
    volumes: Volumes,
    /// With the shutdown unit masked, to see what it is for.
    #[arg(long)]
    without_unit: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Volumes {
    /// The appliance's packets are dropped, and a process waits for a write.
    Lost,
    /// All is well, and written data is still in memory only.
    Live,
}

/// A network as ifupdown has it (networking.service of Debian): gone when it is stopped, and
/// stopped before local file systems are unmounted.
const NETWORK: &str = "[Unit]
DefaultDependencies=no
Wants=network.target
After=local-fs.target network-pre.target
Before=network.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip link set rds0 up
ExecStop=/bin/ip link set rds0 down
";

/// Does not return, unless something is wrong.
pub(crate) async fn run(options: &Options) -> bool {
    match shut_down(options).await {
        Ok(()) => tokio::time::sleep(Duration::from_secs(600)).await,
        Err(error) => println!("FAILED before the shutdown: {error:#}"),
    }
    false
}

async fn shut_down(options: &Options) -> Result<()> {
    if options.without_unit {
        command(&["systemctl", "mask", SHUTDOWN])?;
    }
    command(&["dpkg", "-i", &options.deb.to_string_lossy()])?;
    agent_after(0, PATIENCE).await?;
    let mut stack = Stack::start_around(Path::new(SOCKET)).await?;
    fs::write("/run/systemd/system/test-network.service", NETWORK)?;
    command(&["systemctl", "daemon-reload"])?;
    command(&["systemctl", "start", "test-network.service"])?;
    let mut csi = stack.csi().await?;
    let first = staged(&mut csi).await?;
    match options.volumes {
        Volumes::Lost => lose(&stack, &first).await?,
        Volumes::Live => {
            let second = staged(&mut csi).await?;
            write_late(&stack, &first, &second).await?;
        }
    }
    stack.appliance.kill()?;
    fs::write(results().join("shutdown-began"), "")?;
    println!("powering off");
    command(&["systemctl", "poweroff", "--no-block"])?;
    // What was started here is ended by systemd, not by this process.
    std::mem::forget(stack);
    Ok(())
}

async fn staged(csi: &mut Csi) -> Result<Volume> {
    let name = format!("pvc-{}", uuid::Uuid::new_v4());
    let mut volume = csi
        .create(&name, 64 << 20, filesystem("ext4"), HashMap::new())
        .await
        .map_err(status("create"))?;
    csi.attach(&mut volume).await.map_err(status("attach"))?;
    csi.mount(&volume).await.map_err(status("stage and publish"))?;
    Ok(volume)
}

/// Until a process cannot even be killed.
async fn lose(stack: &Stack, volume: &Volume) -> Result<()> {
    let writer = Writer::start(&volume.target, false)?;
    writer.progress(20, PATIENCE).await?;
    stack.order(&["drop-packets"])?;
    let began = Instant::now();
    while stack.status(&volume.id)?["state"] == "Live" || !is_uninterruptible(&writer)? {
        ensure!(began.elapsed() < PATIENCE, "packets are dropped, and nothing waits");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("the session is lost, and the writer waits in state D");
    std::mem::forget(writer);
    Ok(())
}

fn is_uninterruptible(writer: &Writer) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{}/status", writer.pid()))?;
    Ok(status.lines().any(|l| l.starts_with("State:\tD")))
}

/// Data that only a write-back before the network's end can save: into one volume by a
/// process that has ended, into the other by one that lives on to the last, in a mount
/// namespace of its own, as containers of runc do (their scopes have no dependencies).
async fn write_late(stack: &Stack, first: &Volume, second: &Volume) -> Result<()> {
    // Nothing is written back by itself meanwhile.
    fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
    let data: String = (0..20_000).map(|n| format!("late record {n} of {}\n", first.id)).collect();
    fs::write(results().join("late"), &data)?;
    fs::write(results().join("ended"), stack.backing_file(&first.id).display().to_string())?;
    fs::write(results().join("living"), stack.backing_file(&second.id).display().to_string())?;
    fs::write(first.target.join("late"), &data)?;

    // A container sees its own volumes only.
    let script = format!(
        "umount '{}' '{}' && exec 9>'{}/late' && cat '{}/late' >&9 && touch /run/pod-wrote && \
         exec sleep infinity",
        first.target.display(),
        first.staging.display(),
        second.target.display(),
        results().display()
    );
    Command::new("systemd-run")
        .args(["--scope", "--quiet", "-p", "DefaultDependencies=no", "--unit", "pod"])
        .args(["unshare", "--mount", "--propagation", "private", "bash", "-c", &script])
        .spawn()?;
    let began = Instant::now();
    while !Path::new("/run/pod-wrote").exists() {
        if began.elapsed() > PATIENCE {
            bail!("the pod did not write");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("both volumes have data that is in memory only");
    Ok(())
}
