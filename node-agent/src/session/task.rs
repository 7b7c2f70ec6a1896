//! The task that owns one volume's session: it feeds the machine, carries out its
//! actions one at a time, and answers commands in between.

mod take_down;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rds_csi_proto::agent::State;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::error::{Error, Result};
use crate::journal::{Journal, Table, now_unix_ms};
use crate::kernel::blocking;
use crate::kernel::dm::DeviceMapper;
use crate::kernel::fabrics::Held;
use crate::kernel::registry::Registration;
use crate::metrics::Metrics;
use crate::notices::Notices;

use super::actions::{self, Context};
use super::answerers::Answerers;
use super::beat::{Beat, Board};
use super::content::{self, Samples};
use super::copy::Copies;
use super::machine::{Action, Event, Machine, Millis, Observation, Outcome, PortalSeen};
use super::portal::{Portals, Watched};
use super::record::{SessionRecord, TransitionRecord, state_name};
use super::sweeper::{Sweep, Waker};
use super::telemetry::Telemetry;
use super::{Attached, Content, SessionView, shield};

/// How often a raw volume is sampled while it is healthy, and how often that is written
/// down: a stale sample only weakens the check after a crash of the agent.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
const SAMPLE_JOURNAL_EVERY: Duration = Duration::from_secs(60);
/// Sixty-four small reads; a device that is slower than this is in trouble, and another time
/// will do.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(10);
/// sled's own work plus an fsync on a slow disk.
const JOURNAL_DEADLINE: Duration = Duration::from_secs(30);
/// A word to the kernel that it answers at once.
const WORD_DEADLINE: Duration = Duration::from_secs(5);
/// Nothing to wait for: sweeps come every second anyway.
const IDLE: Millis = 1_000;

/// What can be asked of a session.
pub(super) enum Command {
    Reconnect(oneshot::Sender<Result<String>>),
    Rescan(oneshot::Sender<Result<String>>),
    Fail(oneshot::Sender<Result<()>>),
    /// Written down again, since the journal may lack it.
    WriteRecord(oneshot::Sender<Result<()>>),
    SetContent(Content, oneshot::Sender<Result<()>>),
    /// Answered with the moment until which its writes may still reach the disk.
    Detach(Instant, oneshot::Sender<Result<Option<Instant>>>),
}

/// What all tasks share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) journal: Journal,
    pub(super) copies: Copies,
    pub(super) sweeps: watch::Receiver<Option<Arc<Sweep>>>,
    pub(super) waker: Waker,
    pub(super) portals: Portals,
    pub(super) connects: Arc<tokio::sync::Semaphore>,
    pub(super) answerers: Answerers,
    pub(super) transitions: broadcast::Sender<TransitionRecord>,
    /// The zero of the machines' clock.
    pub(super) epoch: Instant,
    pub(super) metrics: Arc<Metrics>,
    pub(super) notices: Notices,
    pub(super) board: Board,
}

impl Shared {
    pub(super) fn millis(&self, at: Instant) -> Millis {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }
}

/// One volume's session.
pub(super) struct Task {
    pub(super) shared: Shared,
    pub(super) record: SessionRecord,
    pub(super) machine: Machine,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) show: watch::Sender<SessionView>,
    outcome: Option<oneshot::Receiver<Outcome>>,
    waiting_fail: Vec<oneshot::Sender<Result<()>>>,
    sampled_at: Option<Instant>,
    /// Writes to the shield so far, and how many there had been at the last sample.
    changes: Option<u64>,
    sampled_changes: Option<u64>,
    sample_journalled_at: Option<Instant>,
    sampling: Option<oneshot::Receiver<Samples>>,
    telemetry: Telemetry,
    beat: Beat,
    registration: Registration,
    /// The portal, while the session is lost.
    portal: Option<(Arc<Watched>, watch::Receiver<Option<PortalSeen>>)>,
}

impl Task {
    pub(super) fn new(
        shared: Shared,
        record: SessionRecord,
        machine: Machine,
        commands: mpsc::Receiver<Command>,
        show: watch::Sender<SessionView>,
    ) -> Self {
        let (metrics, notices) = (shared.metrics.clone(), shared.notices.clone());
        let telemetry = Telemetry::new(metrics, notices, &record.spec, &machine);
        let beat = shared.board.join(record.spec.volume.as_str());
        Self {
            telemetry,
            beat,
            shared,
            record,
            machine,
            commands,
            show,
            outcome: None,
            waiting_fail: Vec::new(),
            sampled_at: None,
            changes: None,
            sampled_changes: None,
            sample_journalled_at: None,
            sampling: None,
            registration: Registration::default(),
            portal: None,
        }
    }

    /// Runs until the volume is detached or the agent ends.
    pub(super) async fn run(mut self) {
        self.go_round().await;
        // Not on a panic: then nobody looks after the volume, and the watchdog should know.
        self.beat.end();
    }

    async fn go_round(&mut self) {
        let mut sweeps = self.shared.sweeps.clone();
        self.shared.waker.wake();
        loop {
            self.beat.round();
            let now = self.shared.millis(Instant::now());
            let pause = self.machine.wake_at(now).map_or(IDLE, |at| at - now).min(IDLE);
            let event = tokio::select! {
                outcome = received(&mut self.outcome) => {
                    self.shared.waker.wake();
                    let outcome = outcome.unwrap_or_else(|| Outcome::MapFailed("the action's task ended without a word".into()));
                    self.answer_fail(&outcome);
                    Event::Done(outcome)
                }
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Detach(deadline, reply)) => {
                        let result = self.detach(deadline).await;
                        let gone = result.is_ok();
                        let _ = reply.send(result);
                        if gone { return; }
                        continue;
                    }
                    Some(command) => match self.command(command).await {
                        Some(event) => event,
                        None => continue,
                    },
                },
                changed = sweeps.changed() => {
                    if changed.is_err() { return; }
                    let sweep = sweeps.borrow_and_update().clone();
                    self.changes = sweep.as_ref().and_then(|s| s.changes(&self.record.spec.volume));
                    match sweep.and_then(|s| self.observe(&s)) {
                        Some(look) => Event::Observed(look),
                        None => continue,
                    }
                }
                samples = received(&mut self.sampling) => {
                    if samples.is_none() { self.sampled_changes = None; }
                    if let Some(samples) = samples { self.keep_samples(samples).await; }
                    continue;
                }
                seen = portal_changed(&mut self.portal) => Event::Portal(seen),
                () = tokio::time::sleep(Duration::from_millis(pause)) => Event::Tick,
            };
            self.feed(event);
            self.sample_if_due();
        }
    }

    /// What a sweep says of this volume; nothing if its shield could not be read.
    fn observe(&self, sweep: &Sweep) -> Option<Observation> {
        let spec = &self.record.spec;
        let shield = match sweep.shields.get(&spec.volume) {
            None => None,
            Some(Ok(seen)) => Some(seen.clone()),
            Some(Err(error)) => {
                warn!(volume = %spec.volume, %error, "the shield cannot be read");
                return None;
            }
        };
        Some(Observation {
            taken_at: self.shared.millis(sweep.taken_at),
            // Exact: a subsystem whose name merely contains ours is another volume.
            controllers: sweep
                .controllers
                .iter()
                .filter(|c| c.nqn == spec.nqn.as_str())
                .cloned()
                .collect(),
            shield,
        })
    }

    fn feed(&mut self, event: Event) {
        let shield = match &event {
            Event::Observed(look) => Some(look.shield.clone()),
            _ => None,
        };
        let now = self.shared.millis(Instant::now());
        self.telemetry.before(&event);
        let action = self.machine.step(event, now);
        self.watch_portal();
        self.publish(shield);
        if let Some(action) = action {
            self.start(action);
        }
    }

    /// The portal is asked for as long as the session could come back.
    fn watch_portal(&mut self) {
        let lost = matches!(
            self.machine.state(),
            State::Connecting | State::Degraded | State::Lost | State::Backoff
        );
        if !lost {
            self.portal = None;
        } else if self.portal.is_none() {
            let watched = self.shared.portals.watch(self.record.spec.portal.socket_addr());
            let mut seen = watched.seen();
            // What others have seen already is news to this session.
            seen.mark_changed();
            self.portal = Some((watched, seen));
        }
    }

    fn start(&mut self, action: Action) {
        let context = Context {
            spec: self.record.spec.clone(),
            content: self.record.content.clone(),
            samples: self.record.samples.clone(),
            portals: self.shared.portals.clone(),
            connects: self.shared.connects.clone(),
            answerers: self.shared.answerers.clone(),
            metrics: self.shared.metrics.clone(),
        };
        let (send, receive) = oneshot::channel();
        self.outcome = Some(receive);
        tokio::spawn(async move {
            let _ = send.send(actions::carry_out(action, context).await);
        });
    }

    /// Shows the new state, and remembers how it came about.
    fn publish(&mut self, shield: Option<Option<super::machine::ShieldSeen>>) {
        let volume = self.record.spec.volume.clone();
        let now = now_unix_ms();
        let changes = self.machine.take_changes();
        self.telemetry.after(&changes, &self.machine);
        for change in &changes {
            let (from, to) = (state_name(change.from), state_name(change.to));
            match change.to {
                State::Live | State::Connecting | State::Absent | State::Draining => {
                    info!(%volume, from, to, cause = change.cause, "session");
                }
                State::Blocked | State::Fenced => {
                    error!(%volume, from, to, cause = change.cause, "session");
                }
                _ => warn!(%volume, from, to, cause = change.cause, "session"),
            }
            let entry = TransitionRecord {
                volume: volume.clone(),
                from: change.from.into(),
                to: change.to.into(),
                at_unix_ms: now,
                cause: change.cause.clone(),
            };
            let _ = self.shared.transitions.send(entry);
        }
        let machine = &self.machine;
        self.registration.follow(machine.current().map(|(c, _)| c.name.as_str()));
        self.show.send_modify(|view| {
            if !changes.is_empty() {
                view.since_unix_ms = now;
            }
            view.state = machine.state();
            machine.reason().clone_into(&mut view.reason);
            view.failing_io = machine.failing_io();
            view.outages = machine.outages();
            view.last_outage_ms = machine.last_outage();
            view.attempts = machine.attempts();
            if let Some(shield) = shield {
                let current = machine.current();
                view.controller = current.map(|(c, _)| c.name.clone());
                view.namespace = current.map(|(_, n)| n.name.clone());
                if let Some(seen) = shield {
                    view.device = Some(Attached {
                        path: shield::node_of(seen.number),
                        number: seen.number,
                        size_bytes: seen.size_bytes,
                    });
                } else if !view.spec.shield {
                    // Without a shield, users hold the first namespace's device for good:
                    // after a loss it is dead, and another one does not help them.
                    if let (None, Some((_, n))) = (&view.device, current) {
                        view.device = Some(Attached {
                            path: format!("/dev/{}", n.name).into(),
                            number: n.number,
                            size_bytes: n.size_bytes,
                        });
                    }
                }
            }
        });
    }

    async fn command(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Reconnect(reply) => {
                let message = match self.machine.state() {
                    State::Live => "the session is live; nothing was done".to_owned(),
                    State::Fenced => {
                        let _ = reply.send(Err(Error::Precondition(format!(
                            "volume {} is fenced: {}; it must be attached and staged anew",
                            self.record.spec.volume,
                            self.machine.reason()
                        ))));
                        return None;
                    }
                    state => format!("it was {}; trying now", state_name(state)),
                };
                let _ = reply.send(Ok(message));
                self.shared.waker.wake();
                Some(Event::Reconnect)
            }
            Command::Rescan(reply) => {
                let name = self
                    .machine
                    .current()
                    .map(|(c, _)| c.name.clone())
                    .or_else(|| self.show.borrow().controller.clone());
                let result = match name {
                    None => Err(Error::Precondition(format!(
                        "volume {} has no live controller to rescan; see its status",
                        self.record.spec.volume
                    ))),
                    Some(name) => {
                        let (target, nqn) = (name.clone(), self.record.spec.nqn.clone());
                        let gone = format!("{name} is gone by now; see the volume's status");
                        self.step("rescan", WORD_DEADLINE, move || {
                            let held = Held::find(&target, nqn.as_str())?;
                            held.ok_or(Error::Precondition(gone))?.rescan()
                        })
                        .await
                        .map(|()| format!("asked the kernel to rescan {name}"))
                    }
                };
                self.shared.waker.wake();
                let _ = reply.send(result);
                None
            }
            Command::Fail(reply) if self.outcome.is_some() => {
                // The action under way may be stuck on the very I/O that is to fail.
                let volume = self.record.spec.volume.clone();
                let result = self.step("fail queued I/O", WORD_DEADLINE, move || {
                    shield::fail(&DeviceMapper::open()?, &volume)
                });
                let _ = reply.send(result.await);
                None
            }
            Command::Fail(reply) => {
                self.waiting_fail.push(reply);
                Some(Event::Fail)
            }
            Command::WriteRecord(reply) => {
                let _ = reply.send(self.write_record().await);
                None
            }
            Command::SetContent(content, reply) => {
                self.record.content = content;
                (self.sampled_at, self.sampled_changes) = (None, None);
                let _ = reply.send(self.write_record().await);
                None
            }
            Command::Detach(..) => None,
        }
    }

    fn answer_fail(&mut self, outcome: &Outcome) {
        if let Outcome::FailedIo(result) = outcome {
            for reply in self.waiting_fail.drain(..) {
                let _ = reply.send(result.clone().map_err(Error::Unavailable));
            }
        }
    }

    /// A call that the task waits for; the watchdog knows until when.
    async fn step<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        deadline: Duration,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.beat.busy(deadline);
        blocking(what, deadline, call).await
    }

    async fn write_record(&self) -> Result<()> {
        self.shared.copies.write(&self.record);
        let (journal, record) = (self.shared.journal.clone(), self.record.clone());
        self.step("write the journal", JOURNAL_DEADLINE, move || {
            journal.put(Table::Sessions, record.spec.volume.as_str(), &record)
        })
        .await
    }

    fn sample_if_due(&mut self) {
        let due = self.record.content == Content::Raw
            && self.sampling.is_none()
            && self.machine.state() == State::Live
            && self.sampled_at.is_none_or(|at| at.elapsed() >= SAMPLE_EVERY)
            // Reading what nobody has written to since would be most of an idle agent's work.
            && (self.changes.is_none() || self.changes != self.sampled_changes);
        let Some((_, namespace)) = self.machine.current().filter(|_| due) else { return };
        let namespace = namespace.clone();
        let device = self.show.borrow().device.clone();
        self.sampled_at = Some(Instant::now());
        self.sampled_changes = self.changes;
        let (send, receive) = oneshot::channel();
        self.sampling = Some(receive);
        tokio::spawn(async move {
            let sampled = blocking("sample the volume", SAMPLE_DEADLINE, move || {
                let number = device.map(|d| d.number);
                content::take(&shield::open_namespace(&namespace)?, &namespace, number)
            });
            // A volume that cannot be read just now keeps its earlier samples.
            match sampled.await {
                Ok(samples) => drop(send.send(samples)),
                Err(error) => debug!(%error, "the earlier samples are kept"),
            }
        });
    }

    async fn keep_samples(&mut self, samples: Samples) {
        if self.record.samples == samples {
            return;
        }
        self.record.samples = samples;
        if self.sample_journalled_at.is_none_or(|at| at.elapsed() >= SAMPLE_JOURNAL_EVERY) {
            self.sample_journalled_at = Some(Instant::now());
            if let Err(error) = self.write_record().await {
                warn!(volume = %self.record.spec.volume, %error, "samples are kept in memory only");
            }
        }
    }
}

/// What the portal does now, when that is new; waits for ever while nobody asks it.
async fn portal_changed(
    portal: &mut Option<(Arc<Watched>, watch::Receiver<Option<PortalSeen>>)>,
) -> PortalSeen {
    if let Some((_, seen)) = portal {
        while seen.changed().await.is_ok() {
            if let Some(now) = *seen.borrow_and_update() {
                return now;
            }
        }
    }
    std::future::pending().await
}

/// What a running helper sends, once; waits for ever while there is none.
async fn received<T>(channel: &mut Option<oneshot::Receiver<T>>) -> Option<T> {
    match channel {
        None => std::future::pending().await,
        Some(receiver) => {
            let value = receiver.await.ok();
            *channel = None;
            value
        }
    }
}
