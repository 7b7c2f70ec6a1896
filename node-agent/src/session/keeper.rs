//! All sessions of this host.

mod adoption;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rds_csi_proto::agent::State;
use rds_csi_proto::ids::VolumeId;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::crash;
use crate::error::{Error, Result};
use crate::journal::{Journal, Table};
use crate::kernel::udev::{self, Sign};
use crate::kernel::{blocking, sysfs};
use crate::metrics::Metrics;
use crate::notices::Notices;

use super::answerers::Answerers;
use super::beat::Board;
use super::content::Samples;
use super::copy::Copies;
use super::machine::{Config, Event, Machine};
use super::portal::Portals;
use super::record::{Phase, SessionRecord, TransitionRecord};
use super::sweeper::{self, Sweep, Waker};
use super::task::{Command, Shared, Task};
use super::{Attached, Content, SessionSpec, SessionView};

/// Volumes that connect at the same time.
const CONNECTS: usize = 8;
/// Transitions that a slow watcher may lag behind.
const WATCH_LAG: usize = 1024;
/// Before a session whose task has failed is taken over by another: whatever made it fail may
/// still be there.
const REVIVE_AFTER: Duration = Duration::from_secs(1);
const JOURNAL_DEADLINE: Duration = Duration::from_secs(30);
/// A few hundred small reads and ioctls.
const LOOK_DEADLINE: Duration = Duration::from_secs(20);

/// The sessions. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Shared,
    boot_id: String,
    /// Held while sessions are begun: what the journal says and what runs differ then.
    beginning: tokio::sync::Mutex<()>,
    volumes: Mutex<HashMap<VolumeId, Handle>>,
    /// Until when writes of sessions that were taken down without a connection may still
    /// reach the disk.
    lingering: Mutex<HashMap<VolumeId, Instant>>,
}

#[derive(Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<SessionView>,
}

impl Keeper {
    /// Starts looking at the kernel, and takes over what the journal says was attached in
    /// this boot. What was attached in an earlier one is history: the volume may live on
    /// another node by now.
    ///
    /// # Errors
    /// If the kernel cannot be asked for its boot id, or a thread cannot be started.
    pub async fn start(
        journal: Journal,
        copies: Copies,
        metrics: Arc<Metrics>,
        board: Board,
    ) -> Result<Self> {
        let boot_id = sysfs::boot_id()?;
        let (sweeps, waker) = sweeper::start(metrics.clone(), board.join("the sweeper"))?;
        listen(waker.clone(), metrics.clone())?;
        let (transitions, _) = broadcast::channel(WATCH_LAG);
        let shared = Shared {
            journal,
            copies,
            sweeps,
            waker,
            portals: Portals::default(),
            connects: Arc::new(Semaphore::new(CONNECTS)),
            answerers: Answerers::new(metrics.clone()),
            transitions,
            epoch: Instant::now(),
            metrics,
            notices: Notices::default(),
            board,
        };
        remember_transitions(&shared)?;
        let keeper = Self {
            inner: Arc::new(Inner {
                shared,
                boot_id,
                beginning: tokio::sync::Mutex::default(),
                volumes: Mutex::default(),
                lingering: Mutex::default(),
            }),
        };
        keeper.adopt().await;
        tokio::spawn(keeper.clone().adopt_when_the_journal_is_back());
        Ok(keeper)
    }

    async fn write(&self, record: &SessionRecord) -> Result<()> {
        self.inner.shared.copies.write(record);
        crash::point("session.copied");
        let (journal, record) = (self.inner.shared.journal.clone(), record.clone());
        blocking("write the journal", JOURNAL_DEADLINE, move || {
            journal.put(Table::Sessions, record.spec.volume.as_str(), &record)
        })
        .await
    }

    /// Connects a volume and returns its device when it is usable. Repeating it for the
    /// same attachment finds the same device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the target cannot be reached in time (the session goes
    /// on trying), [`Error::Precondition`] when it is blocked or fenced or when another
    /// attachment of the volume is still in use here.
    pub async fn attach(&self, spec: SessionSpec, deadline: Duration) -> Result<Attached> {
        let until = Instant::now() + deadline;
        let volume = spec.volume.clone();
        let known = self.handle(&volume);
        let stale = known.as_ref().is_some_and(|h| {
            let view = h.view.borrow();
            let old = &view.spec;
            // A take-down that was cut short is finished before anything is built again.
            view.state == State::Draining
                || old.host_nqn != spec.host_nqn
                || old.nqn != spec.nqn
                || old.portal != spec.portal
                || old.arrival != spec.arrival
        });
        let handle = match known {
            Some(handle) if !stale => handle,
            known => {
                if known.is_some() {
                    // An earlier attachment's session: worth nothing, unless something
                    // still uses its device; then this fails and says so.
                    info!(%volume, "an earlier attachment's session is taken down first");
                    self.detach(&volume, deadline).await?;
                }
                self.refuse_what_could_not_come_back(&spec)?;
                self.begin(spec).await?
            }
        };
        let mut view = handle.view.clone();
        let left = until.saturating_duration_since(Instant::now());
        let waited = tokio::time::timeout(
            left,
            view.wait_for(|v| {
                matches!(v.state, State::Blocked | State::Fenced)
                    || (v.state == State::Live && v.device.is_some())
            }),
        )
        .await;
        let view = match waited {
            Ok(Ok(view)) => view.clone(),
            Ok(Err(_)) => {
                return Err(Error::Unavailable(format!(
                    "the session of {volume} ended; try again"
                )));
            }
            Err(_) => {
                let last = handle.view.borrow().reason.clone();
                return Err(Error::Unavailable(format!(
                    "volume {volume} is not connected after {deadline:?}: {last}; the agent goes on trying"
                )));
            }
        };
        match (view.state, view.device) {
            (State::Live, Some(device)) => Ok(device),
            _ => Err(Error::Precondition(format!("volume {volume}: {}", view.reason))),
        }
    }

    /// Its first outage would be its last.
    fn refuse_what_could_not_come_back(&self, spec: &SessionSpec) -> Result<()> {
        if spec.arrival.is_none() || self.answerers().is_anybody_there() {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "volume {} may be on two nodes at once, so after each loss of its session this agent \
             has to ask Kubernetes whether the node still has it; there is no shim that could: \
             see that the csi-shim's pod runs on this node, without --no-kubernetes",
            spec.volume
        )))
    }

    async fn begin(&self, spec: SessionSpec) -> Result<Handle> {
        let _beginning = self.inner.beginning.lock().await;
        let record = SessionRecord {
            spec,
            boot_id: self.inner.boot_id.clone(),
            phase: Phase::Attached,
            content: Content::Unknown,
            samples: Samples::default(),
        };
        self.write(&record).await?;
        crash::point("session.begun");
        Ok(self.spawn(record))
    }

    fn spawn(&self, record: SessionRecord) -> Handle {
        let shared = self.inner.shared.clone();
        let spec = record.spec.clone();
        let volume = spec.volume.clone();
        let config = Config {
            host_nqn: spec.host_nqn.to_string(),
            shield: spec.shield,
            keep_alive: u64::from(spec.keep_alive_tmo) * 1000,
            io_timeout: (spec.io_timeout_secs > 0).then_some(spec.io_timeout_secs * 1000),
            jitter: u64::from(crc32fast::hash(volume.as_str().as_bytes())),
            shared: spec.arrival.is_some(),
            gate_after: spec.reattach_check_secs.saturating_mul(1000),
        };
        let mut machine = Machine::new(config, shared.millis(Instant::now()));
        let lingering = self.inner.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = lingering.get(&volume) {
            machine.inherit_writes(shared.millis(*until));
        }
        drop(lingering);
        if record.phase == Phase::Detaching {
            machine.step(Event::Drain { begun: true }, 0);
        }
        let (command, commands) = mpsc::channel(16);
        let (show, view) = watch::channel(SessionView {
            spec,
            state: machine.state(),
            since_unix_ms: crate::journal::now_unix_ms(),
            reason: machine.reason().to_owned(),
            device: None,
            namespace: None,
            controller: None,
            failing_io: false,
            outages: 0,
            last_outage_ms: 0,
            attempts: 0,
        });
        let handle = Handle { commands: command, view };
        self.lock().insert(volume.clone(), handle.clone());
        let task = tokio::spawn(Task::new(shared, record, machine, commands, show).run());
        tokio::spawn(self.clone().supervise(volume, handle.clone(), task));
        handle
    }

    /// Lets go of a handle, unless another session has come in its place.
    fn forget(&self, volume: &VolumeId, handle: &Handle) {
        let mut volumes = self.lock();
        if volumes.get(volume).is_some_and(|h| h.commands.same_channel(&handle.commands)) {
            volumes.remove(volume);
        }
    }

    /// A session as it stands; `None` if the volume is not attached here.
    #[must_use]
    pub fn view(&self, volume: &VolumeId) -> Option<SessionView> {
        self.handle(volume).map(|h| h.view.borrow().clone())
    }

    /// All sessions, by volume id.
    #[must_use]
    pub fn views(&self) -> Vec<SessionView> {
        let mut views: Vec<_> = self.lock().values().map(|h| h.view.borrow().clone()).collect();
        views.sort_by(|a, b| a.spec.volume.cmp(&b.spec.volume));
        views
    }

    /// What the content check is to compare with from now on.
    ///
    /// # Errors
    /// If it could not be written down.
    pub async fn set_content(&self, volume: &VolumeId, content: Content) -> Result<()> {
        self.ask(volume, |reply| Command::SetContent(content, reply)).await
    }

    /// Removes the shield without force, deletes the controller, forgets the session.
    ///
    /// # Errors
    /// [`Error::Precondition`] while the device is open: then the session goes on.
    pub async fn detach(&self, volume: &VolumeId, deadline: Duration) -> Result<()> {
        let Some(handle) = self.handle(volume) else { return Ok(()) };
        let until = Instant::now() + deadline;
        let lingering = self.ask(volume, |reply| Command::Detach(until, reply)).await?;
        let mut all = self.inner.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, until| *until > Instant::now());
        all.extend(lingering.map(|until| (volume.clone(), until)));
        drop(all);
        self.forget(volume, &handle);
        Ok(())
    }

    /// Fails waiting I/O instead of queueing it, until a path is given back.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn fail(&self, volume: &VolumeId) -> Result<()> {
        self.ask(volume, Command::Fail).await
    }

    /// Tries to reconnect now.
    ///
    /// # Errors
    /// If the volume is not attached here, or is fenced.
    pub async fn reconnect(&self, volume: &VolumeId) -> Result<String> {
        self.ask(volume, Command::Reconnect).await
    }

    /// Asks the kernel to look for the volume's namespace again.
    ///
    /// # Errors
    /// If the volume is not attached here, or has no live controller.
    pub async fn rescan(&self, volume: &VolumeId) -> Result<String> {
        self.ask(volume, Command::Rescan).await
    }

    /// What people have to hear of.
    #[must_use]
    pub fn notices(&self) -> &Notices {
        &self.inner.shared.notices
    }

    /// Each transition of each session as it happens.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<TransitionRecord> {
        self.inner.shared.transitions.subscribe()
    }

    /// A volume's transitions, oldest first.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn history(&self, volume: &VolumeId) -> Result<Vec<TransitionRecord>> {
        let (journal, volume) = (self.inner.shared.journal.clone(), volume.clone());
        blocking("read the journal", JOURNAL_DEADLINE, move || journal.history(volume.as_str()))
            .await
    }

    /// The newest look at the kernel, once there is one.
    #[must_use]
    pub fn sweep(&self) -> Option<Arc<Sweep>> {
        self.inner.shared.sweeps.borrow().clone()
    }

    /// Volumes that are connecting at this moment.
    #[must_use]
    pub fn connects_under_way(&self) -> usize {
        CONNECTS.saturating_sub(self.inner.shared.connects.available_permits())
    }

    /// Who can be asked for attachments.
    #[must_use]
    pub fn answerers(&self) -> &Answerers {
        &self.inner.shared.answerers
    }

    /// This boot's identity.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.inner.boot_id
    }

    async fn ask<T>(
        &self,
        volume: &VolumeId,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let absent = || Error::NotFound(format!("volume {volume} is not attached to this node"));
        let handle = self.handle(volume).ok_or_else(absent)?;
        let (reply, answer) = oneshot::channel();
        // Not the same as absent: what its task was doing may be half done.
        let ended = || Error::Unavailable(format!("the session of {volume} has ended; try again"));
        handle.commands.send(command(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    fn handle(&self, volume: &VolumeId) -> Option<Handle> {
        self.lock().get(volume).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Handle>> {
        // Nothing panics while holding it, and a map of handles is whole at any moment.
        self.inner.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has events on devices wake the sweeper.
fn listen(waker: Waker, metrics: Arc<Metrics>) -> Result<()> {
    udev::listen(move |sign| {
        match sign {
            Sign::Event => metrics.udev_event(),
            Sign::Gap => metrics.udev_restart(),
        }
        waker.wake();
    })
    .map_err(Error::kernel("start", "the udev thread"))
}

/// Writes the history, off the sessions' way: it explains, and nothing waits for it.
fn remember_transitions(shared: &Shared) -> Result<()> {
    let mut transitions = shared.transitions.subscribe();
    let journal = shared.journal.clone();
    std::thread::Builder::new()
        .name("history".into())
        .spawn(move || {
            loop {
                match transitions.blocking_recv() {
                    Ok(entry) => {
                        let kept =
                            journal.remember(entry.volume.as_str(), entry.at_unix_ms, &entry);
                        if let Err(error) = kept {
                            warn!(%error, "the history lacks a transition");
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(n)) => {
                        warn!(n, "the history lacks transitions")
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        })
        .map_err(Error::kernel("start", "the history thread"))?;
    Ok(())
}
