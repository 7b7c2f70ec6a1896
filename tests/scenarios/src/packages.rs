//! The packages' whole life on a host, under a writer that may not notice any of it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Group, Pid};

use crate::csi::{Csi, Volume, filesystem};
use crate::demo::{no_devices, status};
use crate::process::{results, run as command};
use crate::report::Report;
use crate::stack::Stack;
use crate::systemd::{AGENT, SHUTDOWN, SOCKET, agent_after, log, main_pid, property};
use crate::writer::Writer;

/// A start of the agent, or the next records of the writer, in an emulated guest.
const PATIENCE: Duration = Duration::from_secs(90);

/// The warning comes on standard error.
const PURGE: &str = "dpkg --purge rds-node-agent 2>&1";

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    deb: PathBuf,
    /// The same with a higher version.
    #[arg(long)]
    next_deb: PathBuf,
    #[arg(long)]
    rpm: PathBuf,
    #[arg(long)]
    next_rpm: PathBuf,
}

pub(crate) async fn run(options: &Options) -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("packages, Linux {kernel}"));
    let result = life(options, &mut report).await;
    if !report.case("a package's whole life", result) {
        println!("--- agent\n{}", log(AGENT));
    }
    if let Ok(journal) = command(&["journalctl", "--no-pager", "-o", "short-monotonic"]) {
        let _ = fs::write(results().join("journal.log"), journal);
    }
    report.finish()
}

async fn life(options: &Options, report: &mut Report) -> Result<()> {
    install("dpkg", "-i", &options.deb)?;
    let result = agent_after(0, PATIENCE).await.map(drop);
    ensure!(report.case("the .deb installs and starts the agent", result), "nothing to go on with");
    report.case("nothing is left to do by hand", is_set_up());
    let result = only_the_group().await;
    report.case("the socket is for root and the group", result);

    let mut host = Host::begin().await?;
    report.say("a volume is staged, a writer runs");
    report.case("the udev rules are in effect", host.rules_in_effect());
    report.case("the journal has fields and no host NQN", host.journal());

    let result = host.keeps_writing(|| install("dpkg", "-i", &options.next_deb)).await;
    report.case("an upgrade of the .deb restarts the agent under the volume", result);
    let result = host.keeps_writing(|| signal(Signal::SIGKILL)).await;
    report.case("systemd restarts an agent that was killed", result);
    let drop_in = watchdog_within("10s")?;
    agent_after(0, PATIENCE).await?;
    let result = host.keeps_writing(|| signal(Signal::SIGSTOP)).await;
    report.case("systemd restarts an agent that hangs", result);
    fs::remove_file(drop_in)?;

    let result = host.without_agent(|| command(&["sh", "-c", PURGE])).await;
    report.case("a purge of the .deb leaves the volume alone", result);
    report.case("nothing of the .deb is left", is_gone());
    let result = host.keeps_writing(|| install("rpm", "-i", &options.rpm)).await;
    report.case("the .rpm installs and takes the volume over", result);
    report.case("nothing is left to do by hand with it", is_set_up());
    let result = host.keeps_writing(|| install("rpm", "-U", &options.next_rpm)).await;
    report.case("an upgrade of the .rpm restarts the agent under the volume", result);

    let result = host.end().await;
    report.case("every record is there, and the volume goes", result);
    command(&["rpm", "-e", "rds-node-agent"])?;
    report.case("nothing of the .rpm is left", is_gone());
    Ok(())
}

/// Debian's rpm has no packages of its own to find dependencies among.
fn install(tool: &str, action: &str, package: &Path) -> Result<()> {
    let package = package.to_str().context("path")?;
    let said = match tool {
        "rpm" => command(&["rpm", action, "--nodeps", "--force-debian", package]),
        _ => command(&[tool, action, package]),
    };
    println!("{}", said?.trim());
    Ok(())
}

fn signal(signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(main_pid()?)?), signal).context("signal the agent")
}

/// As the unit has it, but so that a test need not wait as long.
fn watchdog_within(limit: &str) -> Result<PathBuf> {
    let dir = format!("/run/systemd/system/{AGENT}.d");
    fs::create_dir_all(&dir)?;
    let file = Path::new(&dir).join("watchdog.conf");
    fs::write(&file, format!("[Service]\nWatchdogSec={limit}\n"))?;
    command(&["systemctl", "daemon-reload"])?;
    command(&["systemctl", "restart", AGENT])?;
    Ok(file)
}

fn is_set_up() -> Result<()> {
    for unit in [AGENT, SHUTDOWN] {
        let (enabled, active) = (property(unit, "UnitFileState")?, property(unit, "ActiveState")?);
        ensure!(enabled == "enabled" && active == "active", "{unit} is {enabled} and {active}");
    }
    let modules = fs::read_to_string("/proc/modules")?;
    for module in ["nvme_tcp", "dm_multipath", "dm_service_time"] {
        let loaded = modules.lines().any(|l| l.starts_with(&format!("{module} ")));
        ensure!(loaded, "the module {module} is not loaded");
    }
    let group = Group::from_name("rds-csi")?.context("no group rds-csi")?.gid.as_raw();
    for (path, mode, gid) in
        [("/run/rds-csi", 0o750, group), (SOCKET, 0o660, group), ("/var/lib/rds-csi", 0o700, 0)]
    {
        let meta = fs::metadata(path).with_context(|| path.to_owned())?;
        let seen = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        ensure!(seen == (mode, 0, gid), "{path} has mode, user and group {seen:?}");
    }
    ensure!(fs::metadata(SOCKET)?.file_type().is_socket(), "{SOCKET} is no socket");
    command(&["rds-node-agent", "status"])?;
    Ok(())
}

/// Somebody else cannot open the socket; in the group he can, and is turned away by name.
async fn only_the_group() -> Result<()> {
    let ask = |group: &str| {
        std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid", group, "--clear-groups", "rds-node-agent", "status"])
            .output()
    };
    let stranger = ask("nogroup")?;
    ensure!(stranger.status.code() == Some(3), "a stranger got {stranger:?}");
    let member = ask("rds-csi")?;
    let said = String::from_utf8_lossy(&member.stderr);
    ensure!(said.contains("--allow-uid 65534"), "a member of the group got {member:?}");
    Ok(())
}

fn is_gone() -> Result<()> {
    for path in ["/usr/bin/rds-node-agent", "/usr/lib/udev/rules.d/10-rds-csi.rules"] {
        ensure!(!Path::new(path).exists(), "{path} is left");
    }
    let state = property(AGENT, "ActiveState")?;
    ensure!(state != "active", "{AGENT} is {state}");
    Ok(())
}

/// The host with one volume in use.
struct Host {
    stack: Stack,
    csi: Csi,
    volume: Volume,
    writer: Writer,
}

impl Host {
    async fn begin() -> Result<Self> {
        let stack = Stack::start_around(Path::new(SOCKET)).await?;
        let mut csi = stack.csi().await?;
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let mut volume = csi
            .create(&name, 64 << 20, filesystem("ext4"), HashMap::new())
            .await
            .map_err(status("create"))?;
        csi.attach(&mut volume).await.map_err(status("attach"))?;
        csi.mount(&volume).await.map_err(status("stage and publish"))?;
        let writer = Writer::start(&volume.target, false)?;
        writer.progress(20, PATIENCE).await?;
        Ok(Self { stack, csi, volume, writer })
    }

    fn controller(&self) -> Result<String> {
        let status = self.stack.status(&self.volume.id)?;
        ensure!(status["state"] == "Live", "the volume is {status}");
        Ok(status["controller"].as_str().context("no controller")?.to_owned())
    }

    /// Something ends the agent; another one runs afterwards, and the volume has not noticed.
    async fn keeps_writing(&mut self, event: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = main_pid()?;
        let sessions = connections()?;
        let shutdown = property(SHUTDOWN, "InvocationID")?;
        let began = Instant::now();
        event()?;
        agent_after(before, PATIENCE).await?;
        let restarted = began.elapsed();
        self.writer.progress(20, PATIENCE).await?;
        let stall = self.writer.longest_stall(began, Instant::now());
        println!("another agent after {restarted:.1?}; the writer stood still for {stall:.1?}");
        let live = async {
            while self.controller().is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, live).await.context("the volume is not Live again")?;
        let after = connections()?;
        ensure!(sessions == after, "the sessions were {sessions:?} and are {after:?}");
        if !shutdown.is_empty() {
            let now = property(SHUTDOWN, "InvocationID")?;
            ensure!(now == shutdown, "{SHUTDOWN} was restarted");
        }
        Ok(())
    }

    /// Something takes the agent away; the volume has not noticed.
    async fn without_agent(&mut self, event: impl FnOnce() -> Result<String>) -> Result<()> {
        let sessions = connections()?;
        let said = event()?;
        println!("{}", said.trim());
        ensure!(said.contains(&self.volume.id), "no word of the volume that is in use");
        ensure!(main_pid().unwrap_or(0) == 0, "the agent still runs");
        ensure!(!Path::new("/var/lib/rds-csi").exists(), "/var/lib/rds-csi is left");
        self.writer.progress(20, PATIENCE).await?;
        ensure!(sessions == connections()?, "the session is another one");
        Ok(())
    }

    fn rules_in_effect(&self) -> Result<()> {
        let status = self.stack.status(&self.volume.id)?;
        let device = status["device"].as_str().context("no device")?.to_owned();
        let path = status["namespace"].as_str().context("no namespace")?;
        let path = Path::new("/dev").join(path).display().to_string();
        for (device, property) in [(path, "RDS_CSI_NAMESPACE=1"), (device, "DM_NOSCAN=1")] {
            let known = command(&["udevadm", "info", "--query=property", &device])?;
            ensure!(known.lines().any(|l| l == property), "{device} has no {property}:\n{known}");
        }
        Ok(())
    }

    fn journal(&self) -> Result<()> {
        let volume = format!("VOLUME={}", self.volume.id);
        for also in ["RPC=NodeStageVolume", "PRIORITY=5", "SYSLOG_IDENTIFIER=rds-node-agent"] {
            let said = command(&["journalctl", "--no-pager", "-o", "cat", &volume, also])?;
            ensure!(!said.trim().is_empty(), "the journal has nothing with {volume} and {also}");
        }
        let all = command(&["journalctl", "--no-pager", "-o", "export", "-u", AGENT])?;
        for (key, value) in &self.volume.publish_context {
            let secret = value.contains("nqn.2014-08.org.nvmexpress:uuid:");
            ensure!(
                !secret || !all.contains(value.as_str()),
                "the journal tells the {key} {value}"
            );
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        self.writer.stop(PATIENCE).await?;
        ensure!(self.writer.error().is_none(), "a write failed: {:?}", self.writer.error());
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        let checked = self.writer.verify(self.writer.last())?;
        println!("{checked} records read back");
        self.csi.unmount(&self.volume).await.map_err(status("unpublish and unstage"))?;
        self.csi.detach(&self.volume).await.map_err(status("detach"))?;
        no_devices()
    }
}

/// Each controller with what changes when it is connected anew.
fn connections() -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/sys/class/nvme")? {
        let entry = entry?;
        let id = fs::read_to_string(entry.path().join("cntlid"))?;
        all.push((entry.file_name().to_string_lossy().into_owned(), id.trim().to_owned()));
    }
    all.sort();
    Ok(all)
}
