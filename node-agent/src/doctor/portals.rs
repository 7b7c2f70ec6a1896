//! Portals of attached volumes: whether they can be reached, and speak NVMe/TCP.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use rds_csi_proto::ids::{HostNqn, Nqn};

use crate::error::{Error, Result};
use crate::kernel::{refusal, sysfs};

use super::context::Context;
use super::{Finding, VOLUME_NQNS};

/// A healthy portal is in the same building.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// Every target has this subsystem and lets anybody in, so to ask for it disturbs no volume
/// (NVMe base specification 3.1.3.3).
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let mut portals: BTreeSet<SocketAddr> = context.subject.portals.iter().copied().collect();
    let volumes = context.volumes().unwrap_or_default();
    portals.extend(volumes.iter().filter_map(|v| v.portal.parse::<SocketAddr>().ok()));
    let controllers = sysfs::controllers()?;
    let ours = controllers.iter().filter(|c| c.nqn.starts_with(VOLUME_NQNS));
    portals.extend(ours.filter_map(|c| parse_address(&c.address)));
    if portals.is_empty() {
        return Ok(vec![Finding::ok(
            "portals",
            "no volume is attached, and no --portal was given",
        )]);
    }
    // Beside each other: one that is down takes its whole deadline.
    std::thread::scope(|scope| {
        let asked: Vec<_> = portals.iter().map(|p| scope.spawn(move || ask(*p))).collect();
        let crashed = || Error::Unavailable("the check of a portal panicked".into());
        asked.into_iter().map(|a| a.join().map_err(|_| crashed())?).collect()
    })
}

/// `traddr=10.0.0.2,trsvcid=4420,src_addr=10.0.0.1`
fn parse_address(text: &str) -> Option<SocketAddr> {
    let field = |name: &str| {
        text.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
    };
    let address: IpAddr = field("traddr")?.parse().ok()?;
    Some(SocketAddr::new(address, field("trsvcid")?.parse().ok()?))
}

fn ask(portal: SocketAddr) -> Result<Finding> {
    let check = format!("portal.{portal}");
    if let Err(error) = TcpStream::connect_timeout(&portal, CONNECT_DEADLINE) {
        return Ok(Finding::problem(
            check,
            format!("not reached within {CONNECT_DEADLINE:?}: {error}"),
            format!(
                "is the appliance up? ping {}; ip route get {}; is port {} open in between?",
                portal.ip(),
                portal.ip(),
                portal.port()
            ),
        ));
    }
    let nqn: Nqn = DISCOVERY.parse().map_err(|e| Error::Invalid(format!("{e}")))?;
    // A fresh one: asking with a volume's own would make it look like a second connection.
    Ok(match refusal::ask(portal, &nqn, &HostNqn::random()) {
        Ok(_) => Finding::ok(check, "reached, and it speaks NVMe/TCP"),
        Err(error) => Finding::problem(
            check,
            format!("something answers there that does not speak NVMe/TCP: {error}"),
            "check the address and port of the volume's portal (StorageClass nvmeAddress, nvmePort)",
        ),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::net::TcpListener;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn addresses_as_the_kernel_prints_them() {
        let portal = |text| parse_address(text).map(|p| p.to_string());
        assert_eq!(
            portal("traddr=10.0.0.2,trsvcid=4420,src_addr=10.0.0.1").as_deref(),
            Some("10.0.0.2:4420")
        );
        assert_eq!(portal("traddr=fd00::1,trsvcid=4420").as_deref(), Some("[fd00::1]:4420"));
        assert_eq!(portal("traddr=nn-0x10:pn-0x20"), None);
    }

    #[test]
    fn what_answers_must_speak_nvme() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let portal = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let _ = stream.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
            }
        });
        let finding = ask(portal).unwrap();
        assert_eq!(finding.verdict, Verdict::Problem);
        assert!(finding.seen.contains("does not speak"), "{}", finding.seen);
    }

    #[test]
    fn a_closed_port_is_not_reached() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let finding = ask(closed).unwrap();
        assert!(finding.seen.contains("not reached"), "{}", finding.seen);
    }
}
