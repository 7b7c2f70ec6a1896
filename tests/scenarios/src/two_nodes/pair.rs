//! The pair: the first guest has the appliance, the controller and a node, the second one
//! another node. Storage traffic of the second passes through the first, which can cut it.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rds_csi_proto::csi::VolumeCapability;
use serde_json::Value;

use super::flood::DEPTH;
use crate::csi::{Csi, Volume, with_retries};
use crate::demo::{no_devices, status};
use crate::fleet::{scrape_at, value};
use crate::peer;
use crate::process::{run, sibling};
use crate::stack::{CONTROLLER_METRICS, DIRECTORY, NODE_NAME, Stack, agent_socket};
use crate::writer::{Pace, Writer};

/// Both guests boot at once; the second may be later on a busy machine.
const UP: Duration = Duration::from_secs(240);
pub(super) const RECOVERY: Duration = Duration::from_secs(120);
/// A guest that was told to end at once.
const DEAD: Duration = Duration::from_secs(30);
const BYTES: i64 = 64 << 20;
/// The table of nft that cuts the second node off.
const TABLE: &str = "rdspair";
/// Places of the records that are checked; the flood has as many after them.
pub(super) const PLACES: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    First,
    Second,
}

impl Node {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::First => NODE_NAME,
            Self::Second => peer::NODE,
        }
    }
}

pub(super) struct Pair {
    pub(super) stack: Stack,
    here: Csi,
    there: Csi,
}

/// A command that runs in the second guest.
fn on_second() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("on-peer").arg("--");
    Ok(command)
}

impl Pair {
    pub(super) async fn begin() -> Result<Self> {
        let stack = Stack::start_for_two().await?;
        // As on an appliance with other volumes: its portal answers whatever is exported.
        stack.order(&["portal", "open"])?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        run(&["ip", "-n", "rds", "route", "add", "10.98.0.0/24", "via", "10.99.0.1"])?;
        let began = Instant::now();
        while TcpStream::connect(peer::COMMANDS).is_err() {
            ensure!(
                began.elapsed() < UP,
                "the second guest is not up: start with --peer 'rds-scenario peer'; it printed:\n{}",
                fs::read_to_string("/results/peer/output.log").unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let here = stack.csi().await?;
        let there = here.with_node_at(peer::SHIM);
        Ok(Self { stack, here, there })
    }

    pub(super) fn csi(&self, node: Node) -> Csi {
        match node {
            Node::First => self.here.clone(),
            Node::Second => self.there.clone(),
        }
    }

    pub(super) fn on_second(words: &[&str]) -> Result<String> {
        let exe = std::env::current_exe()?.display().to_string();
        run(&[&[exe.as_str(), "on-peer", "--"], words].concat())
    }

    pub(super) async fn create(
        &self,
        capability: VolumeCapability,
        parameters: &[(&str, &str)],
    ) -> Result<Volume> {
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let parameters: HashMap<_, _> =
            parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut csi = self.csi(Node::First);
        csi.create(&name, BYTES, capability, parameters).await.map_err(status("create"))
    }

    /// The volume as a node has it: attached, staged, published.
    pub(super) async fn give(&self, volume: &Volume, node: Node) -> Result<Volume> {
        let mut volume = volume.clone();
        let mut csi = self.csi(node);
        let attached = csi.attach_to(&volume, node.name()).await;
        volume.publish_context = attached.map_err(status(&format!("attach to {}", node.name())))?;
        if node == Node::Second {
            let parents = [Some(volume.staging.as_path()), volume.target.parent()];
            for path in parents.into_iter().flatten() {
                Self::on_second(&["mkdir", "-p", path.to_str().context("path")?])?;
            }
        }
        csi.mount(&volume).await.map_err(status(&format!("mount on {}", node.name())))?;
        Ok(volume)
    }

    /// NodeUnpublish and NodeUnstage; nothing may be left of it.
    pub(super) async fn unmount(&self, volume: &Volume, node: Node) -> Result<Duration> {
        let began = Instant::now();
        with_retries("unpublish and unstage", RECOVERY, || {
            let (mut csi, volume) = (self.csi(node), volume.clone());
            async move { csi.unmount(&volume).await }
        })
        .await
        .map_err(status(&format!("unpublish and unstage on {}", node.name())))?;
        Ok(began.elapsed())
    }

    pub(super) async fn detach(&self, volume: &Volume, node: Node) -> Result<()> {
        let mut csi = self.csi(node);
        let detached = csi.detach_from(volume, node.name()).await;
        detached.map_err(status(&format!("detach from {}", node.name())))
    }

    pub(super) async fn delete(&self, volume: &Volume) -> Result<()> {
        self.csi(Node::First).delete(volume).await.map_err(status("delete"))
    }

    /// The pod on a node, from a record on.
    pub(super) fn writer(
        &self,
        volume: &Volume,
        node: Node,
        pause_ms: u64,
        slots: u64,
        first: u64,
    ) -> Result<Writer> {
        let program = match node {
            Node::First => Command::new(std::env::current_exe()?),
            Node::Second => {
                let mut command = on_second()?;
                command.arg(std::env::current_exe()?);
                command
            }
        };
        Writer::start_from(program, &volume.target, true, Pace { pause_ms, slots }, first)
    }

    /// Many writes at once, on the second node, beside the writer's.
    pub(super) fn flood(&self, volume: &Volume) -> Result<Writer> {
        let mut command = on_second()?;
        command.arg(std::env::current_exe()?).arg("flood").arg("--path").arg(&volume.target);
        command.args(["--from", &PLACES.to_string(), "--places", &PLACES.to_string()]);
        Writer::watch(command, &volume.target, true, PLACES)
    }

    /// What the node's own agent says.
    pub(super) fn status(&self, volume: &Volume, node: Node) -> Result<Value> {
        if node == Node::First {
            return self.stack.status(&volume.id);
        }
        let (agent, socket) = (sibling("rds-node-agent")?, agent_socket(&PathBuf::from(DIRECTORY)));
        let (agent, socket) = (agent.display().to_string(), socket.display().to_string());
        let words = [agent.as_str(), "status", &volume.id, "-o", "json", "--socket", &socket];
        let answer: Value = serde_json::from_str(&Self::on_second(&words)?)?;
        answer["volumes"].get(0).cloned().context("the second agent does not list the volume")
    }

    /// Waits until the node's agent says so.
    pub(super) async fn becomes(
        &self,
        volume: &Volume,
        node: Node,
        what: &str,
        patience: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let began = Instant::now();
        loop {
            let seen = self.status(volume, node)?;
            if is(&seen) {
                return Ok(seen);
            }
            if began.elapsed() > patience {
                bail!("after {patience:?} the volume is not {what} on {}: {seen}", node.name());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// From here on no packet passes between the second node and the appliance.
    pub(super) fn cut(&self) -> Result<()> {
        let node = peer::SECOND;
        let rules = format!(
            "table inet {TABLE} {{\n\
             chain cut {{ type filter hook forward priority 0;\n\
             ip saddr {node} drop\nip daddr {node} drop\n}}\n}}\n"
        );
        run(&["nft", &rules]).map(drop)
    }

    pub(super) fn heal(&self) -> Result<()> {
        run(&["nft", &format!("table inet {TABLE}\ndelete table inet {TABLE}")]).map(drop)
    }

    /// Migrations that ended so, as the controller counts.
    pub(super) fn migrations(&self, result: &str) -> Result<u64> {
        let series = format!("rds_csi_migration_migrations_total{{result=\"{result}\"}}");
        let text = scrape_at(CONTROLLER_METRICS, "/metrics")?;
        let count = value(&text, &series).with_context(|| format!("no {series}"))?;
        Ok(count as u64)
    }

    /// No device or controller of ours.
    pub(super) fn nothing_left(&self, node: Node) -> Result<()> {
        if node == Node::First {
            return no_devices();
        }
        let list = "ls -A /sys/class/nvme; cat /sys/block/*/dm/name 2>/dev/null; true";
        let left = Self::on_second(&["sh", "-c", list])?;
        ensure!(left.trim().is_empty(), "left on the second node: {left}");
        Ok(())
    }

    /// The same of one volume, while there are others.
    pub(super) fn nothing_left_of(&self, volume: &Volume, node: Node) -> Result<()> {
        let name = format!("rds-{}", volume.id);
        let list = "cat /sys/block/*/dm/name 2>/dev/null; true";
        let words = ["sh", "-c", list];
        let names = if node == Node::First { run(&words)? } else { Self::on_second(&words)? };
        ensure!(!names.lines().any(|l| l == name), "{name} is left on {}", node.name());
        Ok(())
    }

    /// The second guest ends at once, as by a power failure.
    pub(super) async fn kill_second() -> Result<()> {
        let mut command = on_second()?;
        command.args(["sh", "-c", "echo b >/proc/sysrq-trigger"]);
        // Nobody will tell it how that ended.
        let mut asking = command.stdin(Stdio::null()).spawn()?;
        let address = SocketAddr::new(IpAddr::from_str(peer::SECOND)?, peer::COMMANDS.1);
        let began = Instant::now();
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            ensure!(began.elapsed() < DEAD, "the second guest does not die");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        asking.kill()?;
        asking.wait()?;
        Ok(())
    }

    /// Both writers of the second node ended with EIO; how many of their writes failed.
    pub(super) async fn both_failed(
        writer: &Writer,
        flood: &Writer,
        patience: Duration,
    ) -> Result<usize> {
        let began = Instant::now();
        let expected = usize::try_from(DEPTH)? + 1;
        while writer.errors() + flood.errors() < expected {
            ensure!(
                began.elapsed() < patience,
                "{} of {expected} waiting writes have failed after {patience:?}",
                writer.errors() + flood.errors()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for error in [writer.error(), flood.error()] {
            let error = error.context("no error")?;
            ensure!(error.contains("os error 5"), "a waiting write ended with {error}");
        }
        Ok(expected)
    }
}
