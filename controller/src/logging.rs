//! Log lines on standard error, one an event; `RUST_LOG` sets what is shown (default: info).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. Called once, first thing.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
