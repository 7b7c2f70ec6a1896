//! `doctor`: looks at everything on this host that a volume depends on, with or without a
//! daemon, and says of each thing what was seen and how to mend it.
//!
//! First [`context`] collects what takes asking: the daemon, and tools of the host, each with
//! a deadline. Then the checks, which only read, run beside each other, each on a thread of
//! its own that can be abandoned. What could not be found out is `unknown`, never `ok`.
//!
//! - [`modules`], [`mapper`], [`clock`]: the kernel;
//! - [`udev`], [`multipathd`], [`lvm`]: who else lays hands on block devices;
//! - [`agent`], [`permissions`], [`mounts`]: the daemon, its files, what it shares with kubelet;
//! - [`portals`], [`volumes`], [`leftovers`]: the volumes, and what nobody looks after;
//! - [`report`] prints it all.

mod agent;
mod clock;
mod context;
mod finding;
mod leftovers;
mod lvm;
mod mapper;
mod modules;
mod mounts;
mod multipathd;
mod permissions;
mod portals;
pub(crate) mod report;
mod systemd;
mod udev;
mod volumes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::kernel::blocking;

use context::Context;
pub(crate) use finding::{Finding, Verdict};

/// For one check. Each reads memory-backed files and makes ioctls that wait for nothing; the
/// portals' have smaller deadlines of their own.
const CHECK_DEADLINE: Duration = Duration::from_secs(8);

/// NQNs of volumes, as in the udev rules. Anything else on the same appliance, a diskless
/// host's root for one, is not looked at.
const VOLUME_NQNS: &str = "nqn.2000-02.com.mikrotik:pvc-";

/// What to look at.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The daemon's socket.
    pub(crate) socket: PathBuf,
    /// The daemon's directory.
    pub(crate) state_dir: PathBuf,
    /// Portals to try besides those of attached volumes.
    pub(crate) portals: Vec<SocketAddr>,
}

type Check = fn(&Context) -> Result<Vec<Finding>>;

/// In the order of the report.
const CHECKS: [(&str, Check); 14] = [
    ("kernel", modules::check),
    ("device-mapper", mapper::check),
    ("clock", clock::check),
    ("udev", udev::check),
    ("multipathd", multipathd::check),
    ("lvm", lvm::check),
    ("agent", agent::check),
    ("systemd", systemd::check),
    ("permissions", permissions::check),
    ("mounts", mounts::check),
    ("portals", portals::check),
    ("volumes", volumes::check),
    ("leftovers", leftovers::check),
    ("journal", leftovers::journals),
];

/// Makes all checks.
pub(crate) async fn examine(subject: Subject) -> Vec<Finding> {
    let context = Arc::new(Context::gather(subject).await);
    let checks = CHECKS.map(|(name, check)| {
        let context = context.clone();
        async move {
            let what = format!("the check of {name}");
            match blocking(what, CHECK_DEADLINE, move || check(&context)).await {
                Ok(findings) => findings,
                Err(error) => vec![Finding::unknown(name, error)],
            }
        }
    });
    futures::future::join_all(checks).await.into_iter().flatten().collect()
}
