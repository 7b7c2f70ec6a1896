//! Looks at the kernel once a second, and at once when something happened.
//!
//! One look serves all volumes. It runs on a thread of its own, since sysfs and
//! device-mapper are read with blocking calls.

use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rds_csi_proto::ids::VolumeId;
use tokio::sync::watch;
use tracing::{trace, warn};

use crate::error::{Error, Result};
use crate::kernel::dm::DeviceMapper;
use crate::kernel::sysfs::{self, Controller};

use super::machine::ShieldSeen;
use super::shield;

/// The loss of a link emits no uevent: this is how soon it is noticed.
const EVERY: Duration = Duration::from_secs(1);
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

/// Whether the thread still goes round. A look that fails is no reason to restart the
/// agent, a thread that is stuck in one is.
#[derive(Clone)]
pub struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    /// How long the present round has lasted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// What [`start`] gives: the newest look, the waker, the pulse.
pub type Started = (watch::Receiver<Option<Arc<Sweep>>>, Waker, Pulse);

/// Starts looking. The channel holds the newest look; a look that failed is not shown,
/// since unknown is not absent.
///
/// # Errors
/// If the thread cannot be started.
pub fn start() -> Result<Started> {
    let (show, shown) = watch::channel(None);
    let (wake, woken) = mpsc::sync_channel(1);
    let pulse = Pulse(Arc::new(Mutex::new(Instant::now())));
    let beating = pulse.clone();
    thread::Builder::new()
        .name("sweeper".into())
        .spawn(move || {
            let mut dm = None;
            loop {
                beating.beat();
                match sweep(&mut dm) {
                    Ok(sweep) => {
                        if show.send(Some(Arc::new(sweep))).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        warn!(%error, "the kernel cannot be looked at; nothing is decided until it can");
                        dm = None;
                    }
                }
                match woken.recv_timeout(EVERY) {
                    Ok(()) => thread::sleep(SETTLE),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })
        .map_err(Error::kernel("start", "the sweeper thread"))?;
    Ok((shown, Waker(wake), pulse))
}

fn sweep(dm: &mut Option<DeviceMapper>) -> Result<Sweep> {
    let taken_at = Instant::now();
    let dm = match dm {
        Some(dm) => dm,
        None => dm.insert(DeviceMapper::open()?),
    };
    // Shields first: a path that is mapped between the two reads then shows as a
    // namespace that is not mapped yet, and mapping it again does no harm.
    let shields = shield::list(dm)?.into_iter().collect();
    let of_shields = taken_at.elapsed();
    let controllers = sysfs::controllers()?;
    trace!(?of_shields, all = ?taken_at.elapsed(), "looked at the kernel");
    Ok(Sweep { taken_at, controllers, shields })
}
