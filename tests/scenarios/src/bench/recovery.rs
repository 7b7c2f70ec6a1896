//! How long after the target answers again the first write completes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rds_csi_proto::context::PublishContext;

use crate::stack::Stack;
use crate::writer::Writer;

use super::{Contender, median, ratio_table};

/// Long enough that every keep-alive has run out and every initiator is reconnecting.
const CUT: Duration = Duration::from_secs(20);
/// Each round ends the cut at another phase of the kernels' reconnect timers.
const PHASE: Duration = Duration::from_millis(1_300);
/// After this an initiator counts as one that does not come back.
const NEVER: Duration = Duration::from_secs(60);
/// One that is back goes on for so long at least.
const STAYS: Duration = Duration::from_secs(10);
/// How much sooner than nvme-cli's defaults we promise to be, in the median.
const PROMISED: f64 = 10.0;

pub(super) async fn measure(
    stack: &Stack,
    contenders: &mut [Contender],
    rounds: u32,
) -> Result<()> {
    for contender in contenders.iter_mut() {
        contender.writer = Some(Writer::start(&contender.device, true)?);
    }
    for contender in contenders.iter() {
        let writer = contender.writer.as_ref().context("no writer")?;
        writer.progress(20, NEVER).await.with_context(|| contender.name)?;
    }
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        stack.order(&["drop-packets"])?;
        tokio::time::sleep(CUT + PHASE * round).await;
        stack.order(&["heal"])?;
        let healed = Instant::now();
        let took = returns(contenders, &vec![Some(healed); contenders.len()]).await;
        let shown: Vec<_> = took.iter().map(|t| format!("{t:.2} s")).collect();
        println!("  link back, round {}: {}", round + 1, shown.join(", "));
        for (n, took) in took.into_iter().enumerate() {
            seconds[n].push(took);
        }
    }
    let rows = rows(contenders, seconds);
    ratio_table("link back after a silent cut", "seconds to the first write (median)", &rows);
    ensure!(
        rows[1].1 >= PROMISED * rows[0].1,
        "with nvme-cli's defaults it takes {:.2} s, with the agent {:.2} s: not {PROMISED} times as long",
        rows[1].1,
        rows[0].1
    );
    identity_changes(stack, contenders).await
}

fn rows(contenders: &[Contender], seconds: Vec<Vec<f64>>) -> Vec<(String, f64)> {
    let names = contenders.iter().map(|c| c.name.to_owned());
    names.zip(seconds.into_iter().map(median)).collect()
}

/// The appliance reboots; its exports come back with other identities.
async fn identity_changes(stack: &Stack, contenders: &[Contender]) -> Result<()> {
    stack.order(&["reboot", "--down", "12", "--export-delay", "2", "--stagger", "0.5"])?;
    let mut exported = vec![None; contenders.len()];
    let mut gone = vec![false; contenders.len()];
    let began = Instant::now();
    while exported.iter().any(Option::is_none) {
        ensure!(began.elapsed() < NEVER, "the appliance does not come back");
        for (n, contender) in contenders.iter().enumerate() {
            let there = is_exported(contender)?;
            gone[n] |= !there;
            if there && gone[n] && exported[n].is_none() {
                exported[n] = Some(Instant::now());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut took = returns(contenders, &exported).await;
    // The kernel sends what waited, then looks whose namespace it is, and removes it: one
    // write does not make a device that is back.
    tokio::time::sleep(STAYS).await;
    for (took, contender) in took.iter_mut().zip(contenders) {
        if let Some(error) = contender.writer.as_ref().and_then(Writer::error) {
            println!("  {}: {error}", contender.name);
            *took = f64::INFINITY;
        }
    }
    let rows = rows(contenders, took.iter().map(|t| vec![*t]).collect());
    ratio_table("appliance rebooted, other identities", "seconds to the first write", &rows);
    ensure!(took[0].is_finite(), "the agent did not bring its volume back");
    Ok(())
}

/// Whether the target has it at this moment: the guest's kernel is the target's, too.
fn is_exported(contender: &Contender) -> Result<bool> {
    let context = PublishContext::from_map(&contender.volume.publish_context)?;
    for port in fs::read_dir("/sys/kernel/config/nvmet/ports")?.flatten() {
        if port.path().join("subsystems").join(context.nqn.as_str()).exists() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How long after its moment each contender's next write completes; infinite for one that
/// failed or takes longer than [`NEVER`].
async fn returns(contenders: &[Contender], since: &[Option<Instant>]) -> Vec<f64> {
    let began = Instant::now();
    let first = |n: usize| -> Option<Duration> {
        let (writer, since) = (contenders[n].writer.as_ref()?, since[n]?);
        Some(writer.first_after(since)?.duration_since(since))
    };
    let failed = |n: usize| contenders[n].writer.as_ref().is_none_or(|w| w.error().is_some());
    let all = 0..contenders.len();
    while began.elapsed() < NEVER && all.clone().any(|n| first(n).is_none() && !failed(n)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    all.map(|n| first(n).map_or(f64::INFINITY, |took| took.as_secs_f64())).collect()
}
