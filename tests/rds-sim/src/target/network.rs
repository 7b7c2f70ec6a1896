//! What tests do to the portal's packets, in the network namespace that this process runs in.
//!
//! `nft` drops both directions (so neither FIN nor RST leaves, as with a machine that lost power);
//! `ss -K` aborts connections. Both are best effort and say when they could not.

use std::net::{IpAddr, SocketAddr};

use tokio::process::Command;

use super::TargetError;

/// Table that holds our rules and nothing else; removing it heals.
const TABLE: &str = "rdssim";

/// What selects a packet to the portal, and one from it.
fn selectors(portal: SocketAddr) -> (String, String) {
    let port = portal.port();
    let (to, from) = match portal.ip() {
        ip if ip.is_unspecified() => (String::new(), String::new()),
        IpAddr::V4(ip) => (format!("ip daddr {ip} "), format!("ip saddr {ip} ")),
        IpAddr::V6(ip) => (format!("ip6 daddr {ip} "), format!("ip6 saddr {ip} ")),
    };
    (format!("{to}tcp dport {port}"), format!("{from}tcp sport {port}"))
}

/// Drops every packet to and from the portal.
pub async fn drop_packets(portal: SocketAddr) -> Result<(), TargetError> {
    heal(portal).await?;
    let ((to, from), table) = (selectors(portal), table(portal));
    let rules = format!(
        "table inet {table} {{\n\
         chain in {{ type filter hook input priority -300; {to} drop; }}\n\
         chain out {{ type filter hook output priority -300; {from} drop; }}\n}}\n"
    );
    run("nft", &[rules.as_str()]).await
}

/// Answers every packet to the portal with RST, as a machine does on which nobody listens,
/// and ends the connections there are.
pub async fn refuse(portal: SocketAddr) -> Result<(), TargetError> {
    heal(portal).await?;
    let ((to, _), table) = (selectors(portal), table(portal));
    let rules = format!(
        "table inet {table} {{\n\
         chain in {{ type filter hook input priority -300; {to} reject with tcp reset; }}\n}}\n"
    );
    run("nft", &[rules.as_str()]).await?;
    reset_connections(portal).await
}

/// Lets packets pass again.
pub async fn heal(portal: SocketAddr) -> Result<(), TargetError> {
    let table = table(portal);
    // Made first, so that deleting it cannot fail for want of it.
    run("nft", &[&format!("table inet {table}\ndelete table inet {table}")]).await
}

/// Aborts connections of the portal: RST to the peers. Needs INET_DIAG_DESTROY.
pub async fn reset_connections(portal: SocketAddr) -> Result<(), TargetError> {
    let sport = format!("sport = :{}", portal.port());
    // Not the listener: the port stays open. Connections that are closing count as well.
    run("ss", &["-H", "-n", "-t", "-K", "state", "connected", &sport]).await
}

/// Two simulators in one namespace keep their own tables.
fn table(portal: SocketAddr) -> String {
    format!("{TABLE}_{}", portal.port())
}

async fn run(program: &str, args: &[&str]) -> Result<(), TargetError> {
    let out = Command::new(program).args(args).kill_on_drop(true).output();
    let out = tokio::time::timeout(std::time::Duration::from_secs(10), out)
        .await
        .map_err(|_| TargetError::Other(format!("{program} took longer than 10 s")))?
        .map_err(|e| {
            TargetError::Other(format!("{program}: {e} (install it where faults are wanted)"))
        })?;
    if out.status.success() {
        return Ok(());
    }
    Err(TargetError::Other(format!(
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr).trim_end()
    )))
}
