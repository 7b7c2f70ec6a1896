//! Where the daemon's log goes: to the journal with its fields, or to stderr.
//!
//! Under systemd both end in the journal, but only the journal's own protocol keeps the
//! fields: `journalctl VOLUME=pvc-...` gives all that was said of one volume, `RPC=` all
//! that one kind of call did.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Read by journald of each message; also the name that is seen in front of it.
const IDENTIFIER: &str = "rds-node-agent";

/// Starts logging. `RDS_CSI_LOG` says what is logged, `info` if it is not set.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("RDS_CSI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // JSON is asked for by those who collect stderr themselves.
    if !json && let Some(journal) = journal() {
        tracing_subscriber::registry().with(filter).with(journal).init();
        return;
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}

/// The journal, if stderr is connected to it: somebody who redirected stderr, or runs the
/// daemon from a shell inside of another service, wants to read it there.
fn journal() -> Option<tracing_journald::Layer> {
    let told = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = rustix::fs::fstat(std::io::stderr().as_fd()).ok()?;
    if !is_stream(&told, stderr.st_dev, stderr.st_ino) {
        return None;
    }
    let layer = tracing_journald::layer().ok()?;
    // Without the usual prefix "F_": the fields are called what the documentation calls them.
    Some(layer.with_field_prefix(None).with_syslog_identifier(IDENTIFIER.to_owned()))
}

/// `JOURNAL_STREAM` is "device:inode" in decimal (systemd.exec(5)).
fn is_stream(told: &str, device: u64, inode: u64) -> bool {
    told.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::is_stream;

    #[test]
    fn only_the_journals_own_stream_counts() {
        assert!(is_stream("8:12345", 8, 12345));
        for other in ["8:12346", "9:12345", "8", "", "8:12345x", ":"] {
            assert!(!is_stream(other, 8, 12345), "{other}");
        }
    }
}
