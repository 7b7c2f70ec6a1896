//! One seed's schedule: trouble, then calm in which the session must come back, again and
//! again.

use rds_csi_proto::agent::State;
use rds_node_agent::session::machine::{Config, Millis};

use crate::driver::{Gate, Sim};
use crate::journal::Record;
use crate::prng::Rng;
use crate::world::{World, host_nqn};

/// After faults have ended and all that was slow has, the session is live within this.
const BACK_WITHIN: Millis = 30_000;
const ROUNDS: u64 = 6;

/// How a schedule went.
pub(crate) struct Report {
    pub(crate) steps: u64,
    pub(crate) simulated: Millis,
    pub(crate) slowest_return: Millis,
    pub(crate) violation: Option<String>,
}

pub(crate) fn run(seed: u64, loud: bool) -> Report {
    let mut rng = Rng::new(seed);
    let keep_alive = rng.pick(&[1_000, 5_000, 5_000, 10_000]);
    let shield = !rng.chance(8);
    let config = Config {
        host_nqn: String::new(),
        shield,
        keep_alive,
        io_timeout: rng.pick(&[None, None, Some(1_000), Some(10_000), Some(60_000)]),
        jitter: rng.next(),
        shared: shield && rng.chance(25),
        gate_after: rng.pick(&[1_000, 60_000, Millis::MAX]),
    };
    let gives_up = rng.chance(50);
    if loud {
        println!("seed {seed}: {config:?}, {}", if gives_up { "6.12" } else { "6.1" });
    }
    let world = World::new(rng, keep_alive, gives_up, loud);
    let mut sim = Sim::new(world, config, Gate::new(8));
    let mut slowest_return = 0;
    for _ in 0..ROUNDS {
        let every = sim.w.rng.pick(&[300, 2_000, 10_000]);
        let until = sim.w.now() + sim.w.rng.range(5_000, 20 * every + 5_000);
        sim.make_trouble(every);
        while sim.w.violation.is_none() && sim.w.clock.next_at().is_some_and(|at| at < until) {
            sim.next();
        }
        if sim.w.violation.is_some() {
            break;
        }
        slowest_return = slowest_return.max(sim.comes_back());
        if sim.w.violation.is_some() {
            break;
        }
        if sim.fenced || sim.w.rng.chance(20) {
            sim.attach_anew();
        }
    }
    Report {
        steps: sim.steps,
        simulated: sim.w.now(),
        slowest_return,
        violation: sim.w.violation.take(),
    }
}

impl Sim {
    fn is_back(&self) -> bool {
        let live = self.machine.as_ref().is_some_and(|m| m.state() == State::Live);
        let queues = self.w.shield.as_ref().is_some_and(|s| s.queues);
        live && (!self.config.shield || (self.w.flows() && queues))
    }

    /// Ends the faults and waits. Returns how long it took.
    fn comes_back(&mut self) -> Millis {
        self.calm();
        let calm_since = self.w.now();
        let mut began = calm_since;
        let mut back_since = None;
        while self.w.violation.is_none() && self.next() {
            let now = self.w.now();
            if self.leaving || self.journal.is_none() {
                // Unstage ends, and the volume is staged again: then it is to come back.
                began = now;
                if now - calm_since > 3 * BACK_WITHIN {
                    self.w.violated("unstage does not end".into());
                }
                continue;
            }
            if self.fenced {
                // For good; it has to be shown to stay so.
                if now - began > 10_000 {
                    return 0;
                }
                continue;
            }
            if self.blocked {
                // Found just before the content was put right; somebody says so.
                self.reconnect_by_operator();
                began = now;
            }
            match (self.is_back(), back_since) {
                // It must stay so for a while.
                (true, Some(since)) if now - since > 3_000 => return since - began,
                (true, Some(_)) => {}
                (true, None) => back_since = Some(now),
                (false, _) => back_since = None,
            }
            if back_since.is_none() && now - began > BACK_WITHIN {
                let machine = self.machine.as_ref();
                let state = machine.map(|m| format!("{:?} ({})", m.state(), m.reason()));
                self.w.violated(format!("not live {BACK_WITHIN} ms after faults ended: {state:?}"));
            }
        }
        0
    }

    /// The volume is attached anew, with a new host NQN; what is left of the earlier
    /// attachment's controllers is in the way.
    fn attach_anew(&mut self) {
        self.kill_agent();
        self.w.epoch += 1;
        self.config.host_nqn = host_nqn(self.w.epoch);
        self.w.users = false;
        (self.w.shield, self.w.may_fail, self.leaving) = (None, false, false);
        self.w.note(|| "attached anew".into());
        self.journal = Some(Record::new(self.boot, self.w.epoch));
        self.start_agent();
    }
}
