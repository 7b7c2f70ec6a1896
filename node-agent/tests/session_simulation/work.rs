//! The actions, as actions.rs and shield.rs do them, each with a deadline. What is
//! abandoned at its deadline goes on in the kernel.

use rds_node_agent::kernel::sysfs::ControllerState;
use rds_node_agent::session::machine::{Action, Attachment, ConnectFailure, Millis, Outcome};

use crate::clock::Due;
use crate::driver::Sim;
use crate::target::OURS;
use crate::world::{Ns, Shield, name_of};

const PROBE_DEADLINE: Millis = 1_000;
const CONNECT_DEADLINE: Millis = 30_000;
const MAP_DEADLINE: Millis = 20_000;
const DELETE_DEADLINE: Millis = 60_000;

/// A mapping under way.
#[derive(Debug, Clone)]
pub(crate) struct MapWork {
    ns: Ns,
    began: Millis,
    /// The path was this namespace and active when it began.
    held: bool,
}

impl Sim {
    pub(crate) fn start(&mut self, action: Action) {
        self.token += 1;
        let token = self.token;
        self.action = Some((token, action.clone()));
        match action {
            Action::Connect => {
                let pause = self.w.rng.range(0, 3);
                self.w.clock.after(pause, Due::Probe(token));
            }
            Action::Rescan(name) => {
                let at = self.w.ctrls.iter().position(|c| name_of(c.instance) == name);
                if let Some(at) = at.filter(|_| !self.w.rng.chance(self.trouble.fails)) {
                    let pause = self.w.rng.lasts(50, 900, self.trouble.slow);
                    self.w.clock.after(pause, Due::Scan(self.w.ctrls[at].id));
                }
                self.ends(1, Outcome::Rescanned);
            }
            Action::Delete(name) => self.start_delete(&name, false),
            Action::GiveUp(name) => self.start_delete(&name, true),
            Action::Map(namespace) => {
                let ns = self.w.ctrls.iter().filter_map(|c| c.ns.as_ref());
                let ns = ns.into_iter().find(|ns| ns.minor == namespace.number.minor).cloned();
                // Names are reused: what is opened is proven to be what was meant.
                let Some(ns) = ns else {
                    return self.ends(1, Outcome::MapFailed("no such device".into()));
                };
                let shield = self.w.shield.as_ref();
                let held = shield.is_some_and(|s| s.active && s.path == Some(ns.minor));
                self.map = Some(MapWork { ns, began: self.w.now(), held });
                let reading = self.w.rng.lasts(30, 25_000, self.trouble.slow / 2);
                self.w.clock.after(reading, Due::MapReads(token));
            }
            Action::FailIo => {
                let pause = self.w.rng.range(1, 20);
                self.w.clock.after(pause, Due::FailTakesEffect(token));
            }
            Action::AskTarget => {
                let pause = self.w.rng.lasts(20, 5_000, self.trouble.slow);
                self.w.clock.after(pause, Due::Answer(token));
            }
            Action::AskAttachment => {
                let pause = self.w.rng.lasts(20, 5_000, self.trouble.slow);
                let answer = if !self.w.target.admits {
                    Attachment::Gone("it was taken away".into())
                } else if self.w.rng.chance(3) {
                    Attachment::Unknown("no API server".into())
                } else {
                    Attachment::Exists
                };
                self.ends(pause, Outcome::Attachment(answer));
            }
        }
    }

    /// The action under way ends so, in a while.
    fn ends(&mut self, pause: Millis, outcome: Outcome) {
        self.w.clock.after(pause, Due::Done(self.token, outcome));
    }

    fn is_current(&self, token: u64) -> bool {
        self.action.as_ref().is_some_and(|(t, _)| *t == token)
    }

    fn start_delete(&mut self, name: &str, unless_live: bool) {
        let at = self.w.ctrls.iter().position(|c| name_of(c.instance) == name);
        // The kernel refuses to delete one that it has not finished making.
        let at = at.filter(|at| !self.w.ctrls[*at].making);
        let live = |at: &usize| self.w.ctrls[*at].state == ControllerState::Live;
        let at = at.filter(|at| !unless_live || !live(at));
        let Some(at) = at.filter(|_| !self.w.rng.chance(self.trouble.fails)) else {
            return self.ends(1, Outcome::Deleted);
        };
        let ctrl = &self.w.ctrls[at];
        let healthy = ctrl.epoch == self.w.epoch
            && ctrl.state == ControllerState::Live
            && self.w.flows()
            && ctrl.ns.as_ref().map(|n| n.minor) == self.w.shield.as_ref().and_then(|s| s.path);
        // It may have got its namespace since it was seen without; to flow, it would have
        // to have been mapped, and only one action is under way. A fenced session has to
        // give it up even so.
        if healthy && !self.fenced {
            self.w.violated(format!("{name} is deleted although I/O flows through it"));
        }
        let id = self.w.begin_delete(at);
        let lasts = self.w.rng.lasts(50, 100_000, self.trouble.slow / 4);
        self.w.clock.after(lasts, Due::DeleteEnds(id));
        self.ends(lasts.min(DELETE_DEADLINE), Outcome::Deleted);
    }

    pub(crate) fn work(&mut self, due: Due) {
        match due {
            Due::Probe(token) if self.is_current(token) => self.probe(token),
            Due::ConnectWrite(token) => self.connect_write(token),
            Due::ConnectEnds(id, token) => self.connect_ends(id, token),
            Due::MapReads(token) if self.is_current(token) => self.map_reads(token),
            Due::MapTakesEffect(token) if self.is_current(token) => self.map_takes_effect(),
            Due::Answer(token) if self.is_current(token) => self.answer(),
            Due::FailTakesEffect(token) if self.is_current(token) => self.fail_takes_effect(),
            _ => {}
        }
    }

    fn probe(&mut self, token: u64) {
        if !self.has_permit && !self.gate.enter() {
            self.w.clock.after(5, Due::Probe(token));
            return;
        }
        self.has_permit = true;
        let pause = self.w.rng.range(1, 10);
        if !self.w.target.reachable {
            self.ends(PROBE_DEADLINE, refused("no answer", false, false));
        } else if !self.w.target.portal_open {
            self.ends(pause, refused("refused", true, false));
        } else {
            self.w.clock.after(1, Due::ConnectWrite(token));
            self.ends(CONNECT_DEADLINE, refused("abandoned", false, false));
        }
    }

    fn connect_write(&mut self, token: u64) {
        if token < self.first_token {
            return;
        }
        // The kernel makes one at a time (nvmf_dev_mutex).
        if self.w.ctrls.iter().any(|c| c.making) {
            self.w.clock.after(20, Due::ConnectWrite(token));
            return;
        }
        let epoch = self.w.epoch;
        if self.w.ctrls.iter().any(|c| c.epoch == epoch && !c.state.is_going()) {
            // EALREADY
            if self.is_current(token) {
                self.ends(1, Outcome::Connected(Ok(())));
            }
            return;
        }
        let id = self.w.add(epoch, ControllerState::Connecting);
        self.w.note(|| format!("controller {id} is being made"));
        let lasts = self.w.rng.lasts(200, 45_000, self.trouble.slow);
        self.w.clock.after(lasts, Due::ConnectEnds(id, token));
    }

    fn connect_ends(&mut self, id: u64, token: u64) {
        let (open, reachable) = (self.w.target.portal_open, self.w.target.reachable);
        // The driver asks the target why it refused.
        let refuses = open && reachable && self.w.target.exported && !self.w.target.admits;
        let outcome = if self.w.made(id) {
            Outcome::Connected(Ok(()))
        } else {
            refused("the target said no", reachable && !open, refuses)
        };
        if self.is_current(token) {
            self.ends(0, outcome);
        }
    }

    fn answer(&mut self) {
        let target = &self.w.target;
        let answer = if !target.answers() {
            None
        } else if !target.exported {
            Some(failure("no such subsystem", false, false))
        } else {
            (!target.admits).then(|| failure("host refused", false, true))
        };
        self.ends(0, Outcome::Asked(answer));
    }

    fn map_reads(&mut self, token: u64) {
        let Some(map) = self.map.clone() else { return };
        if self.w.now() - map.began >= MAP_DEADLINE {
            // What is read after the deadline is not acted on.
            return self.ends(0, Outcome::MapFailed("reading took too long".into()));
        }
        if self.w.usable(map.ns.minor).is_none() || self.w.rng.chance(self.trouble.fails) {
            return self.ends(0, Outcome::MapFailed("it could not be read".into()));
        }
        if map.ns.content != OURS {
            return self.ends(0, Outcome::Different("another volume".into()));
        }
        if !self.config.shield {
            return self.ends(0, Outcome::Mapped(self.namespace()));
        }
        let pause = self.w.rng.range(0, 5);
        self.w.clock.after(pause, Due::MapTakesEffect(token));
    }

    fn namespace(&self) -> rds_node_agent::kernel::sysfs::Namespace {
        match &self.action {
            Some((_, Action::Map(namespace))) => namespace.clone(),
            other => panic!("not mapping but {other:?}"),
        }
    }

    fn map_takes_effect(&mut self) {
        let Some(map) = self.map.clone() else { return };
        let ns = &map.ns;
        let size = self.w.shield.as_ref().map_or(0, |s| s.size);
        if size > ns.size {
            return self.ends(0, Outcome::MapFailed("it is smaller".into()));
        }
        // Mapped at once because no write had been lost: then none may have been since.
        let lost_since = map.held && self.w.shield.as_ref().is_none_or(|s| !s.active);
        if lost_since {
            return self.ends(0, Outcome::MapFailed("the link was lost meanwhile".into()));
        }
        self.switch(ns);
        let outcome = if self.w.rng.chance(self.trouble.fails / 2) {
            // All done but for the look at it that follows.
            Outcome::MapFailed("the shield could not be read".into())
        } else {
            Outcome::Mapped(self.namespace())
        };
        let pause = self.w.rng.range(0, 3);
        self.ends(pause, outcome);
    }

    fn switch(&mut self, ns: &Ns) {
        let now = self.w.now();
        self.w.shield = Some(Shield {
            path: Some(ns.minor),
            active: true,
            suspended: false,
            size: ns.size,
            queues: true,
        });
        self.operator_failed = false;
        self.w.may_fail = false;
        self.w.note(|| format!("  I/O goes to minor {} (w{})", ns.minor, ns.wwid));
        let ghost = self.w.target.old_writes.iter().find(|o| o.wwid == ns.wwid && o.dead_at > now);
        if let Some(old) = ghost.copied().filter(|_| self.w.flows()) {
            let left = old.dead_at - now;
            self.w.violated(format!("ghost writes: old ones may come for {left} ms more"));
        }
        self.w.settle();
    }

    fn fail_takes_effect(&mut self) {
        if self.w.rng.chance(self.trouble.fails) {
            return self.ends(0, Outcome::FailedIo(Err("the kernel refused".into())));
        }
        let Some(shield) = self.w.shield.as_mut() else {
            return self.ends(0, Outcome::FailedIo(Err("there is no shield".into())));
        };
        (shield.suspended, shield.queues) = (false, false);
        self.w.may_fail = true;
        self.ends(0, Outcome::FailedIo(Ok(())));
    }

    /// The agent dies in the middle: any prefix of its work may have been done.
    pub(crate) fn abandon_work(&mut self) {
        let Some(map) = self.map.take() else { return };
        if map.ns.content != OURS || !self.config.shield {
            return;
        }
        match &mut self.w.shield {
            // Created, not loaded yet.
            None if self.w.rng.chance(30) => {
                self.w.shield = Some(Shield {
                    path: None,
                    active: false,
                    suspended: false,
                    size: 0,
                    queues: true,
                });
            }
            // Loaded and suspended, not resumed yet.
            Some(shield) if self.w.rng.chance(30) => shield.suspended = true,
            _ => {}
        }
    }
}

fn failure(reason: &str, port_closed: bool, host_refused: bool) -> ConnectFailure {
    ConnectFailure { reason: reason.into(), port_closed, host_refused }
}

fn refused(reason: &str, port_closed: bool, host_refused: bool) -> Outcome {
    Outcome::Connected(Err(failure(reason, port_closed, host_refused)))
}
