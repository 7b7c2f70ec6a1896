//! The agent dies while it brings a lost session back: no write may fail, and the next agent
//! finishes the work.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tonic::Code;

use super::life::Kind;
use crate::csi::{Csi, Volume, filesystem, raw_block, with_retries};
use crate::demo::{no_devices, status};
use crate::report::Report;
use crate::stack::Stack;
use crate::writer::Writer;

const MIB: i64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(90);
/// What the way back passes.
const POINTS: &[&str] =
    &["connect.begin", "connect.done", "map.checked", "map.loaded", "map.suspended", "map.done"];

struct Pod {
    kind: Kind,
    volume: Volume,
    writer: Writer,
}

pub(super) async fn run(report: &mut Report, stack: &mut Stack, only: Option<&str>) -> Result<()> {
    let mut points = POINTS.iter().filter(|p| only.is_none_or(|only| only == **p)).peekable();
    if points.peek().is_none() {
        return Ok(());
    }
    stack.restart_agent_crashing_at("").await?;
    let mut csi = stack.csi().await?;
    let mut pods =
        vec![Pod::begin(&mut csi, Kind::Filesystem).await?, Pod::begin(&mut csi, Kind::Raw).await?];
    for (n, point) in points.enumerate() {
        // Alternately: both kinds meet each of them over the runs on two kernels.
        let result = survive(stack, &pods, n % 2, point).await;
        let fine = report.case(&format!("outage, {:?}: {point}", pods[n % 2].kind), result);
        ensure!(fine, "the volume did not survive");
    }
    let result = panic_in_a_task(stack, &mut csi, &mut pods).await;
    report.case("a session's task panics in the middle of unstage: the retry ends it", result);
    let result = end(&mut csi, &mut pods).await;
    report.case("outages: every record is there, nothing is left", result);
    Ok(())
}

async fn survive(stack: &mut Stack, pods: &[Pod], which: usize, point: &str) -> Result<()> {
    stack.restart_agent_crashing_at(point).await?;
    // Not a loss that the kernel mends by itself, which would pass no connect of ours.
    let began = Instant::now();
    let controller = loop {
        // An agent that has just started may not have looked yet.
        let seen = stack.status(&pods[which].volume.id)?;
        match seen["controller"].as_str() {
            Some(name) if !name.is_empty() => break name.to_owned(),
            _ if began.elapsed() > PATIENCE => bail!("the agent finds no controller: {seen}"),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    std::fs::write(format!("/sys/class/nvme/{controller}/delete_controller"), "1")?;
    let died_at = loop {
        match stack.agent_crashed_at()? {
            Some(point) => break point,
            None if began.elapsed() > PATIENCE => bail!("never passed"),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    ensure!(died_at == point, "it died at {died_at}");
    // Whoever waits now waits for the next agent.
    stack.restart_agent_crashing_at("").await?;
    for pod in pods {
        pod.writer.progress(20, PATIENCE).await.with_context(|| format!("{:?}", pod.kind))?;
    }
    Ok(())
}

/// The volume is not gone because nobody answers for it: another task takes over.
async fn panic_in_a_task(stack: &mut Stack, csi: &mut Csi, pods: &mut Vec<Pod>) -> Result<()> {
    stack.restart_agent_crashing_at("detach.unshielded!").await?;
    let mut pod = pods.pop().context("no pod")?;
    pod.writer.stop(PATIENCE).await?;
    ensure!(pod.writer.error().is_none(), "a write failed: {:?}", pod.writer.error());
    let broken = csi.unmount(&pod.volume).await.err().context("it did not panic")?;
    ensure!(broken.code() == Code::Unavailable, "it said {broken:?}");
    let retried = with_retries("unstage", PATIENCE, || {
        let (mut csi, volume) = (csi.clone(), pod.volume.clone());
        async move { csi.unmount(&volume).await }
    });
    retried.await.map_err(status("unstage again"))?;
    ensure!(stack.agent_crashed_at()?.is_none(), "the agent has ended");
    csi.detach(&pod.volume).await.map_err(status("detach"))?;
    csi.delete(&pod.volume).await.map_err(status("delete"))
}

async fn end(csi: &mut Csi, pods: &mut Vec<Pod>) -> Result<()> {
    for pod in pods.iter_mut() {
        pod.writer.stop(PATIENCE).await?;
        ensure!(pod.writer.error().is_none(), "a write failed: {:?}", pod.writer.error());
    }
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    for pod in pods.drain(..) {
        pod.writer.verify(pod.writer.last())?;
        csi.unmount(&pod.volume).await.map_err(status("unpublish and unstage"))?;
        csi.detach(&pod.volume).await.map_err(status("detach"))?;
        csi.delete(&pod.volume).await.map_err(status("delete"))?;
    }
    no_devices()
}

impl Pod {
    async fn begin(csi: &mut Csi, kind: Kind) -> Result<Self> {
        let capability = if kind == Kind::Raw { raw_block() } else { filesystem("ext4") };
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let created = csi.create(&name, 64 * MIB, capability, HashMap::new()).await;
        let mut volume = created.map_err(status("create"))?;
        csi.attach(&mut volume).await.map_err(status("attach"))?;
        csi.mount(&volume).await.map_err(status("stage and publish"))?;
        let writer = Writer::start(&volume.target, kind == Kind::Raw)?;
        writer.progress(5, PATIENCE).await?;
        Ok(Self { kind, volume, writer })
    }
}
