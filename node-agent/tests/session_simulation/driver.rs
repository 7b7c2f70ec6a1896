//! The agent around the machine, as task.rs and sweeper.rs do it: one action at a time,
//! its outcome later, ticks and looks in between. What must hold is checked here whenever
//! the machine asks for something.

use std::cell::Cell;
use std::rc::Rc;

use rds_csi_proto::agent::State;
use rds_node_agent::kernel::sysfs::ControllerState;
use rds_node_agent::session::machine::{
    Action, Attachment, Config, Event, Machine, Millis, Observation, Outcome, PortalSeen,
    ShieldSeen,
};

use crate::clock::Due;
use crate::journal::Record;
use crate::world::{World, host_nqn, name_of};

/// As in task.rs and sweeper.rs.
const IDLE: Millis = 1_000;
const EVERY: Millis = 1_000;
const SETTLE: Millis = 10;
/// More actions in one second than this are a busy loop: backoff, rescans and retries
/// alone make about four, and faults and operators add some.
const ACTIONS_A_SECOND: u32 = 15;
/// How long a session that is called live may stand without its queue: an operator's
/// `fail` does that, until the content has been checked and the path given back, which
/// takes 20 s when reading is slow, and may fail a few times.
const WITHOUT_QUEUE: Millis = 90_000;

/// What all volumes of a host share: how many may connect at once.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) free: Rc<Cell<u32>>,
    pub(crate) least_free: Rc<Cell<u32>>,
}

impl Gate {
    pub(crate) fn new(permits: u32) -> Self {
        Self { free: Rc::new(Cell::new(permits)), least_free: Rc::new(Cell::new(permits)) }
    }

    pub(crate) fn enter(&self) -> bool {
        let free = self.free.get();
        if free > 0 {
            self.free.set(free - 1);
            self.least_free.set(self.least_free.get().min(free - 1));
        }
        free > 0
    }

    pub(crate) fn leave(&self) {
        self.free.set(self.free.get() + 1);
    }
}

/// How badly things go at present, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trouble {
    pub(crate) slow: u64,
    pub(crate) fails: u64,
}

/// One volume on one host.
pub(crate) struct Sim {
    pub(crate) w: World,
    pub(crate) config: Config,
    pub(crate) machine: Option<Machine>,
    pub(crate) gate: Gate,
    pub(crate) trouble: Trouble,
    pub(crate) fault_every: Millis,
    pub(crate) steps: u64,
    /// The zero of the machine's clock: it starts anew with the agent.
    pub(crate) born: Millis,
    pub(crate) token: u64,
    pub(crate) action: Option<(u64, Action)>,
    pub(crate) has_permit: bool,
    pub(crate) map: Option<crate::work::MapWork>,
    /// Which agent runs: what an earlier one began is ignored.
    pub(crate) agent: u64,
    /// What was asked of the kernel before this boot is gone with it.
    pub(crate) first_token: u64,
    pub(crate) boot: u64,
    pub(crate) journal: Option<Record>,
    /// Unstage has begun, and is repeated until it is done.
    pub(crate) leaving: bool,
    /// It has come so far that there is no way back.
    pub(crate) unmounted: bool,
    /// Its writes had been failed.
    pub(crate) gave_up: bool,
    tick: u64,
    look: u64,
    looking: bool,
    look_again: bool,
    arrives_at: Millis,
    /// What the machine was last told of the portal in this outage.
    told_of_portal: Option<PortalSeen>,
    /// What forbids connecting and mapping, told apart from the machine's own state.
    pub(crate) fenced: bool,
    pub(crate) blocked: bool,
    pub(crate) draining: bool,
    /// This machine has been live.
    was_live: bool,
    pub(crate) operator_failed: bool,
    /// When the newest look that the machine had to believe began.
    believed: Millis,
    last_done: Millis,
    /// The last sign of flowing I/O that the machine was given.
    flow_seen: Millis,
    pub(crate) without_queue: Option<Millis>,
    second: (Millis, u32),
}

impl Sim {
    pub(crate) fn new(w: World, mut config: Config, gate: Gate) -> Self {
        let epoch = w.epoch;
        config.host_nqn = host_nqn(epoch);
        let mut sim = Self {
            w,
            config,
            machine: None,
            gate,
            trouble: Trouble::default(),
            fault_every: 1_000,
            steps: 0,
            born: 0,
            token: 0,
            action: None,
            has_permit: false,
            map: None,
            agent: 0,
            first_token: 0,
            boot: 1,
            journal: Some(Record::new(1, epoch)),
            leaving: false,
            unmounted: false,
            gave_up: false,
            tick: 0,
            look: 0,
            looking: false,
            look_again: false,
            arrives_at: 0,
            told_of_portal: None,
            fenced: false,
            blocked: false,
            draining: false,
            was_live: false,
            operator_failed: false,
            believed: 0,
            last_done: 0,
            flow_seen: 0,
            without_queue: None,
            second: (0, 0),
        };
        sim.start_agent();
        sim
    }

    pub(crate) fn start_agent(&mut self) {
        if self.machine.is_some() {
            return;
        }
        self.w.note(|| "agent starts".into());
        let Some(phase) = self.recall() else { return };
        self.born = self.w.now();
        self.machine = Some(Machine::new(self.config.clone(), 0));
        (self.fenced, self.blocked, self.draining, self.was_live) = (false, false, false, false);
        self.operator_failed = false;
        (self.last_done, self.believed, self.flow_seen) = (self.born, self.born, self.born);
        (self.looking, self.arrives_at) = (false, self.born);
        self.told_of_portal = None;
        self.w.clock.after(1, Due::PortalAsked(self.agent));
        self.resume(phase);
        self.wake();
        self.plan_tick();
    }

    /// The agent is killed: what it was doing ends wherever it had got to.
    pub(crate) fn kill_agent(&mut self) {
        if self.machine.is_some() {
            self.w.note(|| "agent is killed".into());
            self.abandon_work();
            self.forget_machine();
        }
    }

    pub(crate) fn forget_machine(&mut self) {
        self.machine = None;
        if self.has_permit {
            self.gate.leave();
        }
        self.has_permit = false;
        self.action = None;
        self.agent += 1;
        self.look += 1;
        self.tick += 1;
    }

    /// The machine's clock.
    pub(crate) fn millis(&self) -> Millis {
        self.w.now() - self.born
    }

    /// Lets the next thing happen. False if there is nothing more.
    pub(crate) fn next(&mut self) -> bool {
        let Some(due) = self.w.clock.pop() else { return false };
        match due {
            Due::Tick(n) if n == self.tick => self.feed(Event::Tick),
            Due::LookBegins(n) if n == self.look => self.look_begins(),
            Due::LookReads(n, shield, at) if n == self.agent => self.look_reads(shield, at),
            Due::LookArrives(n, look) if n == self.agent => self.look_arrives(look),
            Due::Done(token, outcome) => self.done(token, outcome),
            Due::PortalAsked(n) if n == self.agent => self.ask_portal(),
            Due::AgentStarts => self.start_agent(),
            Due::DrainRefused => self.drain(false),
            Due::TakeDown(n, step) if n == self.agent => self.take_down(step),
            Due::Stage => self.stage(),
            Due::Retry(id) => self.w.retry(id),
            Due::Notice(id) => self.w.notice(id),
            Due::Scan(id) => self.w.scan(id),
            Due::DeleteEnds(id) => {
                if let Some(at) = self.w.index(id) {
                    self.w.remove(at);
                }
            }
            Due::Fault => self.fault(),
            Due::Target(later) => self.target_changes(later),
            Due::BusyChanges => self.busy_changes(),
            Due::Tick(_) | Due::LookBegins(_) | Due::LookReads(..) | Due::LookArrives(..) => {}
            Due::PortalAsked(_) | Due::TakeDown(..) => {}
            work => self.work(work),
        }
        self.after_anything();
        true
    }

    fn after_anything(&mut self) {
        self.w.settle();
        if std::mem::take(&mut self.w.uevent) && !self.w.rng.chance(self.w.deaf) {
            self.wake();
        }
        let live = self.machine.as_ref().is_some_and(|m| m.state() == State::Live);
        let queues = self.w.shield.as_ref().is_none_or(|s| s.queues);
        if !live || queues {
            self.without_queue = None;
        } else {
            let since = *self.without_queue.get_or_insert(self.w.now());
            if self.w.now().saturating_sub(since) > WITHOUT_QUEUE {
                self.w.violated("the session is live, and its next loss will fail I/O".into());
            }
        }
    }

    // The sweeper.

    fn wake(&mut self) {
        self.look_again = true;
        if !self.looking && self.machine.is_some() {
            self.plan_look(SETTLE);
        }
    }

    fn plan_look(&mut self, pause: Millis) {
        self.look += 1;
        self.w.clock.after(pause, Due::LookBegins(self.look));
    }

    fn look_begins(&mut self) {
        (self.looking, self.look_again) = (true, false);
        // The shield is read first, then the controllers.
        let (shield, now) = (self.w.shield_seen(), self.millis());
        let reading = self.w.rng.lasts(3, 4_000, self.trouble.slow / 8);
        self.w.clock.after(reading, Due::LookReads(self.agent, shield, now));
    }

    fn look_reads(&mut self, shield: Option<ShieldSeen>, taken_at: Millis) {
        self.looking = false;
        let look = Observation { taken_at, controllers: self.w.controllers_seen(), shield };
        if !self.w.rng.chance(self.trouble.fails / 2) {
            let delay = self.w.rng.lasts(2, 3_000, self.trouble.slow / 4);
            self.arrives_at = (self.w.now() + delay).max(self.arrives_at);
            let delay = self.arrives_at - self.w.now();
            self.w.clock.after(delay, Due::LookArrives(self.agent, look));
        }
        let pause = if self.look_again { SETTLE } else { EVERY };
        self.plan_look(pause);
    }

    fn look_arrives(&mut self, look: Observation) {
        let taken_at = look.taken_at + self.born;
        if taken_at > self.last_done {
            self.believed = taken_at;
            let path = look.shield.as_ref().filter(|s| s.path_active && !s.suspended);
            let flows = path.and_then(|s| s.path).is_some_and(|path| {
                look.controllers.iter().any(|c| {
                    c.state == ControllerState::Live
                        && c.namespace.as_ref().is_some_and(|n| n.number == path)
                })
            });
            if flows {
                self.flow_seen = taken_at;
            }
        }
        self.feed(Event::Observed(look));
    }

    // The watch on the portal, which is nobody's proof of anything: it only hurries.

    fn ask_portal(&mut self) {
        let pause = self.w.rng.range(200, 1_500);
        self.w.clock.after(pause, Due::PortalAsked(self.agent));
        let Some(machine) = self.machine.as_ref() else { return };
        let lost = [State::Connecting, State::Degraded, State::Lost, State::Backoff];
        if !lost.contains(&machine.state()) {
            self.told_of_portal = None;
            return;
        }
        let seen = match (self.w.target.reachable, self.w.target.portal_open) {
            (false, _) => PortalSeen::Silent,
            (true, false) => PortalSeen::Refuses,
            (true, true) => PortalSeen::Answers,
        };
        if self.told_of_portal.replace(seen) != Some(seen) {
            self.feed(Event::Portal(seen));
        }
    }

    // The task.

    fn plan_tick(&mut self) {
        let Some(machine) = self.machine.as_ref() else { return };
        let now = self.millis();
        let pause = machine.wake_at(now).map_or(IDLE, |at| at - now).min(IDLE);
        self.tick += 1;
        self.w.clock.after(pause, Due::Tick(self.tick));
    }

    pub(crate) fn feed(&mut self, event: Event) {
        let now = self.millis();
        let Some(machine) = self.machine.as_mut() else { return };
        self.steps += 1;
        let busy = self.action.is_some();
        let action = machine.step(event, now);
        let state = machine.state();
        for change in machine.take_changes() {
            self.w.note(|| format!("{:?} -> {:?}: {}", change.from, change.to, change.cause));
        }
        if state == State::Live {
            (self.was_live, self.w.users) = (true, true);
        }
        // An agent that was restarted knows by the shield's path that the volume was its own.
        let had_it = self.w.shield.as_ref().is_some_and(|s| s.path.is_some());
        self.fenced |= state == State::Fenced && had_it;
        if let Some(action) = action {
            if busy {
                self.w.violated(format!("{action:?} is asked for while another is under way"));
            }
            self.w.note(|| format!("{action:?}"));
            self.check(&action);
            self.start(action);
        }
        self.plan_tick();
    }

    pub(crate) fn done(&mut self, token: u64, outcome: Outcome) {
        if self.action.as_ref().is_none_or(|(t, _)| *t != token) {
            return;
        }
        if matches!(self.action, Some((_, Action::Connect))) && self.has_permit {
            self.has_permit = false;
            self.gate.leave();
        }
        self.action = None;
        self.map = None;
        self.w.note(|| format!("done: {outcome:?}"));
        match &outcome {
            Outcome::Different(_) => self.blocked = true,
            Outcome::Connected(Err(f)) | Outcome::Asked(Some(f)) if f.host_refused => {
                self.fenced |= self.was_live;
            }
            Outcome::Attachment(Attachment::Gone(_)) => self.fenced = true,
            Outcome::Mapped(_) => self.flow_seen = self.w.now(),
            _ => {}
        }
        self.last_done = self.w.now();
        // The driver wakes the sweeper; a wakeup can be lost like any other.
        self.w.uevent = true;
        self.feed(Event::Done(outcome));
    }

    pub(crate) fn drain(&mut self, begun: bool) {
        let possible = begun || !(self.leaving && self.unmounted);
        if self.machine.is_some() && self.draining != begun && possible {
            self.draining = begun;
            self.feed(Event::Drain { begun });
        }
    }

    /// What must hold of any action at the moment when it is asked for.
    fn check(&mut self, action: &Action) {
        let second = self.w.now() / 1_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        self.second.1 += 1;
        if self.second.1 > ACTIONS_A_SECOND {
            self.w.violated(format!("a busy loop: {} actions in one second", self.second.1));
        }
        if matches!(action, Action::Connect | Action::Map(_)) {
            self.expect_explained(&format!("{action:?}"));
            for (forbidden, by) in [
                (self.fenced, "the host was refused"),
                (self.draining, "unstage began"),
                (self.blocked, "another volume was found"),
            ] {
                if forbidden {
                    self.w.violated(format!("{action:?} after {by}"));
                }
            }
        }
        match action {
            Action::Connect => {
                let (epoch, believed) = (self.w.epoch, self.believed);
                let stands = self
                    .w
                    .ctrls
                    .iter()
                    .find(|c| c.epoch == epoch && !c.state.is_going() && c.since < believed);
                if let Some(c) = stands {
                    let name = name_of(c.instance);
                    self.w.violated(format!("a connect although {name} stands and was seen"));
                }
            }
            Action::FailIo if !self.operator_failed && !self.fenced => {
                let waited = self.w.now() - self.flow_seen;
                if self.config.io_timeout.is_none_or(|limit| waited < limit) {
                    self.w.violated(format!("I/O is failed after {waited} ms of waiting"));
                }
            }
            _ => {}
        }
    }
}
