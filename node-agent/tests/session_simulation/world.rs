//! The kernel's side: controllers, namespaces and the shield, driven by the target's state.
//!
//! As observed (docs/architecture.md): a reconnect to an export of another identity leaves
//! a live controller without its namespace; a refusal with Do-Not-Retry removes the
//! controller on 6.12 and is retried for ever on 6.1; I/O that was under way when a
//! connection is lost comes back to the shield, which then marks its path as failed.

use rds_node_agent::kernel::DeviceNumber;
use rds_node_agent::kernel::sysfs::{Controller, ControllerState as State, Namespace};
use rds_node_agent::session::machine::{Millis, ShieldSeen};

use crate::clock::{Clock, Due};
use crate::prng::Rng;
use crate::target::{OURS, OldWrites, Target};

/// The kernel's `reconnect_delay`.
const RECONNECT: Millis = 1_000;
/// nvmet looks once a second whether a keep-alive has been missed.
const TARGET_ROUNDS_UP: Millis = 1_000;

#[derive(Debug, Clone)]
pub(crate) struct Ns {
    pub(crate) minor: u32,
    pub(crate) wwid: u64,
    pub(crate) content: u32,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) struct Ctrl {
    pub(crate) id: u64,
    pub(crate) instance: u32,
    /// The attachment whose host NQN it has.
    pub(crate) epoch: u32,
    pub(crate) state: State,
    pub(crate) ns: Option<Ns>,
    /// The write to `/dev/nvme-fabrics` has not returned yet.
    pub(crate) making: bool,
    pub(crate) since: Millis,
    /// The connection is dead since then, and the host has not noticed.
    cut_at: Option<Millis>,
    /// Writes were under way when it was cut.
    writes_cut: bool,
    /// The target has let go of it, with all its I/O.
    torn: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Shield {
    pub(crate) path: Option<u32>,
    pub(crate) active: bool,
    pub(crate) suspended: bool,
    pub(crate) size: u64,
    pub(crate) queues: bool,
}

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) rng: Rng,
    pub(crate) target: Target,
    pub(crate) ctrls: Vec<Ctrl>,
    pub(crate) shield: Option<Shield>,
    /// Linux 6.12 rather than 6.1.
    pub(crate) gives_up: bool,
    pub(crate) keep_alive: Millis,
    pub(crate) epoch: u32,
    /// The volume is in use, and I/O is under way at present.
    pub(crate) users: bool,
    pub(crate) busy: bool,
    /// The policy, or an operator, has said that I/O may fail.
    pub(crate) may_fail: bool,
    /// The percentage of uevents that nobody hears.
    pub(crate) deaf: u64,
    pub(crate) uevent: bool,
    pub(crate) violation: Option<String>,
    pub(crate) loud: bool,
    ids: u64,
    minors: u32,
}

impl World {
    pub(crate) fn new(rng: Rng, keep_alive: Millis, gives_up: bool, loud: bool) -> Self {
        Self {
            clock: Clock::default(),
            rng,
            target: Target::new(),
            ctrls: Vec::new(),
            shield: None,
            gives_up,
            keep_alive,
            epoch: 1,
            users: false,
            busy: true,
            may_fail: false,
            deaf: 0,
            uevent: false,
            violation: None,
            loud,
            ids: 0,
            minors: 0,
        }
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.now
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if self.loud {
            println!("{:>9} {}", self.clock.now, what());
        }
    }

    pub(crate) fn violated(&mut self, what: String) {
        self.note(|| format!("VIOLATED: {what}"));
        let at = self.clock.now;
        self.violation.get_or_insert_with(|| format!("at {at} ms: {what}"));
    }

    pub(crate) fn index(&self, id: u64) -> Option<usize> {
        self.ctrls.iter().position(|c| c.id == id)
    }

    /// The namespace behind this number, if I/O sent to it is carried out.
    pub(crate) fn usable(&self, minor: u32) -> Option<&Ns> {
        self.ctrls
            .iter()
            .filter(|c| c.state == State::Live)
            .filter_map(|c| c.ns.as_ref())
            .find(|ns| ns.minor == minor)
    }

    /// Whether I/O reaches the namespace at present, as far as the host can know.
    pub(crate) fn flows(&self) -> bool {
        self.shield.as_ref().is_some_and(|s| {
            s.active && !s.suspended && s.path.is_some_and(|p| self.usable(p).is_some())
        })
    }

    /// What follows by itself from any change: I/O on a dead path fails it.
    pub(crate) fn settle(&mut self) {
        let Some(shield) = self.shield.as_ref() else { return };
        let path = shield.path.and_then(|p| self.usable(p));
        let reaches_other = shield.active && path.is_some_and(|ns| ns.content != OURS);
        let dead = path.is_none();
        let io = self.users && self.busy && !shield.suspended;
        let Some(shield) = self.shield.as_mut().filter(|_| io) else { return };
        if dead {
            shield.active = false;
        }
        if !shield.active && !shield.queues && !self.may_fail {
            self.violated("I/O failed although it should have waited".into());
        }
        if reaches_other {
            self.violated("I/O goes to another volume".into());
        }
    }

    /// Writes were sent that are not answered, and the host does not know yet that they never
    /// will be.
    pub(crate) fn has_unanswered_writes(&self) -> bool {
        self.ctrls.iter().any(|c| c.writes_cut)
    }

    fn writes_on(&self, ctrl: &Ctrl) -> bool {
        let Some(shield) = self.shield.as_ref() else { return false };
        let path = ctrl.ns.as_ref().map(|ns| ns.minor);
        self.users && self.busy && !shield.suspended && shield.active && shield.path == path
    }

    /// The host has lost the connection, or ended it.
    fn drop_link(&mut self, at: usize, torn: bool) {
        let now = self.now();
        let ctrl = &self.ctrls[at];
        let had_writes = ctrl.state == State::Live && (self.writes_on(ctrl) || ctrl.writes_cut);
        let last_byte = ctrl.cut_at.unwrap_or(now);
        if let Some(ns) = ctrl.ns.as_ref().filter(|_| had_writes) {
            if !torn && !ctrl.torn {
                let dead_at = last_byte + self.keep_alive + TARGET_ROUNDS_UP;
                let (wwid, id) = (ns.wwid, ctrl.id);
                self.note(|| format!("  writes of controller {id} may linger until {dead_at}"));
                self.target.old_writes.retain(|w| w.dead_at > now);
                self.target.old_writes.push(OldWrites { wwid, dead_at });
            }
            let minor = ns.minor;
            if let Some(shield) = self.shield.as_mut().filter(|s| s.path == Some(minor)) {
                shield.active = false;
                if !shield.queues && !self.may_fail {
                    self.violated("I/O failed although it should have waited".into());
                }
            }
        }
        let ctrl = &mut self.ctrls[at];
        (ctrl.cut_at, ctrl.writes_cut, ctrl.torn) = (None, false, false);
    }

    fn reconnecting(&mut self, at: usize, torn: bool) {
        self.drop_link(at, torn);
        let id = self.ctrls[at].id;
        self.ctrls[at].state = State::Connecting;
        // The loss of a link emits no uevent.
        self.clock.after(RECONNECT, Due::Retry(id));
        self.settle();
    }

    /// Connections are reset; the target has let go of them if `torn`.
    pub(crate) fn reset_links(&mut self, torn: bool) {
        if torn {
            self.target.old_writes.clear();
        }
        for at in 0..self.ctrls.len() {
            if self.ctrls[at].state != State::Live {
                continue;
            }
            if self.target.reachable && self.ctrls[at].cut_at.is_none() {
                self.reconnecting(at, torn);
            } else if torn {
                // Nobody can tell the host; it finds out in its own time.
                self.ctrls[at].torn = true;
                self.cut_link(at);
            }
        }
    }

    /// Nothing passes any more, and the host has yet to notice.
    pub(crate) fn cut_link(&mut self, at: usize) {
        let (now, writes) = (self.now(), self.writes_on(&self.ctrls[at]));
        let ctrl = &mut self.ctrls[at];
        if ctrl.state == State::Live && ctrl.cut_at.is_none() {
            (ctrl.cut_at, ctrl.writes_cut) = (Some(now), writes);
            let notice = self.rng.range(1, 2 * self.keep_alive);
            self.clock.after(notice, Due::Notice(ctrl.id));
        }
    }

    pub(crate) fn notice(&mut self, id: u64) {
        let Some(at) = self.index(id) else { return };
        if self.ctrls[at].state == State::Live && self.ctrls[at].cut_at.is_some() {
            self.note(|| format!("controller {id} notices that its link is dead"));
            self.reconnecting(at, false);
        }
    }

    pub(crate) fn network_returns(&mut self) {
        self.target.reachable = true;
        let now = self.now();
        for at in 0..self.ctrls.len() {
            let ctrl = &mut self.ctrls[at];
            let Some(since) = ctrl.cut_at else { continue };
            if now - since < self.keep_alive && !ctrl.torn && self.target.portal_open {
                // Retransmission saves it.
                (ctrl.cut_at, ctrl.writes_cut) = (None, false);
            } else {
                self.reconnecting(at, false);
            }
        }
    }

    fn admitted(&self, at: usize) -> bool {
        self.target.exported && self.target.admits && self.ctrls[at].epoch == self.epoch
    }

    pub(crate) fn retry(&mut self, id: u64) {
        let Some(at) = self.index(id) else { return };
        if self.ctrls[at].state != State::Connecting || self.ctrls[at].making {
            return;
        }
        if !self.target.answers() {
            self.clock.after(RECONNECT, Due::Retry(id));
        } else if self.admitted(at) {
            self.goes_live(at);
        } else if self.gives_up {
            self.note(|| format!("controller {id} is removed: Do Not Retry"));
            self.remove(at);
        } else {
            self.clock.after(RECONNECT, Due::Retry(id));
        }
    }

    fn goes_live(&mut self, at: usize) {
        let wwid = self.target.wwid;
        let ctrl = &mut self.ctrls[at];
        (ctrl.state, ctrl.making) = (State::Live, false);
        let (id, bare) = (ctrl.id, ctrl.ns.is_none());
        if ctrl.ns.as_ref().is_some_and(|ns| ns.wwid != wwid) {
            ctrl.ns = None;
            self.note(|| format!("controller {id}: identifiers changed, namespace removed"));
        } else if bare && !self.rng.chance(5) {
            let pause = self.rng.lasts(50, 900, 10);
            self.clock.after(pause, Due::Scan(id));
        }
        self.note(|| format!("controller {id} is live"));
        self.uevent = true;
        self.settle();
    }

    pub(crate) fn scan(&mut self, id: u64) {
        let Some(at) = self.index(id) else { return };
        let ctrl = &self.ctrls[at];
        let connected = ctrl.state == State::Live && ctrl.cut_at.is_none();
        if connected && ctrl.ns.is_none() && self.admitted(at) {
            self.minors = self.minors % 250 + 1;
            // The shield holds its path open, so that its number is not given away.
            if self.shield.as_ref().is_some_and(|s| s.path == Some(self.minors)) {
                self.minors += 1;
            }
            let (minor, t) = (self.minors, &self.target);
            let ns = Ns { minor, wwid: t.wwid, content: t.content, size: t.size };
            self.note(|| format!("controller {id} has namespace {ns:?}"));
            self.ctrls[at].ns = Some(ns);
            self.uevent = true;
        }
    }

    /// A new controller, with the lowest free number as its name.
    pub(crate) fn add(&mut self, epoch: u32, state: State) -> u64 {
        self.ids += 1;
        let free = (0..).find(|n| self.ctrls.iter().all(|c| c.instance != *n)).unwrap_or(0);
        self.ctrls.push(Ctrl {
            id: self.ids,
            instance: free,
            epoch,
            state,
            ns: None,
            making: true,
            since: self.now(),
            cut_at: None,
            writes_cut: false,
            torn: false,
        });
        self.uevent = true;
        let ours = |c: &&Ctrl| c.epoch == self.epoch && !c.state.is_going();
        if self.ctrls.iter().filter(ours).count() > 1 {
            self.violated("there are two controllers for one volume".into());
        }
        self.ids
    }

    /// The write of a connect ends: the controller stands, or is gone again.
    pub(crate) fn made(&mut self, id: u64) -> bool {
        let Some(at) = self.index(id) else { return false };
        if self.target.answers() && self.admitted(at) {
            self.goes_live(at);
            true
        } else {
            self.remove(at);
            false
        }
    }

    pub(crate) fn begin_delete(&mut self, at: usize) -> u64 {
        let torn = self.rng.chance(50);
        if self.ctrls[at].state == State::Live {
            self.drop_link(at, torn);
        }
        let states = [State::Deleting, State::DeletingNoIo];
        self.ctrls[at].state = self.rng.pick(&states);
        if self.rng.chance(50) {
            self.ctrls[at].ns = None;
        }
        self.settle();
        self.ctrls[at].id
    }

    pub(crate) fn remove(&mut self, at: usize) {
        let id = self.ctrls.remove(at).id;
        self.note(|| format!("controller {id} is gone"));
        self.uevent = true;
        self.settle();
    }

    pub(crate) fn shield_seen(&self) -> Option<ShieldSeen> {
        self.shield.as_ref().map(|s| ShieldSeen {
            number: DeviceNumber { major: 253, minor: 0 },
            path: s.path.map(|minor| DeviceNumber { major: 259, minor }),
            path_active: s.active,
            suspended: s.suspended,
            queueing: s.queues,
            size_bytes: s.size,
        })
    }

    pub(crate) fn controllers_seen(&self) -> Vec<Controller> {
        let seen = |c: &Ctrl| Controller {
            name: name_of(c.instance),
            nqn: "nqn".into(),
            host_nqn: host_nqn(c.epoch),
            address: String::new(),
            cntlid: String::new(),
            state: c.state,
            namespace: c.ns.as_ref().map(|ns| Namespace {
                name: format!("n{}", ns.minor),
                number: DeviceNumber { major: 259, minor: ns.minor },
                size_bytes: ns.size,
                wwid: format!("w{}", ns.wwid),
            }),
        };
        self.ctrls.iter().map(seen).collect()
    }
}

pub(crate) fn name_of(instance: u32) -> String {
    format!("nvme{instance}")
}

pub(crate) fn host_nqn(epoch: u32) -> String {
    format!("host{epoch}")
}
