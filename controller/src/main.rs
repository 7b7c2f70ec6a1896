//! The CSI controller of rds-csi. Everything is in the library; this is its doorstep.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    // Wrong usage exits 2 in here, before anything is opened.
    let args = rds_csi_controller::config::Args::parse();
    rds_csi_controller::logging::init();
    match rds_csi_controller::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
