//! The life of one session, as a pure function of what is seen.
//!
//! ```text
//!                 attach                    controller live, namespace mapped
//!   Absent ─────────────────► Connecting ─────────────────────────────────────► Live
//!                              ▲   │                                            │  ▲
//!                        try   │   │ refused                     link lost,     │  │ mapped again
//!                              │   ▼                             path failed    ▼  │
//!                             Backoff ◄──── Lost ◄──────────────────────────── Degraded
//!                                            controller or namespace gone
//!
//!   any ── another volume's content ──► Blocked   (a person must look)
//!   any ── the target refuses us ─────► Fenced    (we may no longer hold the volume)
//!   any ── unstage ───────────────────► Draining
//! ```
//!
//! No I/O, no clock, no randomness in here: time comes in with each event, jitter with the
//! configuration. The driver ([`super::keeper`]) carries out one action at a time and
//! reports its outcome; while an action is under way no other is asked for.

mod decide;
mod gate;
mod vocabulary;

use rds_csi_proto::agent::State;

use crate::kernel::DeviceNumber;
use crate::kernel::sysfs::{Controller, ControllerState, Namespace};

pub use vocabulary::{
    Action, Attachment, Change, Config, ConnectFailure, Event, Millis, Observation, Outcome,
    PortalSeen, ShieldSeen,
};

/// First pause after a failed connection attempt; doubles with each further one.
const BACKOFF_FIRST: Millis = 250;
/// Longest pause: an appliance that boots for minutes is still noticed soon.
const BACKOFF_LAST: Millis = 2_000;
/// The longest one soon after the portal has begun to answer again: a booting appliance
/// brings its exports back one by one.
const BACKOFF_BOOTING: Millis = 500;
/// What counts as soon.
const BOOTING: Millis = 60_000;
/// What the kernel needs to find the namespaces of a new controller.
const NAMESPACE_GRACE: Millis = 500;
/// Pause after a failed attempt to give the path back.
const MAP_RETRY: Millis = 500;
/// What a target may need beyond the keep-alive timeout until a lost session is dead for
/// it too: nvmet checks once a second and rounds up.
const KEEP_ALIVE_MARGIN: Millis = 1_000;
/// Pause before the same controller is deleted again, or failing I/O is asked for again:
/// the kernel refuses to delete a controller that it has not finished making, at once.
const REPEAT_EVERY: Millis = 1_000;

/// The session.
#[derive(Debug, Clone)]
pub struct Machine {
    config: Config,
    state: State,
    reason: String,
    changes: Vec<Change>,
    seen: Option<Observation>,
    /// The action under way.
    busy: bool,
    /// When the last action ended: looks that began earlier may not show its effect.
    acted_at: Millis,
    /// When the present outage began.
    lost_at: Option<Millis>,
    /// The last look in which I/O could flow.
    last_live: Option<Millis>,
    /// The namespace that was mapped last: `wwid` tells whether the export is the same.
    mapped_wwid: Option<String>,
    /// The namespace that was last to be mapped. A failure may come after the effect.
    tried: Option<Namespace>,
    /// The shield's path by the last look or mapping.
    known_path: Option<DeviceNumber>,
    /// Whether I/O may have been sent down that path since the last look.
    may_flow: bool,
    /// The last sign of flowing I/O.
    flowed_at: Millis,
    /// Until then, writes sent on the old connection may still reach the disk.
    old_writes_until: Millis,
    /// They may be those of an earlier session of this volume.
    inherits_writes: bool,
    /// The controller that was last live, by name and the target's number for it.
    live_on: Option<(String, String)>,
    attempts: u32,
    retry_at: Millis,
    map_at: Millis,
    rescans: u32,
    /// Since when the kernel has been reconnecting.
    reconnecting_since: Option<Millis>,
    /// When the target was last asked why it cannot.
    asked_at: Millis,
    /// What the portal was last seen to do in this outage, and since when.
    portal: Option<(PortalSeen, Millis)>,
    /// What the target last said to that.
    told: Option<String>,
    going_since: Option<Millis>,
    failing_io: bool,
    fail_at: Millis,
    /// The controller deleted last, and until when it is not to be deleted again.
    deleted: Option<(String, Millis)>,
    gate: gate::Gate,
    /// Where it goes if unstage is refused: what forbids connecting still does then.
    after_drain: Option<(State, String)>,
    outages: u32,
    last_outage: Millis,
}

impl Machine {
    /// A session that is about to be made, or to be found again after a restart of the
    /// agent: what can be seen decides which.
    #[must_use]
    pub fn new(config: Config, now: Millis) -> Self {
        Self {
            // The agent may have been away while the link was lost: nothing is known of
            // the old connection's writes, so the whole time is waited out, from the
            // first look on: I/O may flow until then.
            may_flow: true,
            old_writes_until: now + config.keep_alive + KEEP_ALIVE_MARGIN,
            inherits_writes: false,
            live_on: None,
            config,
            state: State::Absent,
            reason: "not attached yet".into(),
            changes: Vec::new(),
            seen: None,
            busy: false,
            acted_at: 0,
            lost_at: None,
            last_live: None,
            mapped_wwid: None,
            tried: None,
            known_path: None,
            flowed_at: 0,
            attempts: 0,
            retry_at: 0,
            map_at: 0,
            rescans: 0,
            reconnecting_since: None,
            asked_at: 0,
            portal: None,
            told: None,
            going_since: None,
            failing_io: false,
            fail_at: 0,
            deleted: None,
            gate: gate::Gate::default(),
            after_drain: None,
            outages: 0,
            last_outage: 0,
        }
    }

    /// Tells of an earlier session of this volume on this host, which was taken down while
    /// its connection was lost: its writes may reach the disk until then.
    pub fn inherit_writes(&mut self, until: Millis) {
        self.old_writes_until = self.old_writes_until.max(until);
        self.inherits_writes = true;
    }

    /// Until when writes of this session may still reach the disk, should it be taken down
    /// now; `None` while its connection stands, whose end is the end of its writes.
    #[must_use]
    pub fn writes_linger_until(&self) -> Option<Millis> {
        (self.state != State::Live && self.was_live()).then_some(self.old_writes_until)
    }

    /// Where the session stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }
    /// Why.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
    /// Whether I/O fails instead of waiting.
    #[must_use]
    pub fn failing_io(&self) -> bool {
        self.failing_io
    }
    /// Losses so far.
    #[must_use]
    pub fn outages(&self) -> u32 {
        self.outages
    }
    /// How long the last loss took.
    #[must_use]
    pub fn last_outage(&self) -> Millis {
        self.last_outage
    }
    /// Connection attempts since it was last live.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
    /// The live controller with its namespace, as last seen.
    #[must_use]
    pub fn current(&self) -> Option<(&Controller, &Namespace)> {
        let seen = self.seen.as_ref()?;
        let live = seen
            .controllers
            .iter()
            .find(|c| self.is_ours(c) && c.state == ControllerState::Live)?;
        live.namespace.as_ref().map(|n| (live, n))
    }
    /// When the machine next has something to do by itself, if it has to wait.
    #[must_use]
    pub fn wake_at(&self, now: Millis) -> Option<Millis> {
        [self.retry_at, self.map_at, self.old_writes_until].into_iter().filter(|at| *at > now).min()
    }
    /// The changes since this was last called.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Takes an event in and says what to do next, if anything.
    pub fn step(&mut self, event: Event, now: Millis) -> Option<Action> {
        match event {
            // A look from before the last action's end could show a path as missing that
            // has just been mapped. In the same millisecond it may be from before.
            Event::Observed(look) if look.taken_at > self.acted_at => {
                self.note_flow(&look, now);
                self.seen = Some(look);
            }
            Event::Observed(_) | Event::Tick => {}
            Event::Portal(portal) => {
                self.portal = Some((portal, now));
                if portal == PortalSeen::Answers {
                    // Whatever the pause was for, it is over.
                    self.retry_at = self.retry_at.min(now);
                }
            }
            Event::Done(outcome) => self.finish(outcome, now),
            Event::Reconnect => {
                self.retry_at = now;
                if self.state == State::Blocked {
                    self.enter(State::Lost, "an operator asked to look at the volume again");
                }
            }
            Event::Fail if !self.busy => return self.start(Action::FailIo, now),
            Event::Fail => {}
            Event::Drain { begun } => self.drain(begun),
        }
        if self.busy {
            return None;
        }
        let action = self.decide(now)?;
        self.start(action, now)
    }

    fn start(&mut self, action: Action, now: Millis) -> Option<Action> {
        self.busy = true;
        match &action {
            Action::Connect => {
                self.gate.forget();
                self.attempts += 1;
                let cause = format!("attempt {}", self.attempts);
                self.enter(State::Connecting, &cause);
            }
            Action::Map(namespace) => self.tried = Some(namespace.clone()),
            Action::Delete(name) | Action::GiveUp(name) => {
                self.deleted = Some((name.clone(), now + REPEAT_EVERY))
            }
            Action::Rescan(_) | Action::FailIo | Action::AskTarget | Action::AskAttachment => {}
        }
        Some(action)
    }

    fn drain(&mut self, begun: bool) {
        if begun && self.state != State::Draining {
            self.after_drain = matches!(self.state, State::Fenced | State::Blocked)
                .then(|| (self.state, self.reason.clone()));
            self.enter(State::Draining, "unstage");
        } else if !begun && self.state == State::Draining {
            let refused = || (State::Absent, "unstage was refused; the session goes on".into());
            let (to, cause) = self.after_drain.take().unwrap_or_else(refused);
            self.change(to, &cause);
        }
    }

    /// Keeps count of until when writes may have been sent. They may be sent until the
    /// look that shows a loss, not only until the last one that showed none; and a path
    /// that has not failed may come to life again without our doing.
    fn note_flow(&mut self, look: &Observation, now: Millis) {
        let path = look.shield.as_ref().and_then(|s| s.path);
        let open = look.shield.as_ref().is_some_and(|s| s.path_active && !s.suspended);
        let behind = |c: &&Controller| c.namespace.as_ref().map(|n| n.number) == path;
        let behind = look.controllers.iter().find(|c| open && path.is_some() && behind(c));
        let changed = path != self.known_path;
        if behind.is_some() || changed || self.may_flow {
            self.old_writes_until = now + self.config.keep_alive + KEEP_ALIVE_MARGIN;
        }
        if behind.is_some_and(|c| c.state == ControllerState::Live) {
            self.flowed_at = now;
        }
        if let Some(tried) = self.tried.as_ref().filter(|_| changed) {
            // A mapping that was reported as failed did take effect.
            self.mapped_wwid = Some(tried.wwid.clone());
        }
        if let Some(shield) = &look.shield {
            // The kernel knows, whoever told it to; an agent that was restarted does not.
            self.failing_io = !shield.queueing;
        }
        (self.may_flow, self.known_path) = (behind.is_some(), path);
    }

    fn finish(&mut self, outcome: Outcome, now: Millis) {
        self.busy = false;
        self.acted_at = now;
        // What was seen before is old now; the next look decides.
        self.seen = None;
        match outcome {
            // Its namespace needs a moment to appear.
            Outcome::Connected(Ok(())) => self.retry_at = now + NAMESPACE_GRACE,
            Outcome::Deleted | Outcome::Rescanned => {}
            Outcome::Connected(Err(failure)) => self.refused(&failure, now),
            Outcome::Mapped(namespace) => {
                self.mapped_wwid = Some(namespace.wwid);
                self.failing_io = false;
                // The connection may be lost again before the next look.
                (self.may_flow, self.known_path) = (true, Some(namespace.number));
                self.flowed_at = now;
            }
            Outcome::Different(what) => self.enter(State::Blocked, &what),
            Outcome::MapFailed(why) => {
                self.map_at = now + MAP_RETRY;
                self.reason = why;
                // The same path again: whether it was given back before the failure
                // cannot be seen. Another path can be.
                if self.known_path.is_some() && self.known_path == self.tried_path() {
                    self.may_flow = true;
                }
            }
            Outcome::FailedIo(Ok(())) => {
                self.failing_io = true;
            }
            Outcome::FailedIo(Err(why)) => {
                // It may have been done even so.
                self.fail_at = now + REPEAT_EVERY;
                self.reason = why;
            }
            Outcome::Asked(answer) => self.answered(answer),
            Outcome::Attachment(answer) => self.gate_answered(answer, now),
        }
    }

    fn tried_path(&self) -> Option<DeviceNumber> {
        self.tried.as_ref().map(|n| n.number)
    }

    fn refused(&mut self, failure: &ConnectFailure, now: Millis) {
        if failure.port_closed {
            self.old_writes_until = now;
        }
        if failure.host_refused && self.was_live() {
            self.enter(State::Fenced, &failure.reason);
            return;
        }
        self.retry_at = now + self.backoff(now);
        self.enter(State::Backoff, &failure.reason);
    }

    /// Whether this attachment ever had the volume: an agent that was restarted knows it by
    /// the shield's path.
    fn was_live(&self) -> bool {
        self.last_live.is_some() || self.known_path.is_some()
    }

    /// The target has said why the kernel does not get through.
    fn answered(&mut self, refusal: Option<ConnectFailure>) {
        match refusal {
            Some(failure) if failure.host_refused && self.was_live() => {
                self.enter(State::Fenced, &failure.reason);
            }
            other => self.told = other.map(|failure| failure.reason),
        }
    }

    /// Exponential with jitter: between half and all of the doubled pause.
    fn backoff(&self, now: Millis) -> Millis {
        let booting = self.portal.is_some_and(|(seen, since)| {
            seen == PortalSeen::Answers && now.saturating_sub(since) < BOOTING
        });
        let last = if booting { BACKOFF_BOOTING } else { BACKOFF_LAST };
        let doubled = BACKOFF_FIRST << self.attempts.saturating_sub(1).min(10);
        let full = doubled.min(last);
        let salt =
            self.config.jitter.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(self.attempts);
        full / 2 + salt % (full / 2 + 1)
    }

    fn is_ours(&self, controller: &Controller) -> bool {
        controller.host_nqn == self.config.host_nqn
    }

    fn live(&mut self, now: Millis) {
        self.gate.forget();
        self.last_live = Some(now);
        (self.attempts, self.portal) = (0, None);
        self.retry_at = now;
        let cause = match self.lost_at.take() {
            Some(at) => {
                self.last_outage = now.saturating_sub(at);
                format!("I/O flows again after {} ms", self.last_outage)
            }
            None => "I/O flows".into(),
        };
        self.enter(State::Live, &cause);
    }

    fn lose(&mut self, to: State, cause: &str, now: Millis) {
        if self.last_live.is_some() && self.lost_at.is_none() {
            self.lost_at = Some(now);
            self.outages += 1;
            // The first attempt comes at once.
            self.retry_at = now;
        }
        // A connect under way is "connecting" until it has an outcome.
        if !(self.state == State::Connecting && to == State::Lost) {
            self.enter(to, cause);
        }
    }

    fn enter(&mut self, to: State, cause: &str) {
        if self.state == State::Draining {
            // An action that ends during unstage must not undo it.
            if matches!(to, State::Fenced | State::Blocked) {
                self.after_drain = Some((to, cause.to_owned()));
            }
            return;
        }
        self.change(to, cause);
    }

    fn change(&mut self, to: State, cause: &str) {
        if self.state != to {
            self.changes.push(Change { from: self.state, to, cause: cause.to_owned() });
            self.state = to;
        }
        self.reason = cause.to_owned();
    }
}

#[cfg(test)]
mod tests;
