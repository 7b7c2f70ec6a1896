//! The command line: `serve` is the daemon, the rest asks a running one.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rds_csi_proto::agent::sessions_client::SessionsClient;
use rds_csi_proto::agent::{
    HistoryRequest, State, StatusRequest, VolumeReply, VolumeRequest, WatchRequest,
};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tracing_subscriber::EnvFilter;

use crate::kernel::dm::DeviceMapper;
use crate::session::shield;

mod journal;
mod output;

use output::Printer;

/// The agent's answer to any command; reading state never waits for a device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

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
    /// Show each volume: state, since when, device, path, waiting I/O, last outage.
    Status {
        /// Only this volume.
        volume: Option<String>,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show each volume's session: subsystem, host NQN, portal, controller.
    Sessions {
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show a volume's transitions, oldest first.
    History {
        volume: String,
        /// At most so many, the newest; 0 for all.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Show transitions as they happen, until interrupted.
    Watch {
        /// Only this volume.
        volume: Option<String>,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Try to reconnect a volume now, or look again at one that is blocked.
    Reconnect {
        volume: String,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Let waiting I/O of a volume fail, so that a stuck pod can be ended.
    Fail {
        #[arg(required_unless_present = "all")]
        volume: Option<String>,
        /// All volumes that have no session at this moment. Works without a daemon, too: it
        /// is what a host runs at shutdown, so that it always ends.
        #[arg(long, conflicts_with = "volume")]
        all: bool,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Read what the agent has written down; works without a daemon, and beside one.
    Journal(journal::Options),
    /// List the points at which tests can kill the agent.
    #[cfg(feature = "crash-points")]
    CrashPoints,
    /// Ask the kernel to look for a volume's namespace again.
    Rescan {
        volume: String,
        #[command(flatten)]
        client: ClientOptions,
    },
}

/// How the daemon runs.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// The unix socket to serve on.
    #[arg(long, env = "RDS_CSI_SOCKET", default_value = "/run/rds-csi/agent.sock")]
    pub socket: PathBuf,
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
    /// Log in JSON, for collectors.
    #[arg(long, env = "RDS_CSI_LOG_JSON")]
    pub log_json: bool,
}

#[derive(Debug, Args)]
struct ClientOptions {
    /// The daemon's unix socket.
    #[arg(long, env = "RDS_CSI_SOCKET", default_value = "/run/rds-csi/agent.sock")]
    socket: PathBuf,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// How a command prints what it learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: versioned and stable.
    Json,
    /// For people with wide terminals.
    Wide,
}

/// Exit codes: 0 done, 1 failed, 2 usage (clap's own), 3 daemon unreachable.
const FAILED: u8 = 1;
const UNREACHABLE: u8 = 3;

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rds-node-agent: start: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let code = match cli.command {
        Command::Serve(options) => {
            log_to_stderr(options.log_json);
            match runtime.block_on(crate::server::serve(options)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("rds-node-agent: {error}");
                    ExitCode::from(FAILED)
                }
            }
        }
        Command::Journal(options) => journal::run(&options),
        #[cfg(feature = "crash-points")]
        Command::CrashPoints => {
            crate::crash::POINTS.iter().for_each(|point| println!("{point}"));
            ExitCode::SUCCESS
        }
        command => runtime.block_on(ask(command)),
    };
    // Threads that wait in the kernel must not hold up the end.
    runtime.shutdown_background();
    code
}

fn log_to_stderr(json: bool) {
    let filter = EnvFilter::try_from_env("RDS_CSI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}

async fn ask(command: Command) -> ExitCode {
    let client = match &command {
        Command::Status { client, .. }
        | Command::Sessions { client }
        | Command::History { client, .. }
        | Command::Watch { client, .. }
        | Command::Reconnect { client, .. }
        | Command::Fail { client, .. }
        | Command::Rescan { client, .. } => client,
        Command::Serve(_) | Command::Journal(_) => return ExitCode::from(FAILED),
        #[cfg(feature = "crash-points")]
        Command::CrashPoints => return ExitCode::from(FAILED),
    };
    let printer = Printer { format: client.output };
    let without_daemon = matches!(&command, Command::Fail { all: true, .. });
    let sessions = match connect(client.socket.clone()).await {
        Ok(channel) => SessionsClient::new(channel),
        Err(_) if without_daemon => return fail_all_without_daemon().await,
        Err(error) => {
            eprintln!(
                "rds-node-agent: no agent answers on {}: {error}; see systemctl status rds-node-agent",
                client.socket.display()
            );
            return ExitCode::from(UNREACHABLE);
        }
    };
    match run(command, sessions, &printer).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(status) => {
            eprintln!("rds-node-agent: {}", status.message());
            ExitCode::from(if status.code() == Code::Unavailable { UNREACHABLE } else { FAILED })
        }
    }
}

async fn run(
    command: Command,
    mut sessions: SessionsClient<Channel>,
    printer: &Printer,
) -> Result<(), Status> {
    let request = |volume_id: String| {
        let mut request = tonic::Request::new(VolumeRequest { volume_id });
        request.set_timeout(ANSWER_DEADLINE);
        request
    };
    match command {
        Command::Serve(_) | Command::Journal(_) => {}
        #[cfg(feature = "crash-points")]
        Command::CrashPoints => {}
        Command::Status { volume, .. } => {
            let volume_id = volume.unwrap_or_default();
            let reply = sessions.status(StatusRequest { volume_id }).await?.into_inner();
            printer.status(&reply);
        }
        Command::Sessions { .. } => {
            let reply = sessions.status(StatusRequest::default()).await?.into_inner();
            printer.sessions(&reply);
        }
        Command::History { volume, limit, .. } => {
            let asked = HistoryRequest { volume_id: volume, limit };
            printer.transitions(&sessions.history(asked).await?.into_inner().transitions);
        }
        Command::Watch { volume, .. } => {
            let asked = WatchRequest { volume_id: volume.unwrap_or_default() };
            let mut stream = sessions.watch(asked).await?.into_inner();
            while let Some(transition) = stream.message().await? {
                printer.transition(&transition);
            }
        }
        Command::Reconnect { volume, .. } => {
            done(printer, &sessions.reconnect(request(volume)).await?.into_inner());
        }
        Command::Fail { volume: Some(volume), .. } => {
            done(printer, &sessions.fail(request(volume)).await?.into_inner());
        }
        Command::Fail { volume: None, .. } => {
            let reply = sessions.status(StatusRequest::default()).await?.into_inner();
            let lost = reply.volumes.into_iter().filter(|v| v.shielded && v.state() != State::Live);
            for volume in lost {
                done(printer, &sessions.fail(request(volume.volume_id)).await?.into_inner());
            }
        }
        Command::Rescan { volume, .. } => {
            done(printer, &sessions.rescan(request(volume)).await?.into_inner());
        }
    }
    Ok(())
}

/// The shields are the kernel's; only what would undo it, the daemon, is not there.
async fn fail_all_without_daemon() -> ExitCode {
    let failed = crate::kernel::blocking("fail queued I/O", ANSWER_DEADLINE, || {
        let dm = DeviceMapper::open()?;
        for (volume, seen) in shield::list(&dm)? {
            if !seen?.path_active {
                shield::fail(&dm, &volume)?;
                println!("{volume}: I/O that finds no path fails");
            }
        }
        Ok(())
    });
    match failed.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rds-node-agent: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn done(printer: &Printer, reply: &VolumeReply) {
    printer.done(reply);
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    // The URI only gives an authority that HTTP/2 accepts; the connector knows the path.
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}
