//! `rds-csi-shim`: see the crate's documentation.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use rds_csi_shim::{config::Args, serve};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("RDS_CSI_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();

    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    match serve::run(args, stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "ending");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM is how Kubernetes asks a container to end, SIGINT how a person does.
async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without a handler the signals end the process at once: less graceful, as safe.
        tracing::warn!("no signal handlers: calls in progress are cut off at shutdown");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("asked to end: finishing the calls in progress");
    stop.cancel();
}
