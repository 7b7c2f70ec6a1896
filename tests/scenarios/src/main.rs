//! `rds-scenario`: what users would see, on a real kernel, driven through CSI calls only.
//!
//! Runs inside a guest (tests/vm), as root, and brings up the whole system there: the
//! appliance's stand-in in a network namespace of its own, the controller, the agent and
//! the shim as separate processes. In the order in which a story is told:
//!
//! - [`stack`] starts and stops those processes;
//! - [`csi`] makes the calls that kubelet and the sidecars would make;
//! - [`writer`] is the pod: it appends checksummed records and reports each one;
//! - [`faults`] takes the session away;
//! - [`demo`], [`fencing`], [`shared`], [`snapshots`], [`refusals`], [`doctor`], [`hostile`] and [`matrix`]
//!   are the stories; [`report`] tells them.
//! - [`packages`] and [`poweroff`] are about the agent as installed, in a guest whose
//!   process 1 is [`systemd`];
//! - [`fleet`] is about many volumes at once;
//! - [`crash`] kills the agent at each of its named points, [`state_disk`] takes the disk of
//!   its journal away;
//! - [`two_nodes`] is about two nodes in two guests, of which [`peer`] is the second;
//! - [`kubelet`] is a node of a real cluster, whose story `make e2e` tells;
//! - [`chaos`] makes random calls and compares the world with a model, [`churn`] makes many
//!   at once and looks for what is left of them.

mod bench;
mod chaos;
mod churn;
mod crash;
mod csi;
mod demo;
mod doctor;
mod faults;
mod fencing;
mod fleet;
mod hostile;
mod kubelet;
mod matrix;
mod packages;
mod peer;
mod poweroff;
mod process;
mod refusals;
mod report;
mod shared;
mod snapshots;
mod stack;
mod state_disk;
mod switch_over;
mod systemd;
mod two_nodes;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fault scenarios for rds-csi, in a guest.
#[derive(Debug, Parser)]
#[command(name = "rds-scenario", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job with all faults, then the same without the shield, which must fail.
    Demo,
    /// Everything that CI runs: the refusals, the fencing, the gate, the snapshots and the demo, one line
    /// a case.
    Ci,
    /// A volume moves to another node while the first still writes: it must be shut out.
    Fencing,
    /// A volume whose nodes connect as the same host: it waits until it is known whose it is.
    Shared,
    /// Snapshots of volumes that are written to, restored beside them.
    Snapshots {
        /// The file system of the first volume.
        #[arg(long, value_enum, default_value = "ext4")]
        fs: snapshots::Kind,
    },
    /// Bad input and missing parts: each refused with the right code and a remedy.
    Refusals,
    /// The doctor on a healthy host and on broken ones, and the agent's command line.
    Doctor,
    /// Other users, and random requests, on the agent's socket.
    Hostile,
    /// Asks an agent's services for something harmless, and prints the codes of the answers.
    #[command(hide = true)]
    Knock { socket: PathBuf },
    /// The agent is killed at each of its named points: once each, or with --all also in a
    /// life of its own for each. Needs a build with the feature crash-points.
    Crash {
        /// A life for each point, and for each change of the journal.
        #[arg(long)]
        all: bool,
        /// Only this point.
        #[arg(long)]
        only: Option<String>,
    },
    /// The disk of the state directory: full, read-only, deleted; volumes must not notice.
    StateDisk,
    /// Recovery times, the shield's cost and the shim's, each beside something else.
    Bench {
        /// Only these.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<bench::Part>,
        /// Losses whose median is taken.
        #[arg(long, default_value_t = 9)]
        rounds: u32,
    },
    /// What the shim costs: calls, memory, size. On this machine itself, not in a guest.
    BenchShim(bench::host::Options),
    /// Every fault there is, on ext4, xfs and raw block at once, in one boot.
    Matrix(matrix::Options),
    /// Makes docs/fault-matrix.md of what runs of `matrix` have written; runs anywhere.
    #[command(hide = true)]
    MatrixTable {
        /// The day of the runs.
        #[arg(long)]
        date: String,
        #[arg(required = true)]
        runs: Vec<PathBuf>,
    },
    /// The packages' whole life on a host: install, upgrade, crash, remove.
    Packages(packages::Options),
    /// Shuts the guest down with volumes in use; tests/packages.sh judges what is left.
    Poweroff(poweroff::Options),
    /// Two nodes on two kernels: one is cut off and shut out, a writer moves; see `make two-nodes`.
    TwoNodes {
        /// Only these.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<two_nodes::Part>,
    },
    /// The second node of the pair: serves until its guest ends.
    #[command(hide = true)]
    Peer,
    /// A node with containerd and kubelet, for `make e2e`: serves until its guest ends.
    #[command(hide = true)]
    Kubelet(kubelet::Options),
    /// Runs a command in the pair's second guest.
    #[command(hide = true)]
    OnPeer {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// A pod with many writes on their way at once.
    #[command(hide = true)]
    Flood {
        #[arg(long)]
        path: PathBuf,
        /// Its first place.
        #[arg(long)]
        from: u64,
        #[arg(long)]
        places: u64,
    },
    /// Many volumes lost at once: recovery, connections, the agent's memory and idle CPU.
    Fleet,
    /// Random sequences of calls on four volumes, with crashes, against a model.
    Chaos(chaos::Options),
    /// 64 lives at once on 32 volumes, then no leak; users found among 2,000 processes.
    Churn(churn::Options),
    /// How fast this machine is at what an idle agent does; for RDS_HOST_SPEED in a guest.
    #[command(hide = true)]
    Speed,
    /// The pod of the scenarios: writes records until it is told to stop.
    #[command(hide = true)]
    Writer {
        #[arg(long)]
        path: PathBuf,
        #[arg(long)]
        block: bool,
        /// The first record's number.
        #[arg(long, default_value_t = 1)]
        first: u64,
        #[command(flatten)]
        pace: writer::Pace,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Writer { path, block, first, pace } => {
            return writer::child(path, *block, *pace, *first);
        }
        Command::Flood { path, from, places } => return two_nodes::flood(path, *from, *places),
        Command::OnPeer { words } => return peer::ask(words),
        _ => {}
    }
    if let Command::MatrixTable { date, runs } = &cli.command {
        return matrix::table::print(date, runs);
    }
    if let Command::Speed = cli.command {
        return match fleet::speed() {
            Ok((read, compute)) => {
                println!("{read:.1},{compute:.3}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("rds-scenario: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::var_os("RDS_VM").is_none() && !matches!(cli.command, Command::BenchShim(_)) {
        eprintln!(
            "rds-scenario breaks storage and networks, so it runs only in a guest: \
             rds-vm run --kernel 6.1 -- rds-scenario demo"
        );
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rds-scenario: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let passed = runtime.block_on(async {
        match cli.command {
            Command::Demo => demo::run().await,
            Command::Ci => {
                let refusals = refusals::run().await;
                let fencing = fencing::run().await;
                let fencing = shared::run().await && fencing;
                let snapshots = snapshots::run(snapshots::Kind::Ext4).await;
                demo::run().await && refusals && fencing && snapshots
            }
            Command::Fencing => fencing::run().await,
            Command::Shared => shared::run().await,
            Command::Snapshots { fs } => snapshots::run(fs).await,
            Command::Refusals => refusals::run().await,
            Command::Bench { only, rounds } => bench::run(&only, rounds).await,
            Command::BenchShim(options) => bench::host::run(&options).await,
            Command::StateDisk => state_disk::run().await,
            Command::Crash { all, only } => {
                let extent = if all { crash::Extent::Each } else { crash::Extent::Once };
                crash::run(extent, only.as_deref()).await
            }
            Command::Doctor => doctor::run().await,
            Command::Hostile => hostile::run().await,
            Command::Knock { socket } => hostile::knock(&socket).await,
            Command::Packages(options) => packages::run(&options).await,
            Command::Poweroff(options) => poweroff::run(&options).await,
            Command::Fleet => fleet::run().await,
            Command::Chaos(options) => chaos::run(&options).await,
            Command::Churn(options) => churn::run(&options).await,
            Command::Matrix(options) => matrix::run(options).await,
            Command::TwoNodes { only } => two_nodes::run(&only).await,
            Command::Peer => match peer::serve().await {
                Ok(()) => true,
                Err(error) => {
                    eprintln!("rds-scenario: the second node: {error:#}");
                    false
                }
            },
            Command::Kubelet(options) => match kubelet::serve(&options).await {
                Ok(()) => true,
                Err(error) => {
                    eprintln!("rds-scenario: {}: {error:#}", options.node);
                    false
                }
            },
            Command::Writer { .. }
            | Command::Flood { .. }
            | Command::OnPeer { .. }
            | Command::MatrixTable { .. }
            | Command::Speed => false,
        }
    });
    runtime.shutdown_background();
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
