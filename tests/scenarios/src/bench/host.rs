//! What the shim costs, measured on this machine itself: an emulated processor would only give
//! ratios. The agent serves without a kernel that has NVMe; it is asked nothing that needs one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rds_csi_proto::csi::node_client::NodeClient;
use rds_csi_proto::csi::{NodeGetCapabilitiesRequest, NodeGetInfoRequest};
use tonic::transport::Channel;

use super::median;
use crate::csi::{channel, request};
use crate::process::{Daemon, sibling, socket_up};

/// What was promised of the shim.
const MOST_ADDED_MS: f64 = 1.0;
const MOST_RESIDENT: u64 = 10 << 20;
const MOST_ON_DISK: u64 = 8 << 20;
const START: Duration = Duration::from_secs(30);
/// Connections and allocators are warm after this.
const WARM_UP: usize = 200;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The shim as it is shipped: optimised, and static.
    #[arg(long)]
    shim: PathBuf,
    /// The agent behind it [default: the one beside this program].
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Calls on each way, alternately.
    #[arg(long, default_value_t = 3000)]
    calls: usize,
}

/// True if the shim is as small and as quick as was promised.
pub(crate) async fn run(options: &Options) -> bool {
    match measure(options).await {
        Ok(()) => true,
        Err(error) => {
            println!("FAILED bench-shim: {error:#}");
            false
        }
    }
}

async fn measure(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (agent_socket, shim_socket) = (dir.path().join("agent.sock"), dir.path().join("csi.sock"));
    let agent = options.agent.clone().map_or_else(|| sibling("rds-node-agent"), Ok)?;
    let mut command = Command::new(&agent);
    command.args(["serve", "--socket"]).arg(&agent_socket);
    command.arg("--state-dir").arg(dir.path().join("state")).env("RDS_CSI_LOG", "error");
    let mut agent = Daemon::start("bench-agent", command)?;
    socket_up(&mut agent, &agent_socket, START).await?;
    let mut command = Command::new(&options.shim);
    command.arg("--endpoint").arg(&shim_socket).arg("--agent-socket").arg(&agent_socket);
    command.args(["--node-name", "bench", "--no-registration", "--no-kubernetes"]);
    let mut shim = Daemon::start("bench-shim", command)?;
    socket_up(&mut shim, &shim_socket, START).await?;

    let mut ways =
        [NodeClient::new(channel(&agent_socket)), NodeClient::new(channel(&shim_socket))];
    let mut times = [Vec::new(), Vec::new()];
    // Alternately, so that whatever else the machine does falls on both.
    for n in 0..options.calls + WARM_UP {
        for (way, times) in ways.iter_mut().zip(&mut times) {
            let took = call(way, n).await?;
            if n >= WARM_UP {
                times.push(took);
            }
        }
    }
    let [direct, forwarded] = times.map(median);
    let added = forwarded - direct;
    let resident = resident(shim.pid())?;
    let on_disk = std::fs::metadata(&options.shim)?.len();
    expect_static(&options.shim)?;
    println!("{} calls each, medians in milliseconds:", options.calls);
    println!("  to the agent      {direct:.3}");
    println!("  through the shim  {forwarded:.3}");
    let results = [
        row("added by the shim, ms", added, MOST_ADDED_MS),
        row("shim resident, MiB", mib(resident), mib(MOST_RESIDENT)),
        row("static binary, MiB", mib(on_disk), mib(MOST_ON_DISK)),
    ];
    ensure!(results.iter().all(|fine| *fine), "the shim costs more than was promised");
    Ok(())
}

/// Milliseconds. Two calls that touch nothing, one of which the shim looks into.
async fn call(way: &mut NodeClient<Channel>, n: usize) -> Result<f64> {
    let began = Instant::now();
    if n.is_multiple_of(2) {
        way.node_get_capabilities(request(NodeGetCapabilitiesRequest {})).await?;
    } else {
        way.node_get_info(request(NodeGetInfoRequest {})).await?;
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

fn row(what: &str, found: f64, most: f64) -> bool {
    let fine = found < most;
    println!("{} {what}: {found:.3} (less than {most})", if fine { "ok" } else { "FAILED" });
    fine
}

#[allow(clippy::cast_precision_loss)]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// A dynamic one would be smaller than what is shipped.
fn expect_static(program: &Path) -> Result<()> {
    let needed = crate::process::run(&["ldd", program.to_str().context("path")?]);
    match needed {
        // `ldd` fails on what is not dynamic, or says so of a static-pie.
        Err(_) => Ok(()),
        Ok(text) if text.contains("statically linked") => Ok(()),
        Ok(text) => bail!("{} is not static: {text}", program.display()),
    }
}
