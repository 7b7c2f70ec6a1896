//! Who still uses a volume, told in a way that a person can act on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::error::{Error, Result};
use crate::kernel::processes::{self, Holder, Search};
use crate::kernel::{DeviceNumber, blocking};

/// Looking through /proc takes milliseconds; a process that is stuck may hold it up for
/// ever. The kernel refuses what the scan missed.
const SCAN: Duration = Duration::from_secs(5);
/// How long udev may look at a device; its rules take a fraction of this.
const UDEV: Duration = Duration::from_secs(4);
const UDEV_PAUSE: Duration = Duration::from_millis(200);
/// Enough to see who it is.
const SHOWN: usize = 10;

/// Everybody who is found within the time.
pub(crate) async fn holders(device: DeviceNumber, expected_mount: Option<PathBuf>) -> Vec<Holder> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&found);
    let search = Search { device, expected_mount };
    // Not under the volume's lock: a scan that hangs changes nothing and may be left alone.
    let scan = blocking("looking for users of the volume", SCAN, move || {
        processes::scan(&search, |holder| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(holder);
        })
    });
    if let Err(error) = scan.await {
        warn!(%device, %error, "the search for users is incomplete; what it missed is left to the kernel's own check");
    }
    let holders = found.lock().unwrap_or_else(PoisonError::into_inner);
    holders.clone()
}

/// Refuses while there is anybody, but gives udev the moment that it needs: it reads every
/// device that somebody has closed after writing.
pub(crate) async fn expect_unused(
    device: DeviceNumber,
    expected_mount: Option<PathBuf>,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        let holders = holders(device, expected_mount.clone()).await;
        if holders.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > UDEV || !holders.iter().all(is_udev) {
            return Err(Error::Precondition(format!(
                "the volume is still in use: {}; end that use first",
                list(&holders)
            )));
        }
        tokio::time::sleep(UDEV_PAUSE).await;
    }
}

pub(super) fn is_udev(holder: &Holder) -> bool {
    matches!(holder.command.as_str(), "(udev-worker)" | "systemd-udevd" | "udevd")
}

/// Why an unmount was refused.
pub(crate) async fn in_use_at(path: &Path, device: Option<DeviceNumber>) -> Error {
    let who = match device {
        Some(device) => list(&holders(device, None).await),
        None => "unknown processes".to_owned(),
    };
    Error::Precondition(format!(
        "{} cannot be unmounted because it is in use; users of the volume: {who}",
        path.display()
    ))
}

pub(super) fn list(holders: &[Holder]) -> String {
    let mut text: Vec<String> = holders.iter().take(SHOWN).map(ToString::to_string).collect();
    if holders.len() > SHOWN {
        text.push(format!("and {} more", holders.len() - SHOWN));
    }
    text.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cgroup::Container;

    #[test]
    fn a_long_list_is_cut() {
        let container = Container { pod: Some("3f1e".into()), id: None };
        let holds = "open file /x".to_owned();
        let mut one = Holder { pid: Some(7), command: "tail".into(), container, holds };
        assert_eq!(list(std::slice::from_ref(&one)), "pid 7 (tail, pod 3f1e): open file /x");
        one.container = Container::default();
        assert_eq!(list(std::slice::from_ref(&one)), "pid 7 (tail): open file /x");
        assert!(list(&vec![one; 15]).ends_with("and 5 more"));
    }
}
