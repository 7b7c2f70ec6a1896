//! The daemon: one unix socket, `csi.v1.Node` and `rdscsi.agent.v1` on it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rds_csi_proto::agent::attachments_server::AttachmentsServer;
use rds_csi_proto::agent::notices_server::NoticesServer;
use rds_csi_proto::agent::sessions_server::SessionsServer;
use rds_csi_proto::csi::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::cli::ServeOptions;
use crate::error::{Error, Result};
use crate::journal::{Journal, Opened};
use crate::kernel::process;
use crate::metrics::health::Health;
use crate::metrics::process::Process;
use crate::metrics::rpc::CountCalls;
use crate::metrics::volumes::Volumes;
use crate::metrics::{self, Metrics};
use crate::node::{NodeConfig, NodeService};
use crate::panics::{self, CatchPanics};
use crate::session::beat::Board;
use crate::session::copy::Copies;
use crate::session::keeper::Keeper;
use crate::session::rpc::SessionsService;
use crate::udev_rules;
use crate::watchdog;

/// Calls that are under way at a stop get this long; sessions are never touched by it.
const DRAIN: Duration = Duration::from_secs(10);
/// Opening sled replays its log, in far less than this. Sessions wait meanwhile, so a disk
/// that hangs is not waited for: it is used when it answers.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(15);

/// Serves until SIGTERM or SIGINT. Stopping leaves every session, device and mount as it
/// is: the next start takes them over.
///
/// # Errors
/// If the socket or the kernel's interfaces cannot be had. A journal that cannot be used is
/// no such reason: sessions are kept without it, new volumes are refused.
pub async fn serve(options: ServeOptions) -> Result<()> {
    panics::install_hook();
    process::prepare_for_write_back();
    refuse_a_second_agent(&options.socket)?;
    if let Some(directory) = &options.udev_rules_dir {
        udev_rules::put(directory);
    }
    process::keep_files_private();
    let (metrics, board) = (Arc::new(Metrics::new()?), Board::default());
    metrics.register(Box::new(Process::new()?))?;
    let health = Health::new(board.clone());
    let end_metrics = CancellationToken::new();
    let metrics_served = options.metrics_addr.map(|address| {
        let end = end_metrics.clone();
        tokio::spawn(metrics::server::serve(address, metrics.clone(), health.clone(), end))
    });
    let journal = open_journal(&options.state_dir).await?;
    health.journal_opened(journal.clone())?;
    // Beside the socket, in /run: gone with the boot, as the sessions are.
    let run_dir = options.socket.parent().unwrap_or(Path::new("/run/rds-csi"));
    let copies = Copies::new(run_dir.join("sessions"));
    let keeper = Keeper::start(journal.clone(), copies, metrics.clone(), board.clone()).await?;
    metrics.register(Box::new(Volumes::new(keeper.clone(), journal.clone(), board.clone())?))?;
    health.adopted(keeper.clone());
    let config = NodeConfig::new(options.node_name.clone(), i64::from(options.max_volumes))?;
    tokio::spawn(watchdog::watch(board));
    let node = NodeService::new(keeper.clone(), journal.clone(), config)?;
    let listener = listen(&options.socket)?;
    if let Some(group) = &options.socket_group {
        give_to_group(&options.socket, group);
    }

    let (answerers, notices) = (keeper.answerers().clone(), keeper.notices().clone());
    let stop = {
        let (answerers, notices) = (answerers.clone(), notices.clone());
        async move {
            stop_signal().await;
            answerers.close();
            notices.close();
        }
    };
    let allowed = options.allow_uid.clone();
    let server = Server::builder()
        .layer(CountCalls(metrics))
        .layer(InterceptorLayer::new(move |request| admit(request, &allowed)))
        .layer(CatchPanics)
        .add_service(NodeServer::new(node))
        .add_service(SessionsServer::new(SessionsService::new(keeper, journal)))
        .add_service(AttachmentsServer::new(answerers))
        .add_service(NoticesServer::new(notices))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
    info!(socket = %options.socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let served = tokio::select! {
        served = server => served,
        () = async { stop_signal().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    };
    end_metrics.cancel();
    if let Some(task) = metrics_served {
        let _ = task.await;
    }
    // A call that is still in the kernel's hands must not hold up the stop; the journal
    // tells the next start of it.
    served.map_err(|e| Error::Unavailable(format!("serve {}: {e}", options.socket.display())))
}

async fn open_journal(state_dir: &Path) -> Result<Journal> {
    let journal = Journal::start(state_dir)?;
    let mut progress = journal.progress();
    let tried = progress.wait_for(|p| p.openings + p.failures > 0);
    let _ = tokio::time::timeout(JOURNAL_PATIENCE, tried).await;
    let health = journal.health();
    if let Some(problem) = health.problem {
        warn!(problem, "started without a journal; sessions are taken over from the kernel");
    }
    if let Some(Opened::SetAside(path, reason)) = health.opened {
        warn!(path = %path.display(), reason, "began with an empty journal");
    }
    Ok(journal)
}

/// Before anything is touched: two agents would undo each other's work.
fn refuse_a_second_agent(path: &Path) -> Result<()> {
    if UnixStream::connect(path).is_ok() {
        return Err(Error::Precondition(format!(
            "another agent is serving {}; stop it first (systemctl status rds-node-agent)",
            path.display()
        )));
    }
    Ok(())
}

/// Makes the socket, in place of one that a killed agent left behind.
fn listen(path: &Path) -> Result<UnixListener> {
    let at = |action| Error::kernel(action, path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::kernel("create", dir.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            refuse_a_second_agent(path)?;
            fs::remove_file(path).map_err(at("remove the stale socket"))?;
        }
        Ok(_) => {
            return Err(Error::Precondition(format!("{} exists and is no socket", path.display())));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(at("look at")(e)),
    }
    let listener = UnixListener::bind(path).map_err(at("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(at("set the mode of"))?;
    Ok(listener)
}

/// Lets a group open the socket. Without it the agent still serves root, so that a group
/// that is missing is no reason to leave volumes without their keeper.
fn give_to_group(path: &Path, name: &str) {
    let given = match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => nix::unistd::chown(path, None, Some(group.gid)).map_err(Into::into),
        Ok(None) => Err(io::Error::new(io::ErrorKind::NotFound, "no such group")),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = given {
        warn!(group = name, %error, "only root can open the socket");
    }
}

/// Only root and the users named by `--allow-uid` (the shim's) may speak to the agent:
/// whoever can make it mount can own the host.
fn admit(request: Request<()>, allowed: &[u32]) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer.map(|cred| cred.uid()) {
        Some(uid) if uid == 0 || allowed.contains(&uid) => Ok(request),
        Some(uid) => Err(Status::permission_denied(format!(
            "user id {uid} may not use the node-agent; start it with --allow-uid {uid} if it should"
        ))),
        None => Err(Status::permission_denied("the peer's credentials are not known")),
    }
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    info!("stopping; sessions, devices and mounts stay as they are");
}
