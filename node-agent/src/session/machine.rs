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

mod vocabulary;

use rds_csi_proto::agent::State;

use crate::kernel::DeviceNumber;
use crate::kernel::sysfs::{Controller, ControllerState, Namespace};

pub use vocabulary::{
    Action, Change, Config, ConnectFailure, Event, Millis, Observation, Outcome, ShieldSeen,
};

/// First pause after a failed connection attempt; doubles with each further one.
const BACKOFF_FIRST: Millis = 250;
/// Longest pause: an appliance that boots for minutes is still noticed soon.
const BACKOFF_LAST: Millis = 2_000;
/// What the kernel needs to find the namespaces of a new controller.
const NAMESPACE_GRACE: Millis = 500;
/// Pause between two rescans of a live controller without its namespace.
const RESCAN_EVERY: Millis = 1_000;
/// Rescans without a result after which the controller is replaced.
const RESCANS: u32 = 5;
/// Pause after a failed attempt to give the path back.
const MAP_RETRY: Millis = 500;
/// What a target may need beyond the keep-alive timeout until a lost session is dead for
/// it too: nvmet checks once a second and rounds up.
const KEEP_ALIVE_MARGIN: Millis = 1_000;
/// How long the kernel may be reconnecting before the target is asked why, and how often.
/// Older kernels (6.1) retry a refused connection for ever and tell nobody of the refusal.
const ASK_EVERY: Millis = 5_000;
/// Pause before the same controller is deleted again, or failing I/O is asked for again:
/// the kernel refuses to delete a controller that it has not finished making, at once.
const REPEAT_EVERY: Millis = 1_000;
/// A path that has not failed is mapped without a wait only on a look this fresh: the
/// kernel needs at least a second to lose a connection and make another.
const FRESH: Millis = 500;
/// How long a controller may be on its way out before people should hear of it.
const DELETE_PATIENCE: Millis = 30_000;

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
    attempts: u32,
    retry_at: Millis,
    map_at: Millis,
    rescans: u32,
    /// When the target is asked why the kernel cannot reconnect, while it tries.
    ask_at: Option<Millis>,
    /// What the target last said to that.
    told: Option<String>,
    going_since: Option<Millis>,
    failing_io: bool,
    fail_at: Millis,
    /// The controller deleted last, and until when it is not to be deleted again.
    deleted: Option<(String, Millis)>,
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
            ask_at: None,
            told: None,
            going_since: None,
            failing_io: false,
            fail_at: 0,
            deleted: None,
            after_drain: None,
            outages: 0,
            last_outage: 0,
        }
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
                self.attempts += 1;
                let cause = format!("attempt {}", self.attempts);
                self.enter(State::Connecting, &cause);
            }
            Action::Map(namespace) => self.tried = Some(namespace.clone()),
            Action::Delete(name) => self.deleted = Some((name.clone(), now + REPEAT_EVERY)),
            Action::Rescan(_) | Action::FailIo | Action::AskTarget => {}
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
        self.retry_at = now + self.backoff();
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
    fn backoff(&self) -> Millis {
        let doubled = BACKOFF_FIRST << self.attempts.saturating_sub(1).min(10);
        let full = doubled.min(BACKOFF_LAST);
        let salt =
            self.config.jitter.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(self.attempts);
        full / 2 + salt % (full / 2 + 1)
    }

    fn is_ours(&self, controller: &Controller) -> bool {
        controller.host_nqn == self.config.host_nqn
    }

    fn decide(&mut self, now: Millis) -> Option<Action> {
        if matches!(self.state, State::Draining | State::Fenced | State::Blocked) {
            return self.give_up_controller(now).or_else(|| self.fail_overdue_io(now));
        }
        let seen = self.seen.take()?;
        let action = self.decide_on(&seen, now).or_else(|| self.fail_overdue_io(now));
        self.seen = Some(seen);
        action
    }

    fn decide_on(&mut self, seen: &Observation, now: Millis) -> Option<Action> {
        let (going, standing): (Vec<_>, Vec<_>) =
            seen.controllers.iter().partition(|c| c.state.is_going());
        // An earlier attachment's controller has no right to the volume any more.
        let foreign = |c: &&&Controller| !self.is_ours(c) && !c.host_nqn.is_empty();
        if let Some(old) = standing.iter().find(foreign) {
            return self.delete(&old.name, now);
        }
        let mut ours: Vec<_> = standing.into_iter().filter(|c| self.is_ours(c)).collect();
        // Two controllers for one volume are never wanted; keep the one that is live.
        ours.sort_by_key(|c| (c.state != ControllerState::Live, c.name.as_str()));
        if let Some(extra) = ours.get(1) {
            return self.delete(&extra.name, now);
        }
        if ours.first().is_none_or(|c| c.state == ControllerState::Live) {
            (self.ask_at, self.told) = (None, None);
        }
        match ours.first() {
            Some(c) if c.state == ControllerState::Live => match &c.namespace {
                Some(namespace) => self.with_namespace(namespace, seen, now),
                None => self.without_namespace(&c.name, now),
            },
            Some(c) => self.reconnecting(c, now),
            None => self.without_controller(&going, now),
        }
    }

    fn delete(&self, controller: &str, now: Millis) -> Option<Action> {
        let again = self.deleted.as_ref().is_some_and(|(n, until)| n == controller && now < *until);
        (!again).then(|| Action::Delete(controller.to_owned()))
    }

    fn with_namespace(
        &mut self,
        namespace: &Namespace,
        seen: &Observation,
        now: Millis,
    ) -> Option<Action> {
        self.rescans = 0;
        if !self.config.shield {
            return if self.mapped_wwid.is_none() {
                (now >= self.map_at).then(|| Action::Map(namespace.clone()))
            } else {
                self.live(now);
                None
            };
        }
        let shield = seen.shield.as_ref();
        // A write that is lost fails its path: none was lost while the path is active.
        let held = shield.filter(|s| s.path == Some(namespace.number) && s.path_active);
        let flows = held.is_some_and(|s| !s.suspended);
        let whole = flows && held.is_some_and(|s| s.size_bytes >= namespace.size_bytes);
        // A shield that fails I/O does so at the next loss too: it has to queue again.
        if whole && held.is_some_and(|s| s.queueing) {
            self.mapped_wwid = Some(namespace.wwid.clone());
            self.live(now);
            return None;
        }
        if !flows {
            let cause = format!("{} is there, I/O does not go to it yet", namespace.name);
            self.lose(self.waiting(), &cause, now);
        }
        // A new export means that the target let go of the old one and all its I/O.
        let new_export = self.mapped_wwid.as_ref().is_some_and(|w| *w != namespace.wwid);
        let first = shield.is_none();
        let fresh = now.saturating_sub(seen.taken_at) <= FRESH;
        let old_writes_gone =
            first || (held.is_some() && fresh) || new_export || now >= self.old_writes_until;
        (old_writes_gone && now >= self.map_at).then(|| Action::Map(namespace.clone()))
    }

    /// The kernel is at it. Whether it can succeed only the target knows.
    fn reconnecting(&mut self, controller: &Controller, now: Millis) -> Option<Action> {
        let mut cause = format!("{} is {:?}", controller.name, controller.state).to_lowercase();
        if let Some(told) = &self.told {
            cause = format!("{cause}: {told}");
        }
        self.lose(self.waiting(), &cause, now);
        let due = *self.ask_at.get_or_insert(now + ASK_EVERY);
        // I/O whose time is over does not wait for an answer.
        self.fail_overdue_io(now).or_else(|| {
            (now >= due).then(|| {
                self.ask_at = Some(now + ASK_EVERY);
                Action::AskTarget
            })
        })
    }

    /// A fenced session's controller would be retried by the kernel for ever, and the I/O
    /// inside it could not be failed.
    fn give_up_controller(&self, now: Millis) -> Option<Action> {
        let seen = self.seen.as_ref().filter(|_| self.state == State::Fenced)?;
        let ours = seen.controllers.iter().find(|c| self.is_ours(c) && !c.state.is_going())?;
        self.delete(&ours.name, now)
    }

    /// Not there yet, or not there any more.
    fn waiting(&self) -> State {
        if self.last_live.is_some() { State::Degraded } else { State::Connecting }
    }

    fn without_namespace(&mut self, controller: &str, now: Millis) -> Option<Action> {
        let cause = format!("{controller} is live without its namespace");
        self.lose(State::Lost, &cause, now);
        if now < self.retry_at {
            return None;
        }
        if self.rescans >= RESCANS {
            self.rescans = 0;
            return self.delete(controller, now);
        }
        self.rescans += 1;
        self.retry_at = now + RESCAN_EVERY;
        Some(Action::Rescan(controller.to_owned()))
    }

    fn without_controller(&mut self, going: &[&Controller], now: Millis) -> Option<Action> {
        if let Some(old) = going.first() {
            let since = *self.going_since.get_or_insert(now);
            if now.saturating_sub(since) > DELETE_PATIENCE {
                self.reason =
                    format!("{} has been on its way out for too long; another is made", old.name);
            }
        } else {
            self.going_since = None;
        }
        if self.state != State::Backoff {
            self.lose(State::Lost, "no controller", now);
        }
        (now >= self.retry_at).then_some(Action::Connect)
    }

    fn fail_overdue_io(&mut self, now: Millis) -> Option<Action> {
        let limit = self.config.io_timeout?;
        let since = self.lost_at.map(|at| at.max(self.flowed_at));
        let overdue = since.is_some_and(|at| now.saturating_sub(at) >= limit);
        (overdue
            && !self.failing_io
            && now >= self.fail_at
            && self.config.shield
            && self.state != State::Draining)
            .then_some(Action::FailIo)
    }

    fn live(&mut self, now: Millis) {
        self.last_live = Some(now);
        self.attempts = 0;
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
