//! The agent dies while it brings a lost session back: no write may fail, and the next agent
//! finishes the work.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::life::Kind;
use crate::csi::{Csi, Volume, filesystem, raw_block};
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
    let result = end(&mut csi, &mut pods).await;
    report.case("outages: every record is there, nothing is left", result);
    Ok(())
}

async fn survive(stack: &mut Stack, pods: &[Pod], which: usize, point: &str) -> Result<()> {
    stack.restart_agent_crashing_at(point).await?;
    stack.order(&["export-toggle", &pods[which].volume.id, "--off-for", "1"])?;
    let began = Instant::now();
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
