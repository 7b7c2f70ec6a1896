//! Random sequences of CSI calls on four volumes at once, with repetitions, overlaps, wrong
//! orders, an agent that is killed and exports that go off: after each step the world must be
//! what a model says.
//!
//! - [`plan`] draws the steps from a seed and is the model;
//! - [`cast`] is the volumes and their calls, [`play`] makes the calls of a step;
//! - [`world`] looks at what there is, [`record`] at what is on the volumes.

mod cast;
mod plan;
mod play;
mod record;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;

use crate::csi::Csi;
use crate::demo::{no_devices, nothing_exported, status, taken_away};
use crate::process::tail;
use crate::report::Report;
use crate::stack::Stack;
use cast::Member;
use plan::{KINDS, Kind, Plan, Step};
use play::Answers;

/// From the last answer until the world is at rest: a session that was lost comes back
/// meanwhile, in an emulated guest.
const SETTLES: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Repeats a run; without it, another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// How many; the default takes about three minutes in an emulated guest.
    #[arg(long, default_value_t = 40)]
    steps: usize,
}

/// Runs it; true if all was as it should be.
pub(crate) async fn run(options: &Options) -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let steps = options.steps;
    let mut report = Report::new(&format!("chaos, Linux {kernel}"));
    report.say(format!("rds-scenario chaos --seed {seed} --steps {steps} repeats this"));
    let result = tell(&mut report, seed, steps).await;
    let result = result.with_context(|| format!("seed {seed}"));
    if !report.case(&format!("{steps} random steps end as the model says"), result) {
        println!("--- agent\n{}\n--- controller\n{}", tail("agent", 80), tail("controller", 20));
    }
    report.finish()
}

async fn tell(report: &mut Report, seed: u64, steps: usize) -> Result<()> {
    let mut stack = Stack::start().await?;
    let mut csi = stack.csi().await?;
    let mut cast = Vec::new();
    for kind in KINDS {
        cast.push(Member::create(&mut csi, kind).await?);
    }
    let (mut plan, mut answers) = (Plan::new(seed), Answers::new());
    for n in 1..=steps {
        let step = plan.step();
        report.say(format!("step {n}: {}", told(&step)));
        step_through(&mut stack, &csi, &mut cast, &step, &mut answers)
            .await
            .with_context(|| format!("step {n}: {}", told(&step)))?;
    }
    for (answer, count) in &answers {
        report.say(format!("{count:5} {answer}"));
    }
    end(report, stack, csi, cast).await
}

fn told(step: &Step) -> String {
    let acts = step.acts.iter().map(|(n, act)| format!("{:?} {act:?}", KINDS[*n]));
    let acts: Vec<_> = acts.collect();
    format!("{}; meanwhile {:?}", acts.join(", "), step.meanwhile)
}

async fn step_through(
    stack: &mut Stack,
    csi: &Csi,
    cast: &mut [Member],
    step: &Step,
    answers: &mut Answers,
) -> Result<()> {
    play::play(stack, csi, cast, step, answers).await?;
    settles(stack, cast).await?;
    for member in cast.iter_mut().filter(|m| m.state.staged) {
        content(stack, member).await.with_context(|| format!("{:?}", member.kind))?;
    }
    Ok(())
}

/// Waits until the world is as the model has it.
async fn settles(stack: &Stack, cast: &[Member]) -> Result<()> {
    let (began, wanted) = (Instant::now(), world::expected(cast));
    loop {
        let seen = world::seen(stack, cast)?;
        if seen == wanted {
            return Ok(());
        }
        let (missing, surplus) = (world::lacking(&wanted, &seen), world::lacking(&seen, &wanted));
        ensure!(
            began.elapsed() < SETTLES,
            "after {SETTLES:?} the world lacks {missing:#?} and has instead {surplus:#?}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads the record wherever the volume can be seen, and writes the next.
async fn content(stack: &Stack, member: &mut Member) -> Result<()> {
    let (kind, id) = (member.kind, member.volume.id.clone());
    let staged = match kind {
        Kind::Raw => {
            let status = stack.status(&id)?;
            PathBuf::from(status["device"].as_str().context("no device")?)
        }
        _ => member.volume.staging.clone(),
    };
    for path in std::iter::once(&staged).chain(&member.published()) {
        if member.generation > 0 {
            record::expect(kind, &id, path, member.generation).await?;
        }
    }
    record::write(kind, &id, &staged, member.generation + 1).await?;
    member.generation += 1;
    for path in member.published() {
        record::expect(kind, &id, &path, member.generation).await?;
        if kind == Kind::ReadOnly {
            record::expect_read_only(kind, &path).await?;
        }
    }
    Ok(())
}

async fn end(report: &mut Report, stack: Stack, mut csi: Csi, mut cast: Vec<Member>) -> Result<()> {
    for member in &mut cast {
        for path in member.published() {
            let volume = crate::csi::Volume { target: path, ..member.volume.clone() };
            csi.unpublish(&volume).await.map_err(status("unpublish at the end"))?;
        }
        taken_away(&mut csi, &member.volume).await?;
        member.state = plan::State::default();
        let generation = member.generation;
        report.say(format!("{:?}: {generation} records were read and replaced", member.kind));
    }
    no_devices()?;
    nothing_exported().await?;
    settles(&stack, &cast).await.context("at the end")?;
    stack.stop()
}
