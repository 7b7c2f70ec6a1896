//! `rds-node-agent journal`: what the agent has written down. Needs no daemon, and does not
//! disturb one that runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::FAILED;

/// What to do with it.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
    /// Where the journal is kept.
    #[arg(long, global = true, env = "RDS_CSI_STATE_DIR", default_value = "/var/lib/rds-csi")]
    state_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print all of it as JSON, and what is wrong with it, if anything.
    Export,
}

pub(super) fn run(options: &Options) -> ExitCode {
    match options.command {
        Command::Export => match crate::journal::export(&options.state_dir) {
            Ok(journal) => {
                println!("{journal:#}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("rds-node-agent: {error}");
                ExitCode::from(FAILED)
            }
        },
    }
}
