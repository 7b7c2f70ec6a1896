//! Where nodes find a volume.

use std::net::IpAddr;
use std::time::Duration;

use crate::error::Error;

/// Resolving a name. Longer means that name resolution is down.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// All addresses of a host, which may be an address itself. Nodes are given addresses, since
/// they must be able to reconnect while name resolution is down.
pub(crate) async fn resolve(host: &str) -> Result<Vec<IpAddr>, Error> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let failed = |cause: String| Error::Resolve { name: host.to_owned(), cause };
    match tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => Ok(found.map(|a| a.ip()).collect()),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", RESOLVE_LIMIT.as_secs()))),
    }
}

/// The first of them.
pub(crate) async fn address_of(host: &str) -> Result<IpAddr, Error> {
    resolve(host)
        .await?
        .first()
        .copied()
        .ok_or_else(|| Error::Resolve { name: host.to_owned(), cause: "it has no address".into() })
}
