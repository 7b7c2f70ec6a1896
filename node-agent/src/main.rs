//! `rds-node-agent`: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    rds_node_agent::cli::main()
}
