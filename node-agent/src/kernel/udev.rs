//! Device events, as wake-up calls.
//!
//! Events say that something happened, sysfs says what: the loss of a link emits none,
//! and the socket may overflow without a word. So an event only makes the next scan come
//! at once, and scans come every second anyway.
//!
//! The types of tokio-udev are not `Send`: they live on one thread of their own.

use std::io;
use std::thread;
use std::time::Duration;

use futures::StreamExt;
use tokio_udev::{AsyncMonitorSocket, MonitorBuilder};
use tracing::{debug, warn};

use super::process::hurry_this_thread;

/// Pause before listening again after the socket failed.
const RETRY: Duration = Duration::from_secs(5);
/// Room for the events of a few hundred devices that come and go at once.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Why somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Something happened to a device.
    Event,
    /// Listening failed, so anything may have happened.
    Gap,
}

/// Calls `wake` for every event on an NVMe controller or block device, for ever.
///
/// # Errors
/// If the thread cannot be started.
pub fn listen(wake: impl Fn(Sign) + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("udev".into()).spawn(move || {
        hurry_this_thread();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                warn!(%error, "no udev events: sessions are checked once a second only");
                return;
            }
        };
        loop {
            if let Err(error) = runtime.block_on(stream(&wake)) {
                warn!(%error, "udev events failed; listening again");
            }
            wake(Sign::Gap);
            thread::sleep(RETRY);
        }
    })?;
    Ok(())
}

async fn stream(wake: &impl Fn(Sign)) -> io::Result<()> {
    // The kernel's own events: those that udevd sends come after its rules have run, which
    // takes longer than a reconnect, and not at all while it is stopped.
    let monitor = MonitorBuilder::new_kernel()?
        .match_subsystem("nvme")?
        .match_subsystem("nvme-subsystem")?
        .match_subsystem("block")?
        .listen()?;
    // Lost events are invisible (tokio-udev swallows ENOBUFS), so make losing them rare.
    if let Err(error) = nix::sys::socket::setsockopt(
        &monitor_fd(&monitor)?,
        nix::sys::socket::sockopt::RcvBufForce,
        &RECEIVE_BUFFER,
    ) {
        debug!(%error, "the udev socket keeps its default buffer");
    }
    let mut events = AsyncMonitorSocket::new(monitor)?;
    while let Some(event) = events.next().await {
        let event = event?;
        debug!(kind = %event.event_type(), device = ?event.sysname(), "udev");
        wake(Sign::Event);
    }
    Ok(())
}

/// A descriptor of the monitor's socket for the duration of one call.
fn monitor_fd(monitor: &tokio_udev::MonitorSocket) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsRawFd;
    nix::unistd::dup(borrow(monitor.as_raw_fd())).map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: std::os::fd::RawFd) -> std::os::fd::BorrowedFd<'a> {
    // SAFETY: called with the descriptor of a monitor that outlives the borrow, which is
    // duplicated at once.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
