//! The fault matrix: three volumes (ext4, xfs, raw block) and their writers live through
//! every fault there is, in one boot. No write may fail, none of the writers is restarted.
//!
//! - [`scene`] is who is on the stage and what must hold after each fault; [`subject`] is
//!   one volume with its writer; [`root`] is a subsystem of the host's own, which nobody may
//!   touch;
//! - [`link`], [`target`], [`host`] and [`agent`] are the faults by where they happen;
//!   [`fleet`], [`content`] and [`endings`] need volumes of their own;
//! - [`scrapes`] asks for the agent's numbers all the while;
//! - [`rows`] is what was seen; [`table`] makes a page of the rows of several runs.

mod agent;
mod content;
mod endings;
mod fleet;
mod host;
mod link;
mod root;
mod rows;
mod scene;
mod scrapes;
mod subject;
pub(crate) mod table;
mod target;

use anyhow::{Context, Result, anyhow, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::process::tail;
use crate::report::Report;
use rows::Run;
use scene::Scene;
use scrapes::Scrapes;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these, in their usual order.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Those that CI runs on each push: what the demo does not show already.
    #[arg(long, conflicts_with = "only")]
    ci: bool,
}

/// What a fault must have done to the three volumes: one that did nothing proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Each lost its session.
    Lost,
    /// Each stood still for so many seconds at least.
    Stalled(u64),
    /// Nothing was lost.
    Spared,
    /// The kernel said that it was done, and only the agent can have undone it; perhaps so
    /// soon that nobody noticed.
    Certain,
    /// It was meant for other volumes.
    Elsewhere,
}

/// When it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Not in CI.
    Full,
}

type Inflict = for<'a> fn(&'a mut Scene) -> LocalBoxFuture<'a, Result<String>>;

/// A line of the matrix.
struct Case {
    name: &'static str,
    title: &'static str,
    when: When,
    effect: Effect,
    /// Returns when the cause is over, with what else is worth telling.
    inflict: Inflict,
}

macro_rules! case {
    ($name:literal, $title:literal, $when:ident, $effect:expr, $inflict:expr) => {
        Case {
            name: $name,
            title: $title,
            when: When::$when,
            effect: $effect,
            inflict: |scene| $inflict(scene).boxed_local(),
        }
    };
}

use Effect::{Certain, Elsewhere, Lost, Spared, Stalled};

#[rustfmt::skip]
const CASES: &[Case] = &[
    case!("portal-first", "portal up before the exports (Do-Not-Retry)", Full, Lost, target::portal_first),
    case!("packets-5s", "packets dropped, 5 s", Full, Stalled(4), link::packets_5s),
    case!("packets-90s", "packets dropped, 90 s", Full, Lost, link::packets_90s),
    case!("reset", "connections reset", Full, Lost, link::reset),
    case!("refused", "portal refuses TCP, 15 s", Full, Lost, link::refused),
    case!("deleted", "controllers deleted on the host", Full, Lost, host::controllers_deleted),
    case!("namespace", "namespace removed and added on the target", Always, Lost, target::namespace_removed),
    case!("identity", "identity changed (export toggled)", Full, Lost, target::identity_changed),
    case!("export-off", "export off, 60 s", Full, Lost, target::export_off),
    case!("grown", "volume grown during an outage", Always, Lost, target::grown),
    case!("udevd", "udevd stopped while the export is toggled", Always, Lost, host::udevd_stopped),
    case!("suspended", "dm devices suspended by somebody else", Always, Certain, host::suspended),
    case!("by-hand", "reconnected by hand, many times at once", Full, Lost, host::reconnected_by_hand),
    case!("second-controller", "a second controller made by hand, while live", Always, Elsewhere, host::second_controller),
    case!("agent-killed", "agent killed (SIGKILL) during an outage", Full, Stalled(8), agent::killed),
    case!("agent-upgraded", "agent upgraded, while live", Full, Spared, agent::upgraded),
    case!("agent-upgraded-lost", "agent upgraded during an outage", Always, Stalled(8), agent::upgraded_in_outage),
    case!("journal-deleted", "journal deleted during operation", Full, Lost, agent::journal_deleted),
    case!("disk-full", "disk of the state directory full", Always, Lost, agent::disk_full),
    case!("disk-full-killed", "the same, and the agent killed meanwhile", Full, Stalled(4), agent::disk_full_killed),
    case!("fenced", "target refuses the host (fenced)", Full, Lost, endings::refused_by_target),
    case!("fenced-queued", "fenced while writes are queued", Full, Elsewhere, endings::fenced_while_queued),
    case!("foreign", "another volume's namespace under our name", Always, Elsewhere, content::foreign),
    case!("fleet-at-once", "16 more volumes, all lost at once (appliance reboots)", Full, Lost, fleet::at_once),
    case!("fleet-staggered", "16 more volumes, exports return one by one", Full, Lost, fleet::staggered),
    case!("io-timeout", "ioTimeoutSeconds 10, beside a volume that waits", Always, Elsewhere, endings::io_timeout),
    case!("fail", "`rds-node-agent fail` during an outage", Full, Elsewhere, endings::failed_by_hand),
];

fn chosen(options: &Options) -> Result<Vec<&'static Case>> {
    for name in &options.only {
        let known = || CASES.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
        ensure!(CASES.iter().any(|c| c.name == *name), "no fault {name:?}; there are {}", known());
    }
    let wanted = |case: &&Case| {
        if options.ci {
            case.when == When::Always
        } else {
            options.only.is_empty() || options.only.iter().any(|n| n == case.name)
        }
    };
    Ok(CASES.iter().filter(wanted).collect())
}

/// Runs them; true if all was as it should be.
pub(crate) async fn run(options: Options) -> bool {
    let mut run = Run::new();
    let mut report = Report::new(&format!("matrix, {}", run.title()));
    match chosen(&options) {
        Ok(cases) => play(&cases, &mut run, &mut report).await,
        Err(error) => {
            report.case("the faults are known", Err(error));
        }
    }
    println!("\n{}", table::of_one(&run));
    let saved = run.save();
    report.case("the rows are written down", saved);
    report.finish()
}

async fn play(cases: &[&Case], run: &mut Run, report: &mut Report) {
    let mut scene = match Scene::begin(report).await {
        Ok(scene) => scene,
        Err(error) => {
            run.end(report, "everything starts", Err(error));
            println!("--- agent\n{}", tail("agent", 40));
            return;
        }
    };
    let scrapes = Scrapes::begin();
    for case in cases {
        report.say(format!("fault: {}", case.title));
        let (mut row, result) = scene.live_through(case).await;
        row.verdict = result.as_ref().err().map(|error| format!("{error:#}"));
        report.say(row.summary());
        run.rows.push(row);
        // Also for a guest that does not live to the end.
        let _ = run.save();
        if !report.case(case.name, result) {
            println!("--- agent\n{}", tail("agent", 60));
            scene.mend().await;
        }
        if let Some(error) = scene.first_error() {
            let rest = anyhow!("a write failed ({error}): what follows would prove nothing");
            run.end(report, "all faults", Err(rest));
            break;
        }
    }
    let numbers = scrapes.end().and_then(|told| {
        report.say(format!("/metrics: {told}"));
        if cases.iter().any(|c| c.effect == Lost) { told.expect_outage() } else { Ok(()) }
    });
    report.case("its numbers are told at once, whole and never falling", numbers);
    scene.close(run, report).await.unwrap_or_else(|error| {
        run.end(report, "everything ends", Err(error.context("at the end")));
        println!("--- agent\n{}\n--- controller\n{}", tail("agent", 60), tail("controller", 20));
    });
}

/// A number of a JSON object, as the agent prints them.
fn number(value: &serde_json::Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("no {key} in {value}"))
}
