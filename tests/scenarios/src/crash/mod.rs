//! The agent is killed at each of its named points, started again, and the call repeated, as
//! kubelet does: the end must be the same as without.
//!
//! [`world`] tells what there is of a volume, so that two ends can be compared; [`life`]
//! takes a volume through its calls under an agent that is to die; [`outage`] kills the agent
//! while it brings sessions back under writers.

mod life;
mod outage;
mod world;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use crate::process::{run as command, sibling, tail};
use crate::report::Report;
use crate::stack::Stack;
use life::{Kind, Life};

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One life of each kind, in which the agent dies once at each point.
    Once,
    /// Then also a life for each point, and for each change of the journal.
    Each,
}

/// Points that a volume without a file system does not pass.
const WITH_A_FILE_SYSTEM: &[&str] = &[
    "mkfs.recorded",
    "mkfs.done",
    "stage.content",
    "mount.recorded",
    "mount.directory",
    "mount.done",
    "publish.grouped",
    "publish.sealed",
    "expand.grown",
];
/// More changes of the journal than this one life does not make.
const MOST_CHANGES: u32 = 40;

/// True if all ended as it should.
pub(crate) async fn run(extent: Extent, only: Option<&str>) -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("agent killed, Linux {kernel}"));
    let result = tell(&mut report, extent, only).await;
    if result.is_err() {
        report.case("the story is told to its end", result);
        println!("--- agent\n{}", tail("agent", 60));
    }
    report.finish()
}

async fn tell(report: &mut Report, extent: Extent, only: Option<&str>) -> Result<()> {
    let points = points()?;
    if let Some(name) = only {
        ensure!(
            points.iter().any(|p| p == name),
            "there is no crash point {name:?}; there are {points:?}"
        );
    }
    let mut stack = Stack::start().await?;
    for kind in [Kind::Filesystem, Kind::Raw] {
        let reference = Life::new(&mut stack, kind).uninterrupted().await;
        let reference = reference.with_context(|| format!("{kind:?} without a crash"))?;
        if only.is_none() {
            let began = Instant::now();
            let passed = Life::new(&mut stack, kind).dying_at_each(&points, &reference).await;
            let result = passed.and_then(|passed| all_passed(&points, kind, &passed));
            report.say(format!("{kind:?}: {:.0} s", began.elapsed().as_secs_f64()));
            let fine = report.case(&format!("{kind:?}: once at each point, one life"), result);
            ensure!(fine, "the volume may be left in the way");
        }
        if extent == Extent::Each || only.is_some() {
            let wanted = |p: &&str| only.is_none_or(|only| only == *p);
            for point in expected(&points, kind).filter(wanted) {
                each(report, &mut stack, kind, &reference, point).await?;
            }
        }
    }
    outage::run(report, &mut stack, only).await?;
    report.case("everything ends when told to", stack.stop());
    Ok(())
}

/// As the agent itself lists them.
fn points() -> Result<Vec<String>> {
    let agent = sibling("rds-node-agent-crash")?;
    let listed = command(&[agent.to_str().context("path")?, "crash-points"])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn expected(points: &[String], kind: Kind) -> impl Iterator<Item = &str> {
    points
        .iter()
        .map(String::as_str)
        .filter(move |p| kind == Kind::Filesystem || !WITH_A_FILE_SYSTEM.contains(p))
}

/// A point that nothing passes proves nothing.
fn all_passed(points: &[String], kind: Kind, passed: &BTreeSet<String>) -> Result<()> {
    let missed: Vec<_> = expected(points, kind).filter(|p| !passed.contains(*p)).collect();
    ensure!(missed.is_empty(), "never passed: {missed:?}");
    Ok(())
}

/// A life of its own for this point; if it is one of the journal's, for each change.
async fn each(
    report: &mut Report,
    stack: &mut Stack,
    kind: Kind,
    reference: &life::Ends,
    point: &str,
) -> Result<()> {
    let most = if point.starts_with("journal.") { MOST_CHANGES } else { 1 };
    let mut times = 0;
    let result = loop {
        match Life::new(stack, kind).dying_at(point, times + 1, reference).await {
            Ok(true) => times += 1,
            Ok(false) if times == 0 => break Err(anyhow!("never passed")),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error.context(format!("passage {}", times + 1))),
        }
        if times >= most {
            break Ok(());
        }
    };
    let fine = report.case(&format!("{kind:?}: {point}, {times} times"), result);
    ensure!(fine, "the volume may be left in the way");
    Ok(())
}
