//! Random schedules against the pure session machine: a model of kernel and target, of
//! what goes wrong with them and with the agent, and what must hold at each step.
//!
//! ```text
//! cargo test --workspace --test session_simulation -- --nocapture
//! RDS_CSI_SIM_STEPS=50000000 cargo test …      more schedules
//! RDS_CSI_SIM_SEED=17 cargo test …             one schedule, with all that happens in it
//! ```
//!
//! What must hold: [`driver`], [`journal`] and [`world`] check it as it happens, [`rounds`] that a
//! session comes back once faults have ended.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod clock;
mod driver;
mod faults;
mod fleet;
mod journal;
mod prng;
mod rounds;
mod target;
mod work;
mod world;

use std::time::Instant;

const STEPS: u64 = 2_000_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_the_volume_is_safe_and_comes_back() {
    if let Some(seed) = number("RDS_CSI_SIM_SEED") {
        let report = rounds::run(seed, true);
        println!("seed {seed}: {} steps, {:?}", report.steps, report.violation);
        assert_eq!(report.violation, None);
        return;
    }
    let wanted = number("RDS_CSI_SIM_STEPS").unwrap_or(STEPS);
    let began = Instant::now();
    let (mut steps, mut simulated, mut slowest, mut seed) = (0, 0, (0, 0), 0);
    while steps < wanted {
        let report = rounds::run(seed, false);
        assert!(
            report.violation.is_none(),
            "seed {seed}, {}; RDS_CSI_SIM_SEED={seed} shows how it came about",
            report.violation.unwrap_or_default()
        );
        steps += report.steps;
        simulated += report.simulated;
        slowest = slowest.max((report.slowest_return, seed));
        seed += 1;
    }
    let took = began.elapsed();
    println!(
        "seeds 0..{seed}: {steps} steps, {} simulated hours in {took:.1?} ({:.0} steps a second); \
         slowest return {} ms after faults ended (seed {})",
        simulated / 3_600_000,
        steps as f64 / took.as_secs_f64(),
        slowest.0,
        slowest.1,
    );
}

#[test]
fn many_volumes_come_back_with_few_connects_at_a_time() {
    for seed in 0..2 {
        let fleet = fleet::appliance_reboots(seed).unwrap();
        println!(
            "seed {seed}: 256 volumes back after {} ms, at most {} connects at once, {} steps",
            fleet.all_back_after, fleet.peak_connects, fleet.steps
        );
        assert!(fleet.peak_connects <= 8 && fleet.peak_connects > 1, "{}", fleet.peak_connects);
        assert!(fleet.all_back_after < 30_000, "{} ms", fleet.all_back_after);
    }
}
