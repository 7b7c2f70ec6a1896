//! The commands that ask a running daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use rds_csi_proto::agent::sessions_client::SessionsClient;
use rds_csi_proto::agent::{
    HistoryRequest, State, StatusReply, StatusRequest, VolumeRequest, WatchRequest,
};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::journal::now_unix_ms;
use crate::kernel::dm::DeviceMapper;
use crate::session::shield;

use super::json::Failed;
use super::output::{Format, Printer};
use super::style::Colours;
use super::{FAILED, UNREACHABLE, printed};

/// The agent's answer to any command; reading state never waits for a device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum Ask {
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
    /// Show a volume's transitions with their causes, oldest first.
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
    /// Ask the kernel to look for a volume's namespace again.
    Rescan {
        volume: String,
        #[command(flatten)]
        client: ClientOptions,
    },
}

#[derive(Debug, Args)]
pub(super) struct ClientOptions {
    /// The daemon's unix socket.
    #[arg(long, env = "RDS_CSI_SOCKET", default_value = "/run/rds-csi/agent.sock")]
    pub(super) socket: PathBuf,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
}

/// Why there is no status to look at.
pub(crate) enum NoStatus {
    /// Nobody is there.
    Unreachable(String),
    /// Somebody is, and says no.
    Refused(String),
}

/// The state of all volumes, for `doctor`.
pub(crate) async fn status(socket: &Path) -> Result<StatusReply, NoStatus> {
    let asked = async {
        let mut sessions = SessionsClient::new(connect(socket.to_owned()).await?);
        answer(sessions.status(StatusRequest::default())).await
    };
    asked.await.map_err(|failure| match failure {
        Failure::Unreachable(reason) => NoStatus::Unreachable(reason),
        Failure::Refused(reasons) => NoStatus::Refused(reasons.join("; ")),
        Failure::Print(error) => NoStatus::Refused(error.to_string()),
    })
}

/// Why a command did not end well.
enum Failure {
    /// Nobody serves the socket, or nobody answers on it.
    Unreachable(String),
    /// The daemon's own answer, or several.
    Refused(Vec<String>),
    /// Standard output is gone.
    Print(io::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status that was made on this side, for want of an answer, has a cause; what the
        // daemon sends has none. `Unavailable` alone tells nothing: the daemon says it, too,
        // of a target.
        match std::error::Error::source(&status) {
            Some(_) => Self::Unreachable(status.message().to_owned()),
            None => Self::Refused(vec![status.message().to_owned()]),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Print(error)
    }
}

impl Ask {
    fn options(&self) -> &ClientOptions {
        match self {
            Self::Status { client, .. }
            | Self::Sessions { client }
            | Self::History { client, .. }
            | Self::Watch { client, .. }
            | Self::Reconnect { client, .. }
            | Self::Fail { client, .. }
            | Self::Rescan { client, .. } => client,
        }
    }
}

/// Asks the daemon and prints what it says.
pub(super) async fn ask(command: Ask) -> ExitCode {
    let ClientOptions { socket, output } = command.options();
    let (socket, format) = (socket.clone(), *output);
    let mut printer = Printer {
        format,
        colours: Colours::of_stdout(),
        now_unix_ms: now_unix_ms(),
        out: io::stdout().lock(),
    };
    let without_daemon = matches!(&command, Ask::Fail { all: true, .. });
    let outcome = async {
        let channel = connect(socket.clone()).await?;
        run(command, SessionsClient::new(channel), &mut printer).await
    };
    match outcome.await {
        Err(Failure::Unreachable(_)) if without_daemon => {
            conclude(fail_all_without_daemon(&mut printer).await, &socket)
        }
        outcome => conclude(outcome, &socket),
    }
}

fn conclude(outcome: Result<(), Failure>, socket: &Path) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Print(error)) => printed(Err(error)),
        Err(Failure::Refused(reasons)) => {
            for reason in reasons {
                eprintln!("rds-node-agent: {reason}");
            }
            ExitCode::from(FAILED)
        }
        Err(Failure::Unreachable(reason)) => {
            eprintln!(
                "rds-node-agent: no agent answers on {}: {reason}; see systemctl status rds-node-agent",
                socket.display()
            );
            ExitCode::from(UNREACHABLE)
        }
    }
}

/// An answer by the deadline. A daemon that is stopped in its tracks still has its socket.
async fn answer<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(ANSWER_DEADLINE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::Unreachable(format!("no answer within {ANSWER_DEADLINE:?}"))),
    }
}

async fn run(
    command: Ask,
    mut sessions: SessionsClient<Channel>,
    printer: &mut Printer<impl io::Write>,
) -> Result<(), Failure> {
    let named = |volume_id: String| VolumeRequest { volume_id };
    match command {
        Ask::Status { volume, .. } => {
            let volume_id = volume.unwrap_or_default();
            printer.status(&answer(sessions.status(StatusRequest { volume_id })).await?)?;
        }
        Ask::Sessions { .. } => {
            printer.sessions(&answer(sessions.status(StatusRequest::default())).await?)?;
        }
        Ask::History { volume, limit, .. } => {
            let asked = HistoryRequest { volume_id: volume, limit };
            printer.history(&answer(sessions.history(asked)).await?.transitions)?;
        }
        Ask::Watch { volume, .. } => {
            let asked = WatchRequest { volume_id: volume.unwrap_or_default() };
            let mut stream = answer(sessions.watch(asked)).await?;
            while let Some(transition) = stream.message().await? {
                printer.watched(&transition)?;
            }
            return Err(Failure::Unreachable("the daemon has ended the stream".into()));
        }
        Ask::Reconnect { volume, .. } => {
            printer.done(&answer(sessions.reconnect(named(volume))).await?)?;
        }
        Ask::Fail { volume: Some(volume), .. } => {
            printer.done(&answer(sessions.fail(named(volume))).await?)?;
        }
        Ask::Fail { volume: None, .. } => {
            let results = fail_all(&mut sessions).await?;
            return told(printer, results);
        }
        Ask::Rescan { volume, .. } => {
            printer.done(&answer(sessions.rescan(named(volume))).await?)?;
        }
    }
    Ok(())
}

/// One volume that cannot be failed must not keep the others from it.
async fn fail_all(sessions: &mut SessionsClient<Channel>) -> Result<Vec<Failed>, Failure> {
    let reply = answer(sessions.status(StatusRequest::default())).await?;
    let mut results = Vec::new();
    for v in reply.volumes.into_iter().filter(|v| v.shielded && v.state() != State::Live) {
        let request = VolumeRequest { volume_id: v.volume_id.clone() };
        let outcome = match answer(sessions.fail(request)).await {
            Ok(reply) => Ok(reply.message),
            Err(Failure::Refused(reasons)) => Err(reasons.join("; ")),
            Err(failure) => return Err(failure),
        };
        results.push(Failed { volume: v.volume_id, outcome });
    }
    Ok(results)
}

/// The shields are the kernel's; only what would undo it, the daemon, is not there.
async fn fail_all_without_daemon(printer: &mut Printer<impl io::Write>) -> Result<(), Failure> {
    let failed = crate::kernel::blocking("fail queued I/O", ANSWER_DEADLINE, || {
        let dm = DeviceMapper::open()?;
        let mut results = Vec::new();
        for (volume, seen) in shield::list(&dm)? {
            let outcome = match seen {
                Ok(seen) if seen.path_active => continue,
                Ok(_) => shield::fail(&dm, &volume),
                // Unknown is not lost.
                Err(error) => Err(error),
            };
            let outcome = outcome
                .map(|()| "I/O that finds no path fails".to_owned())
                .map_err(|error| error.to_string());
            results.push(Failed { volume: volume.to_string(), outcome });
        }
        Ok(results)
    });
    let results = failed.await.map_err(|error| Failure::Refused(vec![error.to_string()]))?;
    told(printer, results)
}

fn told(printer: &mut Printer<impl io::Write>, results: Vec<Failed>) -> Result<(), Failure> {
    printer.failed(&results)?;
    let reasons: Vec<_> = results
        .into_iter()
        .filter_map(|r| Some(format!("{}: {}", r.volume, r.outcome.err()?)))
        .collect();
    if reasons.is_empty() { Ok(()) } else { Err(Failure::Refused(reasons)) }
}

async fn connect(socket: PathBuf) -> Result<Channel, Failure> {
    // The URI only gives an authority that HTTP/2 accepts; the connector knows the path.
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    match timeout(ANSWER_DEADLINE, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(Failure::Unreachable(reason(&error))),
        Err(_) => Err(Failure::Unreachable(format!("no answer within {ANSWER_DEADLINE:?}"))),
    }
}

/// The innermost cause: what the kernel said, which tonic wraps as "transport error".
fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
