//! Looks at the kernel once a second, and at once when something happened.
//!
//! One look serves all volumes. It runs on a thread of its own, since sysfs and
//! device-mapper are read with blocking calls.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rds_csi_proto::ids::VolumeId;
use tokio::sync::watch;
use tracing::{trace, warn};

use crate::error::{Error, Result};
use crate::kernel::dm::DeviceMapper;
use crate::kernel::iostat;
use crate::kernel::known::Known;
use crate::kernel::process::hurry_this_thread;
use crate::kernel::sysfs::Controller;
use crate::metrics::Metrics;

use super::beat::Beat;
use super::machine::ShieldSeen;
use super::shield;
use super::stalls::{Io, Stalls};

/// The loss of a link emits no uevent: this is how soon it is noticed.
const EVERY: Duration = Duration::from_secs(1);
/// A thread that is longer in one look than this is stuck in the kernel. A look that fails is
/// no reason to restart the agent, that is one.
const LONGEST: Duration = Duration::from_secs(10);
/// Events come in bursts; one look a burst is enough.
const SETTLE: Duration = Duration::from_millis(10);

/// One look at everything.
#[derive(Debug)]
pub struct Sweep {
    /// When it began.
    pub taken_at: Instant,
    /// All NVMe/TCP controllers.
    pub controllers: Vec<Controller>,
    /// All shields; with the error where one could not be read.
    pub shields: HashMap<VolumeId, Result<ShieldSeen>>,
    /// How I/O on each shield fares, where the kernel tells.
    pub io: HashMap<VolumeId, Io>,
}

impl Sweep {
    /// Requests so far that may have changed what a volume holds, if that is known.
    pub(super) fn changes(&self, volume: &VolumeId) -> Option<u64> {
        self.io.get(volume).map(|io| io.changes)
    }
}

/// Makes the next look come at once. Cheap to clone.
#[derive(Clone)]
pub struct Waker(SyncSender<()>);

impl Waker {
    /// Asks for a look now.
    pub fn wake(&self) {
        // Full means that one is asked for already.
        let _ = self.0.try_send(());
    }
}

/// What [`start`] gives: the newest look, and the waker.
pub type Started = (watch::Receiver<Option<Arc<Sweep>>>, Waker);

/// Starts looking. The channel holds the newest look; a look that failed is not shown,
/// since unknown is not absent.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(metrics: Arc<Metrics>, beat: Beat) -> Result<Started> {
    let (show, shown) = watch::channel(None);
    let (wake, woken) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("sweeper".into())
        .spawn(move || {
            hurry_this_thread();
            let mut eyes = Eyes::new();
            loop {
                beat.busy(LONGEST);
                let began = Instant::now();
                let sweep = eyes.sweep(&metrics);
                metrics.swept(began.elapsed(), sweep.is_ok());
                match sweep {
                    Ok(sweep) => {
                        if show.send(Some(Arc::new(sweep))).is_err() {
                            return beat.end();
                        }
                    }
                    Err(error) => {
                        warn!(%error, "the kernel cannot be looked at; nothing is decided until it can");
                        eyes.dm = None;
                    }
                }
                match woken.recv_timeout(EVERY) {
                    Ok(()) => thread::sleep(SETTLE),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return beat.end(),
                }
            }
        })
        .map_err(Error::kernel("start", "the sweeper thread"))?;
    Ok((shown, Waker(wake)))
}

/// What is kept from one look to the next.
struct Eyes {
    dm: Option<DeviceMapper>,
    known: Known,
    stats: iostat::Reader,
    stalls: Stalls,
}

impl Eyes {
    fn new() -> Self {
        Self {
            dm: None,
            known: Known::default(),
            stats: iostat::Reader::default(),
            stalls: Stalls::new(Instant::now()),
        }
    }

    fn sweep(&mut self, metrics: &Metrics) -> Result<Sweep> {
        let taken_at = Instant::now();
        let dm = match &mut self.dm {
            Some(dm) => dm,
            none => none.insert(DeviceMapper::open()?),
        };
        // Shields first: a path that is mapped between the two reads then shows as a
        // namespace that is not mapped yet, and mapping it again does no harm.
        let shields: HashMap<_, _> = shield::list(dm)?.into_iter().collect();
        let of_shields = taken_at.elapsed();
        let controllers = self.known.controllers()?;
        trace!(?of_shields, all = ?taken_at.elapsed(), "looked at the kernel");
        let ended = |lasted| metrics.stall_ended(lasted);
        let stats = &mut self.stats;
        let io = self.stalls.look(&shields, |device| stats.read(device), Instant::now(), ended);
        let seen = |device| shields.values().flatten().any(|s| s.number == device);
        self.stats.keep(seen);
        Ok(Sweep { taken_at, controllers, shields, io })
    }
}
