//! The journal, as the keeper uses it: a record is there before anything that it explains,
//! and goes after all of it. The agent can be killed between any two of these steps, and
//! the whole host can reboot: then nothing is connected before the volume is staged again.

use rds_node_agent::session::machine::Event;

use crate::clock::Due;
use crate::driver::Sim;
use crate::world::host_nqn;

/// How often an unstage that could not end is repeated.
const REPEATED_AFTER: u64 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Attached,
    Detaching,
}

/// What is written of the session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) boot: u64,
    epoch: u32,
}

impl Record {
    pub(crate) fn new(boot: u64, epoch: u32) -> Self {
        Self { phase: Phase::Attached, boot, epoch }
    }
}

impl Sim {
    /// What an agent that starts is told to do; nothing, if the record is of an earlier boot.
    pub(crate) fn recall(&mut self) -> Option<Phase> {
        let known = self.journal.filter(|record| record.boot == self.boot);
        if known.is_none() {
            if self.journal.take().is_some() {
                self.w.note(|| "a record of an earlier boot is forgotten".into());
            }
            if self.w.shield.is_some() {
                self.w.violated("there is a shield that no record explains".into());
            }
        }
        known.map(|record| record.phase)
    }

    /// What must be written when the kernel is about to be changed.
    pub(crate) fn expect_explained(&mut self, what: &str) {
        let explains = |r: &Record| {
            r.phase == Phase::Attached && r.boot == self.boot && r.epoch == self.w.epoch
        };
        if !self.journal.as_ref().is_some_and(explains) {
            let journal = self.journal;
            self.w.violated(format!("{what}, but the journal says {journal:?}"));
        }
    }

    /// The volume is staged, with the host NQN of a new attachment or once more with the same.
    pub(crate) fn stage(&mut self) {
        if self.machine.is_some() || self.journal.is_some() {
            return;
        }
        // Writes that were given up may linger; only a new attachment, for which the export is
        // made anew, is safe from them.
        if self.gave_up || self.w.rng.chance(70) {
            self.w.epoch += 1;
            self.config.host_nqn = host_nqn(self.w.epoch);
            let (content, size) = (self.w.target.content, self.w.target.size);
            if self.w.target.exported {
                self.w.target.exported = false;
                self.w.reset_links(true);
                self.w.target.export_on(content, size);
            }
        }
        self.gave_up = false;
        self.begin();
    }

    /// The record first, then the session. The agent may be killed between the two.
    pub(crate) fn begin(&mut self) {
        (self.w.users, self.w.may_fail, self.leaving) = (false, false, false);
        self.w.note(|| "attached".into());
        self.journal = Some(Record::new(self.boot, self.w.epoch));
        if self.w.rng.chance(10) {
            let pause = self.w.rng.range(100, 2_000);
            self.w.clock.after(pause, Due::AgentStarts);
        } else {
            self.start_agent();
        }
    }

    /// Unstage begins; it is repeated until it is done, whatever happens to the agent.
    pub(crate) fn leave(&mut self) {
        if self.machine.is_some() && !self.draining && !self.leaving {
            self.w.note(|| "unstage".into());
            (self.leaving, self.unmounted) = (true, false);
            self.plan_take_down(0, 1);
        }
    }

    pub(crate) fn plan_take_down(&mut self, step: u8, pause: u64) {
        self.w.clock.after(pause, Due::TakeDown(self.agent, step));
    }

    /// As task.rs does it: shield, record, controllers, record.
    pub(crate) fn take_down(&mut self, step: u8) {
        if self.machine.is_none() {
            return;
        }
        let waits = !self.w.flows() || self.w.has_unanswered_writes();
        if step == 0 && self.config.shield && self.w.users && waits && !self.w.may_fail {
            // Unmounting waits for what is to be written.
            return self.plan_take_down(0, REPEATED_AFTER);
        }
        self.gave_up |= self.w.may_fail;
        self.unmounted = true;
        self.w.users = false;
        self.drain(true);
        let done = match step {
            0 if self.action.is_some() => false,
            0 => {
                self.w.note(|| "the shield is removed".into());
                self.w.shield = None;
                true
            }
            1 => {
                if let Some(record) = self.journal.as_mut() {
                    record.phase = Phase::Detaching;
                }
                true
            }
            2 => self.controllers_deleted(),
            _ => {
                self.w.note(|| "detached".into());
                self.journal = None;
                self.forget_machine();
                self.leaving = false;
                let pause = self.w.rng.range(100, 5_000);
                self.w.clock.after(pause, Due::Stage);
                return;
            }
        };
        let pause = if done { self.w.rng.range(0, 100) } else { REPEATED_AFTER };
        self.plan_take_down(step + u8::from(done), pause);
    }

    fn controllers_deleted(&mut self) -> bool {
        for at in 0..self.w.ctrls.len() {
            let ctrl = &self.w.ctrls[at];
            if !ctrl.making && !ctrl.state.is_going() {
                let id = self.w.begin_delete(at);
                let lasts = self.w.rng.lasts(50, 30_000, 10);
                self.w.clock.after(lasts, Due::DeleteEnds(id));
            }
        }
        self.w.ctrls.is_empty()
    }

    /// Power off and on. Whoever gets the volume next decides when it is staged.
    pub(crate) fn reboot_host(&mut self) {
        self.kill_agent();
        self.w.note(|| "the host reboots".into());
        self.boot += 1;
        self.first_token = self.token + 1;
        self.w.ctrls.clear();
        (self.w.shield, self.w.users, self.leaving) = (None, false, false);
        // What was not sent yet is gone with its memory, and what had arrived is done before a
        // host is up again.
        self.w.target.old_writes.clear();
        let pause = self.w.rng.range(500, 20_000);
        self.w.clock.after(pause, Due::AgentStarts);
        let pause = pause + self.w.rng.range(1, 20_000);
        self.w.clock.after(pause, Due::Stage);
    }

    /// A session whose take-down was begun before the agent was killed is not built again.
    pub(crate) fn resume(&mut self, phase: Phase) {
        if phase == Phase::Detaching {
            self.draining = true;
            if let Some(machine) = self.machine.as_mut() {
                machine.step(Event::Drain { begun: true }, 0);
            }
            self.leaving = true;
        }
        self.unmounted = phase == Phase::Detaching;
        if self.leaving {
            let pause = self.w.rng.range(100, 2_000);
            self.plan_take_down(0, pause);
        }
    }
}
