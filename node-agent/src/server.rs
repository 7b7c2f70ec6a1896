//! The daemon: one unix socket, `csi.v1.Node` and `rdscsi.agent.v1` on it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rds_csi_proto::agent::sessions_server::SessionsServer;
use rds_csi_proto::csi::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::interceptor::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::cli::ServeOptions;
use crate::error::{Error, Result};
use crate::journal::{Journal, Opened};
use crate::kernel::process;
use crate::node::{NodeConfig, NodeService};
use crate::session::copy::Copies;
use crate::session::keeper::Keeper;
use crate::session::rpc::SessionsService;

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
    process::prepare_for_write_back();
    refuse_a_second_agent(&options.socket)?;
    let journal = open_journal(&options.state_dir).await?;
    // Beside the socket, in /run: gone with the boot, as the sessions are.
    let run_dir = options.socket.parent().unwrap_or(Path::new("/run/rds-csi"));
    let copies = Copies::new(run_dir.join("sessions"));
    let keeper = Keeper::start(journal.clone(), copies).await?;
    let config = NodeConfig::new(options.node_name.clone(), i64::from(options.max_volumes))?;
    tokio::spawn(watchdog(keeper.clone()));
    let node = NodeService::new(keeper.clone(), journal.clone(), config)?;
    let listener = listen(&options.socket)?;

    let allowed = options.allow_uid.clone();
    let server = Server::builder()
        .layer(InterceptorLayer::new(move |request| admit(request, &allowed)))
        .add_service(NodeServer::new(node))
        .add_service(SessionsServer::new(SessionsService::new(keeper, journal)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop_signal());
    info!(socket = %options.socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let served = tokio::select! {
        served = server => served,
        () = async { stop_signal().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    };
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

/// Tells systemd that the agent is alive: this task runs, and the sweeper goes round. While
/// either is stuck nobody brings sessions back, and a restart interrupts nothing.
async fn watchdog(keeper: Keeper) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        let age = keeper.sweep_age();
        if age < limit / 2 {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        } else {
            warn!(?age, "the sweeper is stuck; systemd is not told that the agent is alive");
        }
        tokio::time::sleep(limit / 4).await;
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
