//! The command line: `serve` is the daemon, `doctor` looks at the host with or without one,
//! the rest asks a running one.
//!
//! - [`client`] asks the daemon, [`mod@doctor`] the host; [`output`] prints what it said: tables for people,
//!   [`json`] for programs, both coloured and timed by [`style`];
//! - [`generate`] makes shell completions and manual pages from the definitions below.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) mod client;
mod doctor;
mod generate;
#[cfg(test)]
mod golden_tests;
mod journal;
mod json;
mod output;
mod style;

use crate::kernel::process::{bound_memory, hurry_this_thread};
use client::Ask;
use doctor::DoctorOptions;

/// Exit codes: 0 done, 1 failed, 2 usage (clap's own), 3 daemon unreachable.
const FAILED: u8 = 1;
const UNREACHABLE: u8 = 3;

/// Keeps NVMe/TCP volumes usable through the loss of their sessions.
#[derive(Debug, Parser)]
#[command(name = "rds-node-agent", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve(ServeOptions),
    #[command(flatten)]
    Ask(Ask),
    /// Look for whatever on this host could keep volumes from working, and tell how to mend it.
    Doctor(DoctorOptions),
    /// Read what the agent has written down; works without a daemon, and beside one.
    Journal(journal::Options),
    /// List the points at which tests can kill the agent.
    #[cfg(feature = "crash-points")]
    CrashPoints,
    /// Unmount all volumes and let their I/O fail: what rds-csi-shutdown.service runs.
    #[command(hide = true)]
    HostShutdown,
    /// Print completions for a shell.
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands.
    Man {
        /// Write one file a command into this directory, which is made if need be.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

/// How the daemon runs.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// The unix socket to serve on.
    #[arg(long, env = "RDS_CSI_SOCKET", default_value = "/run/rds-csi/agent.sock")]
    pub socket: PathBuf,
    /// The group that may open the socket, besides root. Who may then use it is for
    /// --allow-uid to say.
    #[arg(long, env = "RDS_CSI_SOCKET_GROUP")]
    pub socket_group: Option<String>,
    /// Where the journal is kept.
    #[arg(long, env = "RDS_CSI_STATE_DIR", default_value = "/var/lib/rds-csi")]
    pub state_dir: PathBuf,
    /// Users besides root that may use the socket (the shim's user id).
    #[arg(long, env = "RDS_CSI_ALLOW_UID", value_delimiter = ',')]
    pub allow_uid: Vec<u32>,
    /// This node's name in NodeGetInfo; the host name if not given. The shim replaces it
    /// with the Kubernetes node's name.
    #[arg(long, env = "RDS_CSI_NODE_NAME")]
    pub node_name: Option<String>,
    /// Volumes that this node may hold at once.
    #[arg(long, env = "RDS_CSI_MAX_VOLUMES", default_value_t = 128)]
    pub max_volumes: u32,
    /// Serve Prometheus metrics, /healthz and /readyz on this address, such as 127.0.0.1:9809.
    #[arg(long, env = "RDS_CSI_METRICS_ADDR", value_name = "ADDRESS:PORT")]
    pub metrics_addr: Option<SocketAddr>,
    /// Put the udev rules into this directory, such as /run/udev/rules.d, where no package has put
    /// them on the host.
    #[arg(long, env = "RDS_CSI_UDEV_RULES_DIR", value_name = "DIRECTORY")]
    pub udev_rules_dir: Option<PathBuf>,
    /// Log in JSON, for collectors.
    #[arg(long, env = "RDS_CSI_LOG_JSON")]
    pub log_json: bool,
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(options) => {
            crate::logging::start(options.log_json);
            bound_memory();
            hurry_this_thread();
            on_runtime(hurry_this_thread, async {
                match crate::server::serve(options).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => failed(&error),
                }
            })
        }
        Command::Ask(ask) => on_runtime(|| {}, client::ask(ask)),
        Command::Journal(options) => journal::run(&options),
        #[cfg(feature = "crash-points")]
        Command::CrashPoints => {
            crate::crash::POINTS.iter().for_each(|point| println!("{point}"));
            ExitCode::SUCCESS
        }
        Command::HostShutdown => on_runtime(|| {}, crate::host_shutdown::run()),
        Command::Doctor(options) => on_runtime(|| {}, doctor::doctor(options)),
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            generate::completions(shell, Cli::command(), &mut bytes);
            print_all(&bytes)
        }
        Command::Man { dir: None } => {
            let mut bytes = Vec::new();
            match generate::page(&Cli::command(), &mut bytes) {
                Ok(()) => print_all(&bytes),
                Err(error) => failed(&error),
            }
        }
        Command::Man { dir: Some(dir) } => match generate::pages(Cli::command(), &dir) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("write manual pages to {}: {error}", dir.display())),
        },
    }
}

/// What blocks has threads of its own, so a few workers do for any number of volumes. One for
/// each processor, which is the default, would cost a large host memory for nothing.
const WORKERS: usize = 4;

fn on_runtime(each_thread: fn(), work: impl Future<Output = ExitCode>) -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(WORKERS).enable_all().on_thread_start(each_thread);
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("start: {error}")),
    };
    let code = runtime.block_on(work);
    // Threads that wait in the kernel must not hold up the end.
    runtime.shutdown_background();
    code
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("rds-node-agent: {error}");
    ExitCode::from(FAILED)
}

/// What was printed, or could not be. A reader that has seen enough (`| head`) is no fault.
fn printed(result: io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            failed(&format!("print: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

fn print_all(bytes: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    printed(out.write_all(bytes).and_then(|()| out.flush()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }
}
