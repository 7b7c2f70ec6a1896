//! Performance figures, each beside something that ran in the same guest: an emulated
//! machine's seconds mean nothing by themselves.
//!
//! - [`recovery`]: from "the target answers again" to "a write completes", with the agent and
//!   its shield, and with the kernel alone as nvme-cli sets it up (reconnect_delay 10) and
//!   with reconnect_delay 5;
//! - [`data_path`]: the shield's device against a bare namespace;
//! - [`control_path`]: a call through the shim against the same call to the agent;
//! - [`host`]: the same outside of a guest, in milliseconds, with the shim's size.

mod control_path;
mod data_path;
pub(crate) mod host;
mod recovery;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use rds_csi_proto::context::PublishContext;

use crate::csi::{Csi, Volume, raw_block};
use crate::process::run as command;
use crate::stack::Stack;
use crate::writer::Writer;

const MIB: i64 = 1 << 20;

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Recovery,
    DataPath,
    ControlPath,
    /// Fixed numbers of requests between marks, for a QEMU plugin that counts instructions
    /// (tests/profile); only where RDS_MARK names the program that marks.
    Count,
}

/// Runs these parts, or all; true unless something that was to be measured did not work at
/// all, or is worse than what was promised.
pub(crate) async fn run(parts: &[Part], rounds: u32) -> bool {
    match measure(parts, rounds).await {
        Ok(()) => true,
        Err(error) => {
            println!("FAILED bench: {error:#}");
            false
        }
    }
}

/// One initiator on one volume, with its writer.
struct Contender {
    name: &'static str,
    volume: Volume,
    device: PathBuf,
    writer: Option<Writer>,
}

async fn measure(parts: &[Part], rounds: u32) -> Result<()> {
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let stack = Stack::start().await?;
    let mut csi = stack.csi().await?;
    let mut contenders = Vec::new();
    for (name, delay) in [
        ("rds-csi", None),
        ("kernel, reconnect_delay 10", Some(10)),
        ("kernel, reconnect_delay 5", Some(5)),
    ] {
        contenders.push(contender(&mut csi, name, delay).await?);
    }
    if wanted(Part::DataPath) {
        data_path::measure(&contenders)?;
    }
    if parts.contains(&Part::Count) {
        let mark = std::env::var("RDS_MARK").context("RDS_MARK is not set; see tests/profile")?;
        data_path::count(&contenders, &mark, stack.agent_pid()?)?;
    }
    if wanted(Part::ControlPath) {
        control_path::measure(&stack).await?;
    }
    if wanted(Part::Recovery) {
        recovery::measure(&stack, &mut contenders, rounds).await?;
    }
    Ok(())
}

async fn contender(csi: &mut Csi, name: &'static str, delay: Option<u32>) -> Result<Contender> {
    let id = format!("pvc-{}", uuid::Uuid::new_v4());
    let failed = |s: tonic::Status| anyhow::anyhow!("{name}: {s:?}");
    let mut volume =
        csi.create(&id, 64 * MIB, raw_block(), HashMap::new()).await.map_err(failed)?;
    csi.attach(&mut volume).await.map_err(failed)?;
    let device = match delay {
        None => {
            csi.mount(&volume).await.map_err(failed)?;
            volume.target.clone()
        }
        Some(delay) => bare(&volume, delay).await?,
    };
    Ok(Contender { name, volume, device, writer: None })
}

/// A session as an administrator makes it with nvme-cli: keep-alive and loss time-out as
/// ours, so that only what is compared differs.
async fn bare(volume: &Volume, delay: u32) -> Result<PathBuf> {
    let context = PublishContext::from_map(&volume.publish_context)?;
    command(&[
        "nvme",
        "connect",
        "--transport=tcp",
        &format!("--traddr={}", context.portal.address()),
        &format!("--trsvcid={}", context.portal.port()),
        &format!("--nqn={}", context.nqn),
        &format!("--hostnqn={}", context.host_nqn),
        &format!("--hostid={}", context.host_nqn.host_id()),
        &format!("--reconnect-delay={delay}"),
        "--ctrl-loss-tmo=-1",
        "--keep-alive-tmo=5",
    ])?;
    for _ in 0..200 {
        for entry in std::fs::read_dir("/sys/class/nvme")?.flatten() {
            let nqn = std::fs::read_to_string(entry.path().join("subsysnqn")).unwrap_or_default();
            if nqn.trim() != context.nqn.as_str() {
                continue;
            }
            for inner in std::fs::read_dir(entry.path())?.flatten() {
                let name = inner.file_name().to_string_lossy().into_owned();
                // nvme2c2n1 is a path of the head nvme2n1.
                let Some(rest) = name.strip_prefix("nvme").filter(|r| r.contains('n')) else {
                    continue;
                };
                let (numbers, n) = rest.rsplit_once('n').context("a namespace's name")?;
                let head = numbers.split('c').next().unwrap_or_default();
                let device = PathBuf::from(format!("/dev/nvme{head}n{n}"));
                if device.exists() {
                    return Ok(device);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("{} has no device", context.nqn)
}

/// Median and the ratio to the first row's.
fn ratio_table(title: &str, unit: &str, rows: &[(String, f64)]) {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([title, unit, "ratio to the first"]);
    let first = rows.first().map_or(1.0, |r| r.1);
    for (name, value) in rows {
        let (shown, ratio) = match value.is_finite() {
            true => (format!("{value:.2}"), format!("{:.2}", value / first)),
            false => ("never".into(), "-".into()),
        };
        table.add_row([name.clone(), shown, ratio]);
    }
    println!("\n{table}\n");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
