//! Many volumes of one host, all lost at once.

use rds_csi_proto::agent::State;
use rds_node_agent::session::machine::{Config, Millis};

use crate::driver::{Gate, Sim};
use crate::prng::Rng;
use crate::world::World;

const VOLUMES: u64 = 256;
/// As the keeper has it.
const CONNECTS: u32 = 8;

/// What happened to them.
pub(crate) struct Fleet {
    pub(crate) peak_connects: u32,
    pub(crate) all_back_after: Millis,
    pub(crate) steps: u64,
}

pub(crate) fn appliance_reboots(seed: u64) -> Result<Fleet, String> {
    let gate = Gate::new(CONNECTS);
    let mut rng = Rng::new(seed);
    let gives_up = rng.chance(50);
    let mut sims: Vec<_> = (0..VOLUMES)
        .map(|volume| {
            let config = Config {
                host_nqn: String::new(),
                shield: true,
                keep_alive: 5_000,
                io_timeout: None,
                jitter: volume,
                shared: false,
                gate_after: 60_000,
            };
            let world = World::new(Rng::new(rng.next()), 5_000, gives_up, false);
            Sim::new(world, config, gate.clone())
        })
        .collect();

    let first = run_until(&mut sims, 120_000, |sims| sims.iter().all(is_live))?;
    for sim in &mut sims {
        // The portal first, the export a second later.
        sim.reboot_for(20_000, 21_000);
    }
    let back = run_until(&mut sims, first + 10_000, |_| false).err();
    debug_assert!(back.is_some(), "nothing can be live while the appliance is down");
    let lost = sims.iter().filter(|s| !is_live(s)).count() as u64;
    if lost != VOLUMES {
        return Err(format!("only {lost} volumes were lost"));
    }
    let from = first + 21_000;
    let all = run_until(&mut sims, from + 60_000, |sims| sims.iter().all(is_live))?;
    Ok(Fleet {
        peak_connects: CONNECTS - gate.least_free.get(),
        all_back_after: all.saturating_sub(from),
        steps: sims.iter().map(|s| s.steps).sum(),
    })
}

fn is_live(sim: &Sim) -> bool {
    sim.machine.as_ref().is_some_and(|m| m.state() == State::Live)
}

/// Lets the volumes' events happen in the order of their common time.
fn run_until(
    sims: &mut [Sim],
    limit: Millis,
    reached: impl Fn(&[Sim]) -> bool,
) -> Result<Millis, String> {
    loop {
        let next = sims.iter().enumerate().filter_map(|(i, s)| Some((s.w.clock.next_at()?, i)));
        let Some((now, first)) = next.min() else { return Err("nothing happens".into()) };
        if now > limit {
            let left = sims.iter().filter(|s| !is_live(s)).count();
            return Err(format!("{left} volumes are not live at {limit} ms"));
        }
        sims[first].next();
        if let Some(violation) = &sims[first].w.violation {
            return Err(format!("volume {first}: {violation}"));
        }
        if reached(sims) {
            return Ok(now);
        }
    }
}
