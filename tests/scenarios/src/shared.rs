//! A volume whose nodes connect as the same host: the target admits whoever comes, so nothing
//! that waits may be written before it was asked whether this node still has the volume.
//!
//! No Kubernetes here: whoever answers stands in for the shim, and says what he is told to.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rds_csi_proto::agent::attachments_client::AttachmentsClient;
use rds_csi_proto::agent::{AttachmentAnswer, AttachmentVerdict};
use rds_csi_proto::context;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::csi::{Csi, Volume, channel, raw_block, with_retries};
use crate::demo::{no_devices, status};
use crate::faults::export_toggled;
use crate::process::tail;
use crate::report::Report;
use crate::stack::Stack;
use crate::writer::Writer;

const BYTES: i64 = 64 << 20;
/// From a cause until the agent has come to the point, in an emulated guest.
const SOON: Duration = Duration::from_secs(60);
/// How long it is watched that nothing happens.
const WATCHED: Duration = Duration::from_secs(4);

/// Runs it; true if all was as it should be.
pub(crate) async fn run() -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("a volume for two nodes, Linux {kernel}"));
    let result = match Story::begin().await {
        Ok(mut story) => {
            let told = story.tell(&mut report).await;
            told.and(story.stack.stop())
        }
        Err(error) => Err(error),
    };
    if !report.case("the story of the shared volume is told to its end", result) {
        println!("--- agent\n{}", tail("agent", 60));
    }
    report.finish()
}

/// What is answered, and how often it was.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<(AttachmentVerdict, u32)>>);

impl Answers {
    fn are(&self, verdict: AttachmentVerdict) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (verdict, 0);
    }

    fn given(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn next(&self) -> AttachmentVerdict {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.1 += 1;
        all.0
    }

    /// Answers for as long as the agent asks.
    async fn give(self, stack: &Stack) -> Result<()> {
        let (send, answers) = mpsc::channel(8);
        let mut client = AttachmentsClient::new(channel(&stack.dir.join("agent.sock")));
        let mut questions = client.answer(ReceiverStream::new(answers)).await?.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(question)) = questions.message().await {
                let verdict = match question.identity.get(context::ARRIVAL) {
                    Some(arrival) if arrival == ARRIVAL => self.next(),
                    other => bail!("asked for arrival {other:?}"),
                };
                let reason = format!("the stand-in says {}", verdict.as_str_name());
                let verdict = verdict.into();
                send.send(AttachmentAnswer { id: question.id, verdict, reason }).await?;
            }
            Ok(())
        });
        Ok(())
    }
}

const ARRIVAL: &str = "first-of-node-1";

struct Story {
    stack: Stack,
    csi: Csi,
    volume: Volume,
    answers: Answers,
}

impl Story {
    async fn begin() -> Result<Self> {
        let stack = Stack::start().await?;
        let mut csi = stack.csi().await?;
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let mut volume = csi
            .create(&name, BYTES, raw_block(), HashMap::new())
            .await
            .map_err(status("create"))?;
        csi.attach(&mut volume).await.map_err(status("attach"))?;
        // As a controller with Kubernetes gives it, for a volume that may have two nodes.
        volume.publish_context.insert(context::ARRIVAL.into(), ARRIVAL.into());
        Ok(Self { stack, csi, volume, answers: Answers::default() })
    }

    async fn tell(&mut self, report: &mut Report) -> Result<()> {
        let alone = self.csi.stage(&self.volume).await;
        let refused = alone.err().context("it was staged although nobody can be asked")?;
        ensure!(refused.message().contains("csi-shim"), "it said {refused}");

        self.answers.are(AttachmentVerdict::Exists);
        self.answers.clone().give(&self.stack).await?;
        with_retries("stage and publish", SOON, || {
            let (mut csi, volume) = (self.csi.clone(), self.volume.clone());
            async move { csi.mount(&volume).await }
        })
        .await
        .map_err(status("stage and publish"))?;
        ensure!(self.answers.given() > 0, "it was given to users without a question");
        let mut writer = Writer::start(&self.volume.target, true)?;
        writer.progress(20, SOON).await?;

        let result = self.waits(&writer, report).await;
        report.case("what is not known keeps a shared volume waiting", result);
        self.answers.are(AttachmentVerdict::Exists);
        let result = writer.progress(20, SOON).await;
        report.case("an attachment that exists lets its I/O go on", result);

        let result = self.is_shut_out(&writer, report).await;
        report.case("an attachment that is gone: what waited is never written", result);
        writer.stop(SOON).await?;
        with_retries("unpublish and unstage", SOON, || {
            let (mut csi, volume) = (self.csi.clone(), self.volume.clone());
            async move { csi.unmount(&volume).await }
        })
        .await
        .map_err(status("unpublish and unstage"))?;
        no_devices()?;
        self.csi.detach(&self.volume).await.map_err(status("detach"))?;
        self.csi.delete(&self.volume).await.map_err(status("delete"))?;
        Ok(())
    }

    fn seen(&self) -> Result<(String, String)> {
        let view = self.stack.status(&self.volume.id)?;
        let text = |key: &str| view[key].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("reason")))
    }

    async fn until(&self, what: &str, seen: impl Fn(&str, &str) -> bool) -> Result<()> {
        let began = Instant::now();
        loop {
            let (state, reason) = self.seen()?;
            if seen(&state, &reason) {
                return Ok(());
            }
            ensure!(began.elapsed() < SOON, "not {what} after {SOON:?}, but {state}: {reason}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The bytes as the appliance has them.
    fn disk(&self) -> Result<u32> {
        Ok(crc32fast::hash(&fs::read(self.stack.backing_file(&self.volume.id))?))
    }

    /// The session comes back, and the target lets it. Nothing goes on.
    async fn waits(&self, writer: &Writer, report: &Report) -> Result<()> {
        self.answers.are(AttachmentVerdict::Unknown);
        export_toggled(&self.stack, &[&self.volume], "1")?;
        self.until("waiting", |_, reason| reason.contains("is not known")).await?;
        let (last, disk) = (writer.last(), self.disk()?);
        tokio::time::sleep(WATCHED).await;
        // On a busy machine another question may be under way, or one may have had no answer.
        self.until("told why", |_, reason| reason.contains("the stand-in says UNKNOWN")).await?;
        let (state, reason) = self.seen()?;
        report.say(format!("{state}: {reason}"));
        ensure!(self.disk()? == disk, "something was written meanwhile");
        ensure!(writer.last() == last, "a write was acknowledged meanwhile");
        ensure!(writer.error().is_none(), "a write failed: {:?}", writer.error());
        Ok(())
    }

    /// The same, and the answer is no.
    async fn is_shut_out(&self, writer: &Writer, report: &Report) -> Result<()> {
        // Held at the gate first, so that what is on the disk is known before the answer.
        self.answers.are(AttachmentVerdict::Unknown);
        export_toggled(&self.stack, &[&self.volume], "1")?;
        self.until("waiting", |_, reason| reason.contains("is not known")).await?;
        let disk = self.disk()?;
        self.answers.are(AttachmentVerdict::Gone);
        self.until("fenced", |state, _| state == "Fenced").await?;
        let error = writer.fails(SOON).await?;
        let (_, reason) = self.seen()?;
        report.say(format!("fenced: {reason}; the waiting write ended with {error}"));
        ensure!(reason.contains("the stand-in says GONE"), "the reason is {reason:?}");
        ensure!(error.contains("os error 5"), "the waiting write ended with {error}");
        tokio::time::sleep(WATCHED).await;
        ensure!(self.disk()? == disk, "what had waited was written in the end");
        Ok(())
    }
}
