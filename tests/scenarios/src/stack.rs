//! The whole system in one guest: appliance, controller, agent, shim.
//!
//! The appliance lives in a network namespace, so that its packets cross a real link that
//! can be cut. The initiators must stay in the first one: the kernel reconnects from a
//! worker that knows no other.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::csi::Csi;
use crate::process::{Daemon, run, sibling, socket_up, tail};

/// Where the appliance answers, and the node's own end of the link.
pub(crate) const APPLIANCE: &str = "10.99.0.2";
const NODE_ADDRESS: &str = "10.99.0.1";
pub(crate) const REST_PORT: u16 = 8443;
pub(crate) const NODE_NAME: &str = "node-1";
/// Where the agent serves its metrics.
pub(crate) const METRICS: &str = "127.0.0.1:9809";
/// Where the controller does, when two nodes share it.
pub(crate) const CONTROLLER_METRICS: &str = "127.0.0.1:9810";
/// Emulated guests are slow to start programs over 9p.
const START: Duration = Duration::from_secs(60);
/// A daemon that was told to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the agent is started.
#[derive(Debug, Clone)]
pub(crate) struct AgentOptions {
    pub(crate) binary: PathBuf,
    pub(crate) state_dir: PathBuf,
}

impl AgentOptions {
    pub(crate) fn usual() -> Result<Self> {
        Ok(Self { binary: sibling("rds-node-agent")?, state_dir: "/var/lib/rds-csi".into() })
    }
}

/// Which appliance it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Plain,
    /// Snapshots of it are atomic: its pool lies on a file system that shares blocks.
    Btrfs,
    /// The same for more volumes, one of them with XFS.
    LargeBtrfs,
    /// It takes a list of hosts, and the controller knows.
    HostList,
}

impl Model {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["--pool", "raid10:2147483648"],
            Self::Btrfs => &["--pool", "raid10:1073741824:btrfs"],
            Self::LargeBtrfs => &["--pool", "raid10:2147483648:btrfs"],
            Self::HostList => &["--pool", "raid10:2147483648", "--allow-host-list"],
        }
    }

    fn controller_flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Btrfs | Self::LargeBtrfs => &[],
            Self::HostList => &["--allow-host-list", "--metrics-addr", CONTROLLER_METRICS],
        }
    }
}

/// Where everything is, in a guest.
pub(crate) const DIRECTORY: &str = "/scratch/rds";

/// Everything that runs.
pub(crate) struct Stack {
    pub(crate) dir: PathBuf,
    pub(crate) agent_options: AgentOptions,
    pub(crate) appliance: Daemon,
    controller: Daemon,
    agent: Option<Daemon>,
    shim: Daemon,
}

impl Stack {
    /// Starts all of it, from nothing.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(AgentOptions::usual()?).await
    }

    /// The same with another agent.
    pub(crate) async fn start_with(options: AgentOptions) -> Result<Self> {
        Self::begin(options, None, Model::Plain).await
    }

    /// The same with an appliance whose pool has snapshots.
    pub(crate) async fn start_on_btrfs() -> Result<Self> {
        Self::begin(AgentOptions::usual()?, None, Model::Btrfs).await
    }

    /// The same with an appliance that takes a list of hosts, for two nodes.
    pub(crate) async fn start_for_two() -> Result<Self> {
        Self::begin(AgentOptions::usual()?, None, Model::HostList).await
    }

    /// The same around an agent that is installed in the guest, and not ours to start.
    pub(crate) async fn start_around(installed: &Path) -> Result<Self> {
        Self::begin(AgentOptions::usual()?, Some(installed), Model::Plain).await
    }

    async fn begin(
        agent_options: AgentOptions,
        installed: Option<&Path>,
        model: Model,
    ) -> Result<Self> {
        let dir = PathBuf::from(DIRECTORY);
        let _ = run(&["umount", "/scratch/rds/sim"]);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("credentials"))?;
        if model == Model::Btrfs {
            pool_with_snapshots(&dir, 2 << 30)?;
        }
        let _ = fs::remove_dir_all("/var/lib/kubelet");
        network()?;
        if installed.is_none() {
            let _ = fs::remove_dir_all(&agent_options.state_dir);
            udev_rules()?;
        }
        let appliance = Self::start_appliance(&dir, model).await?;
        fs::write(dir.join("credentials/username"), "admin")?;
        fs::copy(dir.join("sim/password"), dir.join("credentials/password"))?;
        fs::copy(dir.join("sim/cert.pem"), dir.join("credentials/ca.crt"))?;
        let credentials = dir.join("credentials");
        let more = model.controller_flags();
        let controller = Self::controller_with(&dir, &credentials, "controller.sock", more).await?;
        let agent = match installed {
            None => Some(Self::start_agent(&dir, &agent_options).await?),
            Some(socket) => {
                symlink(socket, agent_socket(&dir))?;
                None
            }
        };
        let shim = Self::start_shim(&dir, NODE_NAME).await?;
        Ok(Self { dir, agent_options, appliance, controller, agent, shim })
    }

    /// An appliance whose pool has snapshots, for a controller outside of the guest.
    pub(crate) async fn start_appliance_alone(dir: &Path) -> Result<Daemon> {
        fs::create_dir_all(dir)?;
        pool_with_snapshots(dir, 3 << 30)?;
        network()?;
        // To where the controller is, and to the second guest.
        run(&["ip", "-n", "rds", "route", "add", "default", "via", NODE_ADDRESS])?;
        Self::start_appliance(dir, Model::LargeBtrfs).await
    }

    async fn start_appliance(dir: &Path, model: Model) -> Result<Daemon> {
        let mut command = Command::new("nsenter");
        command
            .arg("--net=/run/netns/rds")
            .arg(sibling("rds-sim")?)
            .arg("--state-dir")
            .arg(dir.join("sim"))
            .args(["--rest-addr", &format!("{APPLIANCE}:{REST_PORT}")])
            .args(["--ssh-addr", &format!("{APPLIANCE}:2222")])
            .args(["--portal", &format!("{APPLIANCE}:4420")])
            .args(model.flags())
            .args(["--dir", "/raid10/volumes", "--allocate", "sparse"]);
        let mut daemon = Daemon::start("appliance", command)?;
        let began = Instant::now();
        // The control socket alone is no sign: `ready` comes when all listeners are up.
        while !daemon.has_printed("ready") {
            if daemon.has_ended()? || began.elapsed() > START {
                bail!("rds-sim is not ready:\n{}", tail("appliance", 15));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(daemon)
    }

    /// Another controller beside the one that runs, for tests of credentials.
    pub(crate) async fn start_controller(
        dir: &Path,
        credentials: &Path,
        socket: &str,
    ) -> Result<Daemon> {
        Self::controller_with(dir, credentials, socket, &[]).await
    }

    async fn controller_with(
        dir: &Path,
        credentials: &Path,
        socket: &str,
        more: &[&str],
    ) -> Result<Daemon> {
        let socket = dir.join(socket);
        let mut command = Command::new(sibling("rds-csi-controller")?);
        command
            .args(["--endpoint", &format!("unix://{}", socket.display())])
            .args(["--rds-url", &format!("https://{APPLIANCE}:{REST_PORT}")])
            .arg("--rds-credentials")
            .arg(credentials)
            .args(["--volume-path", "/raid10/volumes", "--no-kubernetes", "--cluster-id", "demo"])
            .args(more);
        let mut daemon = Daemon::start("controller", command)?;
        socket_up(&mut daemon, &socket, START).await?;
        Ok(daemon)
    }

    pub(crate) async fn start_agent(dir: &Path, options: &AgentOptions) -> Result<Daemon> {
        let mut daemon = Self::spawn_agent(dir, options, "")?;
        socket_up(&mut daemon, &agent_socket(dir), START).await?;
        Ok(daemon)
    }

    fn spawn_agent(dir: &Path, options: &AgentOptions, crash_at: &str) -> Result<Daemon> {
        let mut command = Command::new(&options.binary);
        command
            .arg("serve")
            .arg("--socket")
            .arg(agent_socket(dir))
            .arg("--state-dir")
            .arg(&options.state_dir)
            .args(["--metrics-addr", METRICS])
            .env("RDS_CSI_CRASH_AT", crash_at);
        // As the package runs it, where that is what is measured.
        if std::env::var_os("RDS_CSI_LOG").is_none() {
            let log = "info,rds_node_agent=debug,rds_node_agent::session::sweeper=trace";
            command.env("RDS_CSI_LOG", log);
        }
        Daemon::start("agent", command)
    }

    /// In place of the agent that runs or has ended: one of a build that kills itself at the
    /// named points (node-agent/src/crash.rs). It may be dead before it serves.
    pub(crate) async fn restart_agent_crashing_at(&mut self, points: &str) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
        }
        let binary = sibling("rds-node-agent-crash")?;
        let options = AgentOptions { binary, ..self.agent_options.clone() };
        let mut agent = Self::spawn_agent(&self.dir, &options, points)?;
        if let Err(error) = socket_up(&mut agent, &agent_socket(&self.dir), START).await
            && !agent.has_ended()?
        {
            return Err(error);
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// At which point the agent has killed itself; `None` while it runs.
    pub(crate) fn agent_crashed_at(&mut self) -> Result<Option<String>> {
        let agent = self.agent.as_mut().context("no agent was started")?;
        if !agent.has_ended()? {
            return Ok(None);
        }
        let log = agent.own_log();
        let point = log.lines().rev().find_map(|l| l.strip_prefix("crash point "));
        match point {
            Some(point) => Ok(Some(point.to_owned())),
            None => bail!("the agent has ended, but at no crash point:\n{}", tail("agent", 30)),
        }
    }

    pub(crate) async fn start_shim(dir: &Path, node: &str) -> Result<Daemon> {
        let command = Self::shim_command(dir, &agent_socket(dir), "csi.sock", node)?;
        let mut shim = Daemon::start("shim", command)?;
        socket_up(&mut shim, &dir.join("csi.sock"), START).await?;
        Ok(shim)
    }

    /// How a shim is started; `socket` is where it serves, below the stack's directory.
    pub(crate) fn shim_command(
        dir: &Path,
        agent: &Path,
        socket: &str,
        node: &str,
    ) -> Result<Command> {
        let mut command = Command::new(sibling("rds-csi-shim")?);
        command
            .args(["--endpoint", &format!("unix://{}", dir.join(socket).display())])
            .arg("--agent-socket")
            .arg(agent)
            .args(["--node-name", node, "--no-registration", "--no-kubernetes"]);
        Ok(command)
    }

    /// The agent's process.
    pub(crate) fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.pid())
    }

    /// SIGKILL to the agent.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.agent.as_mut().context("no agent runs")?.kill()?;
        self.agent = None;
        Ok(())
    }

    /// SIGTERM to the agent, as at an upgrade.
    pub(crate) fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.stop(PATIENCE)
    }

    /// Starts the agent again.
    pub(crate) async fn restart_agent(&mut self) -> Result<()> {
        self.agent = Some(Self::start_agent(&self.dir, &self.agent_options).await?);
        Ok(())
    }

    /// Whether the agent runs.
    pub(crate) fn has_agent(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.has_ended().is_ok_and(|ended| !ended))
    }

    /// The calls of kubelet and the sidecars.
    pub(crate) async fn csi(&self) -> Result<Csi> {
        Csi::connect(&self.dir.join("csi.sock"), &self.dir.join("controller.sock")).await
    }

    /// Orders a fault, as an administrator or bad luck would.
    pub(crate) fn order(&self, words: &[&str]) -> Result<Value> {
        let (sim, state) = (sibling("rds-sim")?, self.dir.join("sim"));
        let mut command = vec![sim.to_str().unwrap_or_default(), "ctl", "--state-dir"];
        command.push(state.to_str().unwrap_or_default());
        command.extend(words);
        let answer = run(&command)?;
        serde_json::from_str(&answer)
            .with_context(|| format!("rds-sim ctl {words:?} said {answer:?}"))
    }

    /// `rds-node-agent status -o json` for one volume.
    pub(crate) fn status(&self, volume: &str) -> Result<Value> {
        let volumes = self.volumes(&["status", volume, "-o", "json"])?;
        volumes.into_iter().next().context("the agent does not list the volume")
    }

    /// The same for all of them, in any order.
    pub(crate) fn statuses(&self) -> Result<Vec<Value>> {
        self.volumes(&["status", "-o", "json"])
    }

    fn volumes(&self, words: &[&str]) -> Result<Vec<Value>> {
        let mut answer: Value = serde_json::from_str(&self.agent_cli(words)?)?;
        let volumes = answer["volumes"].as_array_mut().context("no volumes in the status")?;
        Ok(std::mem::take(volumes))
    }

    /// A volume's transitions, oldest first.
    pub(crate) fn history(&self, volume: &str) -> Result<Vec<Value>> {
        let answer = self.agent_cli(&["history", volume, "--limit", "0", "-o", "json"])?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        let transitions = answer["transitions"].as_array_mut().context("no transitions")?;
        Ok(std::mem::take(transitions))
    }

    /// Any command of the agent's command line, as a person would type it.
    pub(crate) fn agent_cli(&self, words: &[&str]) -> Result<String> {
        let (agent, socket) = (sibling("rds-node-agent")?, agent_socket(&self.dir));
        let mut command = vec![agent.to_str().unwrap_or_default()];
        command.extend(words);
        command.extend(["--socket", socket.to_str().unwrap_or_default()]);
        run(&command)
    }

    /// Ends everything politely; a part that does not end is a failure.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.shim.stop(PATIENCE)?;
        self.controller.stop(PATIENCE)?;
        if let Some(mut agent) = self.agent.take() {
            agent.stop(PATIENCE)?;
        }
        self.appliance.stop(PATIENCE)
    }

    /// The agent's.
    pub(crate) fn socket(&self) -> PathBuf {
        agent_socket(&self.dir)
    }

    /// Where a volume's bytes really are.
    pub(crate) fn backing_file(&self, volume: &str) -> PathBuf {
        self.dir.join(format!("sim/pools/raid10/volumes/{volume}.img"))
    }
}

pub(crate) fn agent_socket(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

/// Where the appliance's files are, a btrfs: rds-sim shares blocks between a subvolume and
/// its snapshots if the file system below can.
fn pool_with_snapshots(dir: &Path, bytes: u64) -> Result<()> {
    let image = dir.join("pool.img");
    fs::File::create(&image)?.set_len(bytes)?;
    fs::create_dir_all(dir.join("sim"))?;
    let (image, at) = (image.display().to_string(), dir.join("sim").display().to_string());
    run(&["mkfs.btrfs", "-q", &image])?;
    run(&["mount", "-o", "loop", &image, &at])?;
    Ok(())
}

/// The host's udev rules, as the package installs them.
pub(crate) fn udev_rules() -> Result<()> {
    fs::create_dir_all("/run/udev/rules.d")?;
    for entry in fs::read_dir("systemd/udev")? {
        let path = entry?.path();
        if let Some(name) =
            path.file_name().filter(|_| path.extension().is_some_and(|e| e == "rules"))
        {
            fs::copy(&path, Path::new("/run/udev/rules.d").join(name))?;
        }
    }
    run(&["udevadm", "control", "--reload"])?;
    Ok(())
}

/// The link between node and appliance.
fn network() -> Result<()> {
    let _ = run(&["ip", "netns", "del", "rds"]);
    let _ = run(&["ip", "link", "del", "rds0"]);
    for command in [
        "ip netns add rds",
        "ip link add rds0 type veth peer name rds1 netns rds",
        &format!("ip addr add {NODE_ADDRESS}/24 dev rds0"),
        "ip link set rds0 up",
        &format!("ip -n rds addr add {APPLIANCE}/24 dev rds1"),
        "ip -n rds link set rds1 up",
        "ip -n rds link set lo up",
    ] {
        run(&command.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}
