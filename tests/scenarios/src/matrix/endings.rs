//! Where queued I/O must fail, and only there: fenced, out of patience, or told so.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scene::Scene;
use super::subject::{Kind, RECOVERY, Subject};
use crate::demo::status;
use crate::faults::seconds;

const OTHER_NODE: &str = "node-2";
/// From the refusal until the agent knows, and until waiting I/O has failed.
const NOTICED: Duration = Duration::from_secs(60);
const FAILED: Duration = Duration::from_secs(20);
const WATCHED: Duration = Duration::from_secs(4);
const IO_TIMEOUT: u64 = 10;

/// The target drops us from its allow list, which touches no live session; the next
/// connection is refused.
pub(super) async fn refused_by_target(scene: &mut Scene) -> Result<String> {
    let subject = Subject::brief(&mut scene.csi, Kind::Ext4, &[]).await?;
    let view = scene.stack.status(&subject.volume.id)?;
    let text = |key: &str| view[key].as_str().map(str::to_owned).context("no NQN");
    let (nqn, host) = (text("nqn")?, text("hostNqn")?);
    let allowed = format!("/sys/kernel/config/nvmet/subsystems/{nqn}/allowed_hosts/{host}");
    fs::remove_file(&allowed).with_context(|| format!("remove {allowed}"))?;
    subject.writer.progress(10, RECOVERY).await.context("a live session is not touched")?;
    scene.stack.order(&["reset-connections"])?;
    ends_fenced(scene, subject).await
}

/// The node is cut off, its writes wait, and the volume goes to another node meanwhile.
pub(super) async fn fenced_while_queued(scene: &mut Scene) -> Result<String> {
    let subject = Subject::brief(&mut scene.csi, Kind::Ext4, &[]).await?;
    scene.stack.order(&["export-off", &subject.volume.id])?;
    seconds(2).await;
    subject.waits(WATCHED).await?;
    scene.csi.detach(&subject.volume).await.map_err(status("detach from node-1"))?;
    let moved = scene.csi.attach_to(&subject.volume, OTHER_NODE).await;
    let moved = moved.map_err(status("attach to node-2"))?;
    ensure!(moved != subject.volume.publish_context, "node-2 got node-1's host NQN");
    let (volume, mut csi) = (subject.volume.clone(), scene.csi.clone());
    let seen = is_fenced(scene, &subject).await?;
    csi.detach_from(&volume, OTHER_NODE).await.map_err(status("detach from node-2"))?;
    let checked = subject.next_attachment(&mut csi).await?;
    Ok(format!("{seen}; all {checked} acknowledged records in the next attachment"))
}

async fn ends_fenced(scene: &mut Scene, subject: Subject) -> Result<String> {
    let seen = is_fenced(scene, &subject).await?;
    let checked = subject.next_attachment(&mut scene.csi).await?;
    Ok(format!("{seen}; all {checked} acknowledged records in the next attachment"))
}

/// Fenced, the waiting write fails, and the volume can be taken off its node.
async fn is_fenced(scene: &Scene, subject: &Subject) -> Result<String> {
    let began = Instant::now();
    let fenced = |v: &Value| v["state"] == "Fenced";
    let view = subject.becomes(&scene.stack, "Fenced", NOTICED, fenced).await?;
    let reason = view["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("Connect Invalid Host"), "the reason is {reason:?}");
    let (fenced_after, last) = (began.elapsed(), subject.writer.last());
    let error = subject.writer.fails(FAILED).await?;
    ensure!(error.contains("os error 5"), "the waiting write ended with {error}");
    ensure!(subject.writer.last() == last, "a fenced node's write was acknowledged");
    let took = subject.unmount(&scene.csi).await?;
    Ok(format!(
        "Fenced after {:.1} s, waiting write EIO {:.1} s later, unstaged in {:.1} s",
        fenced_after.as_secs_f64(),
        (began.elapsed() - fenced_after - took).as_secs_f64(),
        took.as_secs_f64()
    ))
}

/// One volume whose I/O may wait for ten seconds, beside one whose may wait for ever.
pub(super) async fn io_timeout(scene: &mut Scene) -> Result<String> {
    let limit = IO_TIMEOUT.to_string();
    let limited =
        Subject::brief(&mut scene.csi, Kind::Ext4, &[("ioTimeoutSeconds", &limit)]).await?;
    let patient = Subject::brief(&mut scene.csi, Kind::Ext4, &[("ioTimeoutSeconds", "0")]).await?;
    // From before the order: the volume is lost at some moment of it.
    let began = Instant::now();
    for subject in [&limited, &patient] {
        scene.stack.order(&["export-off", &subject.volume.id])?;
    }
    let error = limited.writer.fails(Duration::from_secs(IO_TIMEOUT) + NOTICED).await?;
    let failed_after = began.elapsed();
    ensure!(error.contains("os error 5"), "the waiting write ended with {error}");
    let least = Duration::from_secs(IO_TIMEOUT - 1);
    ensure!(failed_after > least, "it failed after {failed_after:?} already");
    let failing = |v: &Value| v["failingIo"] == true;
    limited.becomes(&scene.stack, "failing I/O", FAILED, failing).await?;
    let took = limited.unmount(&scene.csi).await?;
    patient.waits(WATCHED).await?;
    for subject in [&limited, &patient] {
        scene.stack.order(&["export-on", &subject.volume.id])?;
    }
    patient.writer.progress(10, RECOVERY).await.context("the volume that waits")?;
    let checked = limited.next_attachment(&mut scene.csi).await?;
    patient.end(&mut scene.csi).await?;
    Ok(format!(
        "EIO after {:.1} s, unstaged in {:.1} s, all {checked} acknowledged records there; the other waited and went on",
        failed_after.as_secs_f64(),
        took.as_secs_f64()
    ))
}

/// A person gives up on a volume whose appliance is away.
pub(super) async fn failed_by_hand(scene: &mut Scene) -> Result<String> {
    let subject = Subject::brief(&mut scene.csi, Kind::Ext4, &[]).await?;
    let id = subject.volume.id.clone();
    scene.stack.order(&["export-off", &id])?;
    seconds(2).await;
    subject.waits(WATCHED).await?;
    let began = Instant::now();
    scene.stack.agent_cli(&["fail", &id])?;
    let error = subject.writer.fails(FAILED).await?;
    let failed_after = began.elapsed();
    ensure!(error.contains("os error 5"), "the waiting write ended with {error}");
    let view = scene.stack.status(&id)?;
    ensure!(view["failingIo"] == true, "the status does not say that it fails I/O: {view}");
    let took = subject.unmount(&scene.csi).await?;
    scene.stack.order(&["export-on", &id])?;
    let checked = subject.next_attachment(&mut scene.csi).await?;
    Ok(format!(
        "EIO {:.1} s after the command, unstaged in {:.1} s, all {checked} acknowledged records there",
        failed_after.as_secs_f64(),
        took.as_secs_f64()
    ))
}
