//! A raw block volume that two nodes have for a while, as QEMU uses it: one writes at a time.
//! There and back, too long, and with the death of the source and of the target.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rds_csi_proto::csi::volume_capability::access_mode::Mode;
use rds_csi_proto::csi::volume_capability::{AccessType, BlockVolume};
use tonic::Code;

use super::Seen;
use super::cut_off::{Victim, take_over};
use super::pair::{Node, PLACES, Pair, RECOVERY};
use crate::csi::{Volume, capability};
use crate::report::Report;
use crate::writer::{Writer, overwritten};

/// The least that `migrationTimeoutSeconds` may be.
const LIMIT: Duration = Duration::from_secs(30);
/// Records after which I/O flows.
const FLOWING: u64 = 20;
const PAUSE_MS: u64 = 5;

pub(super) async fn tell(pair: &Pair, report: &mut Report, seen: &mut Seen) -> Result<()> {
    let stuck = Stuck::begin(pair).await.context("a volume for a migration that is stuck")?;
    report.say("a volume is attached to both nodes, and its migration will not end");
    let volume = pair.create(shared(), &[("allowSharedBlock", "true")]).await?;
    let there = pair.give(&volume, Node::Second).await?;
    let mut writer = pair.writer(&there, Node::Second, PAUSE_MS, PLACES, 1)?;
    writer.progress(FLOWING, RECOVERY).await?;

    let result = moved(pair, report, seen, &there, Node::First, writer).await;
    let (here, back);
    (here, writer) = passed(report, "a writer moves to the other node", result)?;
    let result = moved(pair, report, seen, &here, Node::Second, writer).await;
    (back, writer) = passed(report, "and back", result)?;
    let result = stuck.end(pair, report, seen).await;
    passed(report, "a migration over its limit is told of, and not torn down", result)?;
    let result = source_cut_off(pair, report, seen, &back, writer).await;
    let here = passed(report, "the source is cut off, the target goes on alone", result)?;
    let result = target_dies(pair, report, seen, &here).await;
    passed(report, "the target dies, the source goes on", result)?;
    pair.unmount(&here, Node::First).await?;
    pair.detach(&here, Node::First).await?;
    pair.nothing_left(Node::First)?;
    pair.delete(&here).await
}

fn passed<T>(report: &mut Report, name: &str, result: Result<T>) -> Result<T> {
    match result {
        Ok(value) => {
            report.case(name, Ok(()));
            Ok(value)
        }
        Err(error) => {
            report.case(name, Err(error));
            anyhow::bail!("without that the rest proves nothing")
        }
    }
}

fn shared() -> rds_csi_proto::csi::VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::MultiNodeMultiWriter)
}

/// The node that is not this one.
fn other(node: Node) -> Node {
    match node {
        Node::First => Node::Second,
        Node::Second => Node::First,
    }
}

/// Attached to both, the writer stops and flushes on the source, goes on from there on the
/// target, and the source lets go. Gives the volume as the target has it, and its writer.
async fn moved(
    pair: &Pair,
    report: &Report,
    seen: &mut Seen,
    at_source: &Volume,
    target: Node,
    mut writer: Writer,
) -> Result<(Volume, Writer)> {
    let source = other(target);
    let before = pair.migrations("success")?;
    let joined = Instant::now();
    let at_target = pair.give(at_source, target).await?;
    writer.progress(FLOWING, RECOVERY).await.context("the source, while the target came")?;
    let came = writer.longest_stall(joined, Instant::now());
    writer.stop(RECOVERY).await?;
    let (last, error) = (writer.last(), writer.error());
    ensure!(error.is_none(), "a write of the source failed: {error:?}");
    let file = pair.stack.backing_file(&at_source.id);
    let lost = overwritten(&file, PLACES, [1, last])?;
    ensure!(lost == 0, "{lost} records of the source are not on the disk");

    let writer = pair.writer(&at_target, target, PAUSE_MS, PLACES, last + 1)?;
    writer.progress(FLOWING, RECOVERY).await.context("the target")?;
    pair.unmount(at_source, source).await?;
    let left = Instant::now();
    pair.detach(at_source, source).await?;
    writer.progress(PLACES, RECOVERY).await.context("the target, after the source left")?;
    let stall = writer.longest_stall(left, Instant::now());
    pair.nothing_left_of(at_source, source)?;
    ensure!(pair.migrations("success")? == before + 1, "no success was counted");
    let (from, to) = (source.name(), target.name());
    report.say(format!("{from} to {to}: {came:.1?} when it came, {stall:.1?} when it left"));
    seen.add(
        &format!("a writer moves from {from} to {to}"),
        format!("no error; still for {came:.1?} at the attach, {stall:.1?} at the detach"),
        None,
    );
    Ok((at_target, writer))
}

/// Two nodes have a volume for longer than they may.
struct Stuck {
    here: Volume,
    there: Volume,
    writer: Writer,
    began: Instant,
}

impl Stuck {
    async fn begin(pair: &Pair) -> Result<Self> {
        let limit = LIMIT.as_secs().to_string();
        let parameters = [("allowSharedBlock", "true"), ("migrationTimeoutSeconds", &limit)];
        let volume = pair.create(shared(), &parameters).await?;
        let here = pair.give(&volume, Node::First).await?;
        let writer = pair.writer(&here, Node::First, 200, PLACES, 1)?;
        let there = pair.give(&volume, Node::Second).await?;
        Ok(Self { here, there, writer, began: Instant::now() })
    }

    async fn end(mut self, pair: &Pair, report: &Report, seen: &mut Seen) -> Result<()> {
        let over = LIMIT + Duration::from_secs(2);
        tokio::time::sleep(over.saturating_sub(self.began.elapsed())).await;
        let mut csi = pair.csi(Node::First);
        let third = csi.attach_to(&self.here, "node-3").await;
        let refused = third.err().context("a third node got the volume")?;
        let text = refused.message();
        ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
        let lasted = text.split_once("has lasted ").and_then(|(_, rest)| rest.split_once(" s"));
        let lasted: u64 = lasted.with_context(|| text.to_owned())?.0.parse()?;
        ensure!(lasted >= LIMIT.as_secs(), "it says {lasted} s");
        for told in ["its limit is 30 s", "node-1", "node-2", "cancel it"] {
            ensure!(text.contains(told), "{told:?} is not in: {text}");
        }
        report.say(format!("node-3 is refused: {text}"));
        // A retry of those who have it is no further attachment, and what runs goes on.
        let again = csi.attach_to(&self.there, Node::Second.name()).await;
        let again = again.map_err(crate::demo::status("a retry of node-2"))?;
        ensure!(again == self.there.publish_context, "a retry changed the attachment");
        for (volume, node) in [(&self.here, Node::First), (&self.there, Node::Second)] {
            let view = pair.status(volume, node)?;
            ensure!(view["state"] == "Live", "{} is torn down: {view}", node.name());
        }
        self.writer.progress(5, RECOVERY).await?;
        self.writer.stop(RECOVERY).await?;
        ensure!(self.writer.error().is_none(), "a write failed: {:?}", self.writer.error());
        let before = pair.migrations("timeout")?;
        pair.unmount(&self.here, Node::First).await?;
        pair.detach(&self.here, Node::First).await?;
        ensure!(pair.migrations("timeout")? == before + 1, "no timeout was counted");
        pair.unmount(&self.there, Node::Second).await?;
        pair.detach(&self.there, Node::Second).await?;
        pair.delete(&self.there).await?;
        let text = format!("after {lasted} s a third node is refused; both go on, no error");
        seen.add("a migration over its limit of 30 s", text, None);
        Ok(())
    }
}

/// The source is cut off with writes waiting, when the target has the volume too. Gives the
/// volume as the target has it.
async fn source_cut_off(
    pair: &Pair,
    report: &Report,
    seen: &mut Seen,
    at_source: &Volume,
    mut writer: Writer,
) -> Result<Volume> {
    writer.stop(RECOVERY).await?;
    let victim = Victim::begin(pair, at_source.clone(), writer.last() + 1).await?;
    let here = pair.give(at_source, Node::First).await?;
    pair.cut()?;
    let began = Instant::now();
    pair.detach(at_source, Node::Second).await?;
    let (late, first) = take_over(pair, report, &victim, &here).await?;
    let text = format!("the target writes {:.1?} after the detach began", first - began);
    seen.add("the source is cut off and given up", text, Some(late));
    Ok(here)
}

async fn target_dies(pair: &Pair, report: &Report, seen: &mut Seen, here: &Volume) -> Result<()> {
    let before = pair.migrations("failed")?;
    let mut writer = pair.writer(here, Node::First, PAUSE_MS, PLACES, 1)?;
    pair.give(here, Node::Second).await?;
    writer.progress(FLOWING, RECOVERY).await?;
    // As a machine that loses power: no FIN, no RST, and it never answers again.
    Pair::kill_second().await?;
    let began = Instant::now();
    pair.detach(here, Node::Second).await?;
    writer.progress(PLACES, RECOVERY).await.context("after the target's death")?;
    let stall = writer.longest_stall(began, Instant::now());
    writer.stop(RECOVERY).await?;
    ensure!(writer.error().is_none(), "a write failed: {:?}", writer.error());
    let lost = overwritten(&pair.stack.backing_file(&here.id), PLACES, [1, writer.last()])?;
    ensure!(lost == 0, "{lost} records are not on the disk");
    ensure!(pair.migrations("failed")? == before + 1, "no failure was counted");
    report.say(format!("node-2 is dead and detached; the survivor stood still for {stall:.1?}"));
    seen.add("the target dies and is given up", format!("no error; still for {stall:.1?}"), None);
    Ok(())
}
