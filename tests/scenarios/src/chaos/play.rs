//! One step: all of its calls at once, each repeated as kubelet would, while something
//! happens; with what each answer must be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tonic::{Code, Status};

use super::cast::Member;
use super::plan::{Act, Call, Meanwhile, Step};
use crate::csi::Csi;
use crate::stack::Stack;

/// All repetitions of a call.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(200);
/// Between an agent's death and the next one's start.
const DOWN: Duration = Duration::from_millis(300);

/// How often each answer came, for the sum at the end.
pub(super) type Answers = BTreeMap<String, u32>;

/// What may come in the way of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    /// The agent dies, or the volume's export goes off.
    Outage,
}

struct Player {
    member: Member,
    csi: Csi,
    trouble: Trouble,
    answers: Answers,
}

/// Carries out a step; afterwards the members are as the calls have left them.
pub(super) async fn play(
    stack: &mut Stack,
    csi: &Csi,
    cast: &mut [Member],
    step: &Step,
    answers: &mut Answers,
) -> Result<()> {
    let trouble_of = |n: usize| match step.meanwhile {
        Meanwhile::AgentKilled { .. } => Trouble::Outage,
        Meanwhile::ExportToggled { volume, .. } if volume == n => Trouble::Outage,
        _ => Trouble::None,
    };
    let acts = step.acts.iter().map(|(n, act)| {
        let member = cast[*n].clone();
        let (trouble, answers) = (trouble_of(*n), Answers::new());
        let player = Player { member, csi: csi.clone(), trouble, answers };
        let what = format!("{act:?} of {:?}", cast[*n].kind);
        (*n, what, tokio::spawn(player.act(*act)))
    });
    let acts: Vec<_> = acts.collect();
    let happened = happen(stack, cast, step.meanwhile).await;
    for (n, what, act) in acts {
        let (member, own) = act.await.context("a task panicked")?.context(what)?;
        cast[n].volume = member.volume;
        for (answer, count) in own {
            *answers.entry(answer).or_default() += count;
        }
    }
    for (member, state) in cast.iter_mut().zip(step.states) {
        member.state = state;
    }
    happened
}

async fn happen(stack: &mut Stack, cast: &[Member], meanwhile: Meanwhile) -> Result<()> {
    match meanwhile {
        Meanwhile::Nothing => Ok(()),
        Meanwhile::AgentKilled { after_ms } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            stack.kill_agent()?;
            tokio::time::sleep(DOWN).await;
            stack.restart_agent().await
        }
        Meanwhile::ExportToggled { volume, after_ms } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let id = &cast[volume].volume.id;
            stack.order(&["export-toggle", id, "--off-for", "1"]).map(drop)
        }
    }
}

impl Player {
    async fn act(mut self, act: Act) -> Result<(Member, Answers)> {
        match act {
            Act::Once(call) => self.until_done(call, false).await?,
            Act::Again(call) => {
                self.until_done(call, false).await?;
                self.until_done(call, false).await?;
            }
            Act::Both(one, two) => {
                let mut other = self.twin();
                let (first, second) =
                    tokio::join!(self.until_done(one, true), other.until_done(two, true));
                first.and(second)?;
                if matches!(two, Call::Attach | Call::Detach) {
                    self.member.volume = other.member.volume.clone();
                }
                self.join(other);
            }
            Act::Against(one, two) => {
                let mut other = self.twin();
                let first = self.member.make(&mut self.csi, one);
                let second = other.member.make(&mut other.csi, two);
                let (first, second) = tokio::join!(first, second);
                for (call, answer) in [(one, first), (two, second)] {
                    self.note(call, &answer);
                    if let Err(status) = answer {
                        self.expect_retryable(call, &status, true)?;
                    }
                }
                self.until_done(two, false).await?;
                self.join(other);
            }
            Act::Refused(call, code) => {
                self.until_refused(call, code).await?;
                self.until_refused(call, code).await?;
            }
        }
        Ok((self.member, self.answers))
    }

    fn twin(&self) -> Self {
        let (member, csi) = (self.member.clone(), self.csi.clone());
        Self { member, csi, trouble: self.trouble, answers: Answers::new() }
    }

    fn join(&mut self, other: Self) {
        for (answer, count) in other.answers {
            *self.answers.entry(answer).or_default() += count;
        }
    }

    fn note(&mut self, call: Call, answer: &Result<(), Status>) {
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        let name = format!("{call:?}").split('(').next().unwrap_or_default().to_owned();
        *self.answers.entry(format!("{name} {code:?}")).or_default() += 1;
    }

    /// Repeats the call while its answer says that this may help.
    async fn until_done(&mut self, call: Call, mut overlaps: bool) -> Result<()> {
        let began = Instant::now();
        loop {
            let answer = self.member.make(&mut self.csi, call).await;
            self.note(call, &answer);
            let Err(status) = answer else { return Ok(()) };
            self.expect_retryable(call, &status, overlaps)?;
            ensure!(began.elapsed() < PATIENCE, "{call:?} does not succeed: {status}");
            // What was given up on may still go on.
            overlaps = true;
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn expect_retryable(&self, call: Call, status: &Status, overlaps: bool) -> Result<()> {
        let trouble = self.trouble == Trouble::Outage;
        let legal = match status.code() {
            Code::Aborted => overlaps,
            Code::Unavailable | Code::DeadlineExceeded => trouble,
            // What an agent that was killed has left behind is still there, such as its mkfs.
            Code::FailedPrecondition => trouble,
            _ => false,
        };
        if legal {
            println!(
                "  {:?}: {call:?}: {:?}: {}",
                self.member.kind,
                status.code(),
                status.message()
            );
            return Ok(());
        }
        bail!("{call:?} was answered with {:?}: {}", status.code(), status.message())
    }

    /// The refusal must be this one; while the agent is away there is none.
    async fn until_refused(&mut self, call: Call, code: Code) -> Result<()> {
        let began = Instant::now();
        loop {
            let answer = self.member.make(&mut self.csi, call).await;
            self.note(call, &answer);
            let Err(status) = answer else { bail!("{call:?} was accepted") };
            if status.code() == code {
                return Ok(());
            }
            let away = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
            let (found, text) = (status.code(), status.message());
            ensure!(
                away && self.trouble == Trouble::Outage,
                "{call:?} was refused with {found:?} instead of {code:?}: {text}"
            );
            ensure!(began.elapsed() < PATIENCE, "{call:?}: only {found:?}: {text}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}
