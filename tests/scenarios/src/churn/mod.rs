//! Many lives of volumes at once: 64 cycles of stage, publish, unpublish and unstage on 32
//! volumes, two pods on each. Then nothing may be left of them, in the kernel or in the agent.
//! [`footprint`] is what is counted, [`busy`] is the search for users among many processes.

mod busy;
mod footprint;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use tonic::{Code, Status};

use crate::csi::{Csi, Volume, filesystem, raw_block};
use crate::demo::{no_devices, nothing_exported, status, taken_away};
use crate::process::tail;
use crate::report::Report;
use crate::stack::Stack;
use footprint::Footprint;

const VOLUMES: usize = 32;
/// Every so many volumes one has a file system: an emulated guest makes few of them a second.
const FILESYSTEM_EACH: usize = 4;
const BYTES: i64 = 16 << 20;
const PODS: usize = 2;
/// The first makes the agent as large as it has to be for so many calls at once: what stays
/// in its allocator then is no leak. What the second one adds would be.
const ROUNDS: usize = 2;
/// For creating and deleting: the sidecars make so many calls at a time.
const AT_ONCE: usize = 8;
/// A deadlock, by any other name: a round of 64 takes a minute or two in an emulated guest.
const ROUND: Duration = Duration::from_secs(400);
/// A call that is told to come again, by a pod that has the volume at the same time.
const CALL: Duration = Duration::from_secs(300);
/// Between a refusal and the next try, twice as long each time, as kubelet does: 64 callers that
/// only ask again would have an emulated guest to themselves.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// As CI runs it: one round, whose memory nothing is compared with, and no crowd of
    /// processes.
    #[arg(long)]
    ci: bool,
}

/// Runs it; true if all was as it should be.
pub(crate) async fn run(options: &Options) -> bool {
    let rounds = if options.ci { 1 } else { ROUNDS };
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("churn, Linux {kernel}"));
    let mut churn = match Churn::begin(&report).await {
        Ok(churn) => churn,
        Err(error) => {
            report.case("all are attached", Err(error));
            println!("--- agent\n{}", tail("agent", 40));
            return report.finish();
        }
    };
    let turned = churn.turn(&report, rounds).await;
    let fine = report.case("64 cycles at once on 32 volumes leave nothing behind", turned);
    if !fine {
        println!("--- agent\n{}", tail("agent", 60));
    }
    if !options.ci {
        let found = busy::told(&report, &churn.csi, &mut churn.volumes).await;
        report.case("a user among 2,000 processes is named", found);
    }
    let end = churn.end().await;
    report.case("all are taken away", end);
    report.finish()
}

struct Churn {
    stack: Stack,
    csi: Csi,
    volumes: Vec<Volume>,
}

impl Churn {
    async fn begin(report: &Report) -> Result<Self> {
        let stack = Stack::start().await?;
        let csi = stack.csi().await?;
        let volumes = futures::stream::iter(0..VOLUMES)
            .map(|n| attached(csi.clone(), n))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        report.say(format!("{VOLUMES} volumes are attached"));
        Ok(Self { stack, csi, volumes })
    }

    async fn turn(&mut self, report: &Report, rounds: usize) -> Result<()> {
        let before = Footprint::of(&self.stack)?;
        report.say(format!("before: {before}"));
        let mut warm = before;
        for round in 1..=rounds {
            let began = Instant::now();
            let answers = tokio::time::timeout(ROUND, self.round())
                .await
                .with_context(|| format!("round {round} has not ended after {ROUND:?}"))??;
            report.say(format!(
                "round {round}: {} cycles in {:.0?}: {answers:?}",
                VOLUMES * PODS,
                began.elapsed()
            ));
            let after = footprint::at_rest(&self.stack, &before).await?;
            report.say(format!("after it: {after}"));
            if round == 1 {
                warm = after;
            }
            after.expect_no_more_than(&before, &warm, &self.stack)?;
        }
        no_devices()
    }

    /// Each volume by two pods at once.
    async fn round(&self) -> Result<Answers> {
        let mut cycles = tokio::task::JoinSet::new();
        for volume in &self.volumes {
            for pod in 1..=PODS {
                let target = volume.target.display().to_string();
                let target = target.replacen("pod-1", &format!("pod-{pod}"), 1).into();
                let volume = Volume { target, ..volume.clone() };
                let cycle = Cycle { csi: self.csi.clone(), volume, answers: Answers::new() };
                cycles.spawn(cycle.live());
            }
        }
        let mut answers = Answers::new();
        while let Some(cycle) = cycles.join_next().await {
            for (answer, count) in cycle.context("a task panicked")?? {
                *answers.entry(answer).or_default() += count;
            }
        }
        Ok(answers)
    }

    async fn end(self) -> Result<()> {
        let Self { stack, csi, volumes } = self;
        futures::stream::iter(volumes)
            .map(|volume| {
                let mut csi = csi.clone();
                async move { taken_away(&mut csi, &volume).await }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        no_devices()?;
        nothing_exported().await?;
        stack.stop()
    }
}

async fn attached(mut csi: Csi, n: usize) -> Result<Volume> {
    let name = format!("pvc-{}", uuid::Uuid::new_v4());
    let capability =
        if n.is_multiple_of(FILESYSTEM_EACH) { filesystem("ext4") } else { raw_block() };
    let created = csi.create(&name, BYTES, capability, HashMap::new()).await;
    let mut volume = created.map_err(status("create"))?;
    csi.attach(&mut volume).await.map_err(status("attach"))?;
    Ok(volume)
}

/// How often each answer came.
type Answers = BTreeMap<String, u32>;

/// One pod's life on a volume.
struct Cycle {
    csi: Csi,
    volume: Volume,
    answers: Answers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Stage,
    Publish,
    Unpublish,
    Unstage,
}

impl Cycle {
    /// The other pod's unstage may come between this one's stage and publish; then it is
    /// staged again. Whoever is last unstages.
    async fn live(mut self) -> Result<Answers> {
        let began = Instant::now();
        loop {
            self.until(Call::Stage, &[]).await?;
            if self.until(Call::Publish, &[Code::FailedPrecondition]).await? {
                break;
            }
            ensure!(began.elapsed() < CALL, "it is unstaged again and again");
        }
        self.until(Call::Unpublish, &[]).await?;
        self.until(Call::Unstage, &[Code::FailedPrecondition]).await?;
        Ok(self.answers)
    }

    /// Repeats a call until it is done, or refused for a reason that the other pod is.
    async fn until(&mut self, call: Call, other_pod: &[Code]) -> Result<bool> {
        let began = Instant::now();
        let mut pause = PAUSE;
        loop {
            let answer = self.make(call).await;
            let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
            *self.answers.entry(format!("{call:?} {code:?}")).or_default() += 1;
            match answer {
                Ok(()) => return Ok(true),
                Err(status) if other_pod.contains(&status.code()) => return Ok(false),
                Err(status) => {
                    let (id, text) = (&self.volume.id, status.message());
                    // A session that is not there in time, since 31 others are made meanwhile.
                    let is_slow = code == Code::Unavailable && call == Call::Stage;
                    ensure!(code == Code::Aborted || is_slow, "{call:?} of {id}: {code:?}: {text}");
                    ensure!(began.elapsed() < CALL, "{call:?} of {id} is never its turn: {text}");
                }
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn make(&mut self, call: Call) -> Result<(), Status> {
        match call {
            Call::Stage => self.csi.stage(&self.volume).await,
            Call::Publish => self.csi.publish(&self.volume).await,
            Call::Unpublish => self.csi.unpublish(&self.volume).await,
            Call::Unstage => self.csi.unstage(&self.volume).await,
        }
    }
}
