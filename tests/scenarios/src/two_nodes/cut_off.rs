//! A node is cut off while it writes; its volume is forced off it and given to the other one.
//! When the network is back, nothing that the first one had queued may reach the disk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Seen;
use super::pair::{Node, PLACES, Pair, RECOVERY};
use crate::csi::{Volume, raw_block};
use crate::report::Report;
use crate::writer::{Writer, overwritten};

/// The other node's records, which no other writer's are like.
const OTHERS: u64 = 1 << 40;
/// From the network's return until the cut off node knows, in an emulated guest: the kernel's
/// next attempt (up to 10 s) or the agent's, asked twice.
const FENCED: Duration = Duration::from_secs(60);
const TOLD: Duration = Duration::from_secs(30);
/// The kernel's keep-alive timeout and what it takes to notice, emulated.
const LOST: Duration = Duration::from_secs(60);

/// Where the writes of the node that is cut off wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// In the kernel's connection, which has not noticed anything yet.
    Connection,
    /// In the shield, the session being lost.
    Shield,
}

/// The writers of the node that is to lose its volume.
pub(super) struct Victim {
    pub(super) volume: Volume,
    pub(super) writer: Writer,
    pub(super) flood: Writer,
}

impl Victim {
    pub(super) async fn begin(pair: &Pair, volume: Volume, first: u64) -> Result<Self> {
        let writer = pair.writer(&volume, Node::Second, 5, PLACES, first)?;
        let flood = pair.flood(&volume)?;
        writer.progress(20, RECOVERY).await?;
        flood.progress(64, RECOVERY).await?;
        Ok(Self { volume, writer, flood })
    }
}

pub(super) async fn tell(pair: &Pair, report: &mut Report, seen: &mut Seen) -> Result<()> {
    let volume = pair.create(raw_block(), &[]).await?;
    for (queue, name) in [
        (Queue::Connection, "cut off and given up at once"),
        (Queue::Shield, "cut off, given up when its writes wait in the shield"),
    ] {
        let result = forced(pair, report, seen, &volume, queue, name).await;
        let failed = result.is_err();
        report.case(&format!("a node that is {name} writes nothing more"), result);
        ensure!(!failed, "without that the rest proves nothing");
    }
    let result = again(pair, &volume).await;
    report.case("the node that was shut out gets the volume again, and it works", result);
    pair.delete(&volume).await
}

async fn forced(
    pair: &Pair,
    report: &Report,
    seen: &mut Seen,
    volume: &Volume,
    queue: Queue,
    name: &str,
) -> Result<()> {
    let there = pair.give(volume, Node::Second).await?;
    let victim = Victim::begin(pair, there, 1).await?;
    pair.cut()?;
    report.say(format!("{name}: no packet passes between node-2 and the appliance"));
    if queue == Queue::Shield {
        let lost = |v: &serde_json::Value| v["state"] != "Live";
        let view =
            pair.becomes(&victim.volume, Node::Second, "known to be lost", LOST, lost).await?;
        report.say(format!("node-2 says {}: {}", view["state"], view["reason"]));
    }
    let began = Instant::now();
    pair.detach(volume, Node::Second).await?;
    let detached = began.elapsed();
    let here = pair.give(volume, Node::First).await?;
    let (late, first) = take_over(pair, report, &victim, &here).await?;
    let first = first.duration_since(began);
    report.say(format!("detached in {detached:.1?}, node-1 wrote after {first:.1?}"));
    seen.add(name, format!("node-1 writes {first:.1?} after the detach began"), Some(late));
    pair.unmount(&here, Node::First).await?;
    pair.detach(volume, Node::First).await
}

/// The first node has got the volume and writes over all that the second one, still cut off,
/// had written or has queued. Then the network is back. Gives the number of late writes and
/// the moment of the first write.
pub(super) async fn take_over(
    pair: &Pair,
    report: &Report,
    victim: &Victim,
    here: &Volume,
) -> Result<(u64, Instant)> {
    let acknowledged = victim.writer.last();
    // The path is the same on both nodes: this reads through the first one's device.
    let checked = victim.writer.verify(acknowledged).context("what node-2 had written")?;
    report.say(format!("node-1 reads the {checked} newest records that node-2 has written"));
    let (places, before) = (2 * PLACES, Instant::now());
    let mut writer = pair.writer(here, Node::First, 0, places, OTHERS)?;
    writer.progress(places, RECOVERY).await?;
    let first = writer.first_after(before).context("no record")?;
    writer.stop(RECOVERY).await?;
    ensure!(victim.writer.last() == acknowledged, "a write of node-2 was acknowledged");
    let file = pair.stack.backing_file(&here.id);
    let late = |when: &str| -> Result<u64> {
        let late = overwritten(&file, places, [OTHERS, writer.last()])?;
        ensure!(late == 0, "{late} late writes of node-2 are on the disk {when}");
        Ok(late)
    };
    late("before the network is back")?;

    let healed = Instant::now();
    pair.heal()?;
    let fenced = |v: &serde_json::Value| v["state"] == "Fenced";
    let view = pair.becomes(&victim.volume, Node::Second, "fenced", FENCED, fenced).await;
    late("after the network is back")?;
    let view = view?;
    report.say(format!("fenced {:.1?} after the network: {}", healed.elapsed(), view["reason"]));
    let failed = Pair::both_failed(&victim.writer, &victim.flood, TOLD).await?;
    ensure!(victim.writer.last() == acknowledged, "a write of node-2 was acknowledged");
    let took = pair.unmount(&victim.volume, Node::Second).await?;
    report.say(format!("{failed} waiting writes ended with EIO; given up in {took:.1?}"));
    pair.nothing_left(Node::Second)?;
    let count = late("in the end")?;
    writer.verify(writer.last()).context("through node-1's device")?;
    Ok((count, first))
}

async fn again(pair: &Pair, volume: &Volume) -> Result<()> {
    let there = pair.give(volume, Node::Second).await?;
    let mut writer = pair.writer(&there, Node::Second, 5, PLACES, 1)?;
    writer.progress(PLACES + 20, RECOVERY).await?;
    writer.stop(RECOVERY).await?;
    ensure!(writer.error().is_none(), "a write failed: {:?}", writer.error());
    let late = overwritten(&pair.stack.backing_file(&volume.id), PLACES, [1, writer.last()])?;
    ensure!(late == 0, "{late} records are not on the disk");
    pair.unmount(&there, Node::Second).await?;
    pair.detach(volume, Node::Second).await
}
