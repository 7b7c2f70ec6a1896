//! Connecting and disconnecting controllers, as nvme-cli does it but without it.
//!
//! `/dev/nvme-fabrics` takes one line of options and answers `instance=N,cntlid=M` once
//! the controller is live. The write can sleep uninterruptibly, so callers run it on a
//! thread that may be abandoned, and read its outcome back from sysfs.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;

use tracing::debug;

use crate::error::{Error, Result};
use crate::session::SessionSpec;

const FABRICS: &str = "/dev/nvme-fabrics";

/// Seconds after which a lost controller gives its I/O back to the shield. With a shield
/// exactly one layer may queue, and it is not this one.
const FAST_IO_FAIL_SHIELDED: i32 = 0;

/// The option line for a session.
#[must_use]
pub fn options(spec: &SessionSpec) -> String {
    let mut line = format!(
        "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={},ctrl_loss_tmo={},\
         reconnect_delay={},keep_alive_tmo={},nr_io_queues={}",
        spec.portal.address(),
        spec.portal.port(),
        spec.nqn,
        spec.host_nqn,
        spec.host_nqn.host_id(),
        spec.ctrl_loss_tmo,
        spec.reconnect_delay,
        spec.keep_alive_tmo,
        spec.nr_io_queues,
    );
    if spec.shield {
        line.push_str(&format!(",fast_io_fail_tmo={FAST_IO_FAIL_SHIELDED}"));
    }
    line
}

/// Connects a controller and returns its instance number.
///
/// # Errors
/// Whatever the kernel answers; `EALREADY` means that there is one already.
pub fn connect(spec: &SessionSpec) -> Result<u32> {
    let target = format!("{} at {}", spec.nqn, spec.portal);
    let mut device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(FABRICS)
        .map_err(Error::kernel("open (is the module nvme_tcp loaded?)", FABRICS))?;
    let line = options(spec);
    debug!(options = %line, "connecting");
    device.write_all(line.as_bytes()).map_err(Error::kernel("connect to", &target))?;
    let mut answer = [0u8; 256];
    let n = device
        .read(&mut answer)
        .map_err(Error::kernel("read the outcome of connecting to", &target))?;
    let answer = String::from_utf8_lossy(answer.get(..n).unwrap_or_default()).into_owned();
    parse_instance(&answer).ok_or_else(|| {
        Error::Unavailable(format!("connecting to {target}: the kernel answered {answer:?}"))
    })
}

fn parse_instance(answer: &str) -> Option<u32> {
    answer.trim().split(',').find_map(|part| part.strip_prefix("instance=")?.parse().ok())
}

/// Asks the kernel to look for the controller's namespaces again.
///
/// # Errors
/// If the controller is gone.
pub fn rescan(controller: &str) -> Result<()> {
    write_attribute(controller, "rescan_controller", "rescan")
}

/// Deletes a controller. I/O in it fails up to the shield. Returns when it is gone, which
/// can take as long as the target needs to time out: abandon the call, do not hurry it.
///
/// # Errors
/// If the controller is gone already.
pub fn delete(controller: &str) -> Result<()> {
    write_attribute(controller, "delete_controller", "delete")
}

fn write_attribute(controller: &str, attribute: &str, action: &'static str) -> Result<()> {
    let path = Path::new("/sys/class/nvme").join(controller).join(attribute);
    std::fs::write(&path, "1").map_err(Error::kernel(action, controller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_is_read() {
        assert_eq!(parse_instance("instance=3,cntlid=7\n"), Some(3));
        assert_eq!(parse_instance("instance=-1,cntlid=0\n"), None);
        assert_eq!(parse_instance(""), None);
    }
}
