//! What goes wrong, and how it ends.

use rds_node_agent::kernel::sysfs::ControllerState;
use rds_node_agent::session::machine::{Event, Millis};

use crate::clock::Due;
use crate::driver::{Sim, Trouble};
use crate::target::{Later, OURS, SIZE};

impl Sim {
    /// Faults come from now on, on average one every `every`.
    pub(crate) fn make_trouble(&mut self, every: Millis) {
        self.trouble = Trouble {
            slow: self.w.rng.pick(&[0, 0, 10, 30]),
            fails: self.w.rng.pick(&[0, 0, 5, 25]),
        };
        self.w.deaf = self.w.rng.pick(&[0, 20, 100]);
        self.fault_every = every;
        self.plan_fault();
        self.w.clock.after(1, Due::BusyChanges);
    }

    fn plan_fault(&mut self) {
        // Often one follows another closely: that is where the races are.
        let pause = if self.w.rng.chance(30) {
            self.w.rng.range(1, 200)
        } else {
            self.w.rng.range(1, 2 * self.fault_every)
        };
        self.w.clock.after(pause, Due::Fault);
    }

    pub(crate) fn busy_changes(&mut self) {
        // Most of the time there is I/O; a volume at rest does not notice a short loss.
        self.w.busy = self.w.rng.chance(70);
        let pause = self.w.rng.range(50, 8_000);
        self.w.clock.after(pause, Due::BusyChanges);
    }

    fn outage(&mut self) -> Millis {
        self.w.rng.lasts(8_000, 90_000, 15)
    }

    pub(crate) fn fault(&mut self) {
        self.plan_fault();
        let kind = self.w.rng.range(0, 99);
        self.w.note(|| format!("fault {kind}"));
        match kind {
            0..=17 => {
                let torn = self.w.rng.chance(30);
                self.w.reset_links(torn);
            }
            18..=29 => self.network_lost(),
            30..=41 => self.toggle(),
            42..=49 => self.reboot(),
            50..=55 => {
                self.w.target.portal_open = false;
                self.w.reset_links(true);
                let pause = self.outage();
                self.later(pause, Later::PortalOpens);
            }
            56..=65 => self.disconnect_by_admin(),
            66..=73 => {
                self.kill_agent();
                let pause = self.w.rng.lasts(500, 20_000, 30);
                self.w.clock.after(pause, Due::AgentStarts);
            }
            74..=77 => self.refuse_host(),
            78..=80 => {
                let pause = self.w.rng.lasts(2_000, 60_000, 30);
                self.pause_host(pause);
            }
            81..=85 => {
                if !self.draining {
                    self.drain(true);
                    let pause = self.w.rng.lasts(500, 40_000, 20);
                    self.w.clock.after(pause, Due::DrainRefused);
                }
            }
            86..=88 => {
                if self.machine.is_some() {
                    self.operator_failed = true;
                    self.feed(Event::Fail);
                    // While an action is under way the driver does it by itself.
                    self.operator_failed = self.action.as_ref().is_some_and(|(_, a)| {
                        *a == rds_node_agent::session::machine::Action::FailIo
                    });
                }
            }
            89..=92 => self.reconnect_by_operator(),
            93..=94 => self.leftover_of_an_earlier_attachment(),
            95 => self.reboot_host(),
            96..=97 => self.leave(),
            _ => self.grow(),
        }
    }

    fn later(&mut self, pause: Millis, what: Later) {
        self.w.clock.after(pause, Due::Target(what));
    }

    pub(crate) fn target_changes(&mut self, what: Later) {
        self.w.note(|| format!("target: {what:?}"));
        match what {
            Later::NetworkReturns => self.w.network_returns(),
            Later::PortalOpens => self.w.target.portal_open = true,
            Later::ExportOn { content, size } => self.w.target.export_on(content, size),
            Later::HostAdmitted => self.w.target.admits = true,
        }
    }

    fn network_lost(&mut self) {
        self.w.target.reachable = false;
        for at in 0..self.w.ctrls.len() {
            self.w.cut_link(at);
        }
        let pause = self.outage();
        self.later(pause, Later::NetworkReturns);
    }

    fn toggle(&mut self) {
        self.w.target.exported = false;
        self.w.reset_links(true);
        let content = if self.w.rng.chance(10) { 7 } else { OURS };
        let size = self.w.target.size.max(SIZE) + if self.w.rng.chance(20) { SIZE } else { 0 };
        let size = if self.w.rng.chance(5) { SIZE / 2 } else { size };
        let pause = self.outage();
        self.later(pause, Later::ExportOn { content, size });
    }

    /// The portal opens first, the exports come back one by one.
    fn reboot(&mut self) {
        if self.w.rng.chance(50) {
            self.network_lost();
        }
        let open = self.outage();
        let export = open + self.outage();
        self.reboot_for(open, export);
    }

    pub(crate) fn reboot_for(&mut self, open: Millis, export: Millis) {
        (self.w.target.portal_open, self.w.target.exported) = (false, false);
        self.w.reset_links(true);
        self.later(open, Later::PortalOpens);
        self.later(export, Later::ExportOn { content: OURS, size: self.w.target.size.max(SIZE) });
    }

    fn disconnect_by_admin(&mut self) {
        let Some(at) = self.w.ctrls.iter().position(|c| !c.state.is_going() && !c.making) else {
            return;
        };
        let id = self.w.begin_delete(at);
        let lasts = self.w.rng.lasts(50, 60_000, 10);
        self.w.clock.after(lasts, Due::DeleteEnds(id));
    }

    fn refuse_host(&mut self) {
        self.w.target.admits = false;
        if self.w.rng.chance(70) {
            self.w.reset_links(true);
        }
        let pause = self.outage();
        self.later(pause, Later::HostAdmitted);
    }

    /// A virtual machine that is paused: its clock jumps forward, the target's time passes.
    fn pause_host(&mut self, pause: Millis) {
        self.w.clock.pause_host(pause);
        self.without_queue = self.without_queue.map(|since| since + pause);
        if pause > self.w.keep_alive {
            for at in 0..self.w.ctrls.len() {
                self.w.cut_link(at);
            }
        }
    }

    pub(crate) fn reconnect_by_operator(&mut self) {
        // The driver does not let it through to a fenced session, which would ignore it.
        if self.machine.is_some() {
            self.blocked = self.blocked && self.draining;
            self.feed(Event::Reconnect);
        }
    }

    fn leftover_of_an_earlier_attachment(&mut self) {
        if self.w.epoch > 1 && self.w.ctrls.len() < 3 {
            let id = self.w.add(self.w.epoch - 1, ControllerState::Connecting);
            let pause = self.w.rng.lasts(200, 5_000, 30);
            self.w.clock.after(pause, Due::ConnectEnds(id, 0));
            if let Some(at) = self.w.index(id).filter(|_| self.w.rng.chance(50)) {
                self.w.ctrls[at].making = false;
            }
        }
    }

    /// The target announces a larger namespace without making the export anew.
    fn grow(&mut self) {
        self.w.target.size += SIZE;
        let (wwid, size) = (self.w.target.wwid, self.w.target.size);
        for ns in self.w.ctrls.iter_mut().filter_map(|c| c.ns.as_mut()) {
            if ns.wwid == wwid {
                ns.size = size;
            }
        }
        self.w.uevent = true;
    }

    /// Faults end: the target is back with our volume, and nothing hangs any more.
    pub(crate) fn calm(&mut self) {
        self.w.note(|| "faults end".into());
        self.trouble = Trouble::default();
        self.w.deaf = 0;
        self.w.clock.calm(2_000);
        let size = self.w.shield.as_ref().map_or(SIZE, |s| s.size.max(SIZE));
        let target = &mut self.w.target;
        (target.portal_open, target.admits) = (true, true);
        if target.exported && (target.content != OURS || target.size < size) {
            target.exported = false;
            self.w.reset_links(true);
        }
        self.w.target.export_on(OURS, size);
        self.w.network_returns();
        self.start_agent();
        self.drain(false);
        if self.blocked {
            self.reconnect_by_operator();
        }
    }
}
