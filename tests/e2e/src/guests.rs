//! Two guests with a real kernel, in each of them kubelet, containerd and an agent; in the first
//! the appliance with a kernel target as well. They are told what to do over a socket, one line of
//! JSON a command (tests/scenarios/src/peer.rs).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::bench::{Agent, NODES};
use crate::cluster::Cluster;
use crate::process::{Process, ours, root, tools};

const KERNEL: &str = "6.1";
/// Longer than all scenarios take, for a run that hangs.
const LIMIT: &str = "3000";
const BOOT: Duration = Duration::from_secs(400);
/// Where the commands are taken, and the appliance answers, in the first guest.
const COMMANDS: u16 = 7000;
const REST: u16 = 8443;
/// The addresses of the two on the link between them.
const ADDRESSES: [&str; 2] = ["10.98.0.1", "10.98.0.2"];
const STATUS: u8 = 0x1e;

pub(crate) struct Guests {
    commands: u16,
    rest: u16,
    /// What both write: logs, and the appliance's certificate.
    pub(crate) results: PathBuf,
    machine: Process,
}

/// A port that is free now; rds-vm complains if it is not any more.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Guests {
    /// Boots them with these images, `NAME:TAG` and the file, and waits until both nodes are up.
    pub(crate) async fn start(
        dir: &Path,
        cluster: &Cluster,
        images: &[(String, PathBuf)],
        agent: Agent,
    ) -> anyhow::Result<Self> {
        let results = dir.join("guests");
        for (place, node) in [results.clone(), results.join("peer")].iter().zip(NODES) {
            std::fs::create_dir_all(place.join("images"))?;
            for (name, file) in images {
                let to = place.join("images").join(format!("{}.tar", name.replace('/', "+")));
                std::fs::copy(file, to).with_context(|| format!("no {}", file.display()))?;
            }
            cluster.kubelet_kubeconfig(node, place)?;
        }
        let scenario = ours("rds-scenario")?.display().to_string();
        let agent = if agent == Agent::InPod { "--no-agent" } else { "" };
        let node = |index: usize, more: &str| {
            format!(
                "{scenario} kubelet --node {} --address {} --api-port {} --tools {} {more} {agent}",
                NODES[index],
                ADDRESSES[index],
                cluster.server.port(),
                tools().join("node").display(),
            )
        };
        let (commands, rest) = (free_port()?, free_port()?);
        let mut machine = Command::new(ours("rds-vm")?);
        machine
            .args(["run", "--kernel", KERNEL, "--timeout", LIMIT, "--memory", "2560"])
            .arg("--results")
            .arg(&results)
            .arg("--log")
            .arg(results.join("console.log"))
            .args(["--host-network", "--forward", &format!("{commands}:{COMMANDS}")])
            .args(["--forward", &format!("{rest}:{REST}"), "--peer", &node(1, "")])
            .args(["--", "sh", "-c", &node(0, "--appliance")])
            // Programs of the guest lie in our tree, and have to be found from there.
            .current_dir(root());
        let machine = Process::start(&mut machine, dir, "guests")?;
        let mut guests = Self { commands, rest, results, machine };
        guests.until_up().await?;
        Ok(guests)
    }

    async fn until_up(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let answers = NODES.iter().all(|node| self.run(node, &["true"]).is_ok());
            if answers {
                return Ok(());
            }
            let log = self.machine.log.display().to_string();
            ensure!(!self.machine.has_ended(), "the guests have ended: {log}");
            ensure!(begun.elapsed() < BOOT, "the guests are not up after {BOOT:?}: {log}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Of the appliance, from here.
    pub(crate) fn rest_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.rest)
    }

    /// Runs a command as root on a node, and gives what it printed.
    pub(crate) fn run(&self, node: &str, words: &[&str]) -> anyhow::Result<String> {
        let scenario = ours("rds-scenario")?.display().to_string();
        let mut all: Vec<&str> = Vec::new();
        if node != NODES[0] {
            all.extend([scenario.as_str(), "on-peer", "--"]);
        }
        all.extend(["timeout", "60"]);
        all.extend(words);
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.commands))?;
        stream.set_read_timeout(Some(Duration::from_secs(90)))?;
        writeln!(stream, "{}", serde_json::to_string(&all)?)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let at = answer.iter().position(|b| *b == STATUS).context("it went away")?;
        let (text, status) = answer.split_at(at);
        let text = String::from_utf8_lossy(text).into_owned();
        let status = String::from_utf8_lossy(status.get(1..).unwrap_or_default());
        if status.trim() != "0" {
            bail!("on {node} {words:?} ended with {}: {text}", status.trim());
        }
        Ok(text)
    }

    /// The same for a shell.
    pub(crate) fn shell(&self, node: &str, script: &str) -> anyhow::Result<String> {
        self.run(node, &["sh", "-c", script])
    }
}
