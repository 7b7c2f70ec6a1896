//! Performance figures, each beside something that ran in the same guest: an emulated
//! machine's seconds mean nothing by themselves.
//!
//! - recovery: from "the target answers again" to "a write completes", with the agent and
//!   its shield, and with the kernel alone as nvme-cli sets it up (reconnect_delay 10) and
//!   with reconnect_delay 5;
//! - the data path: the shield's device against a bare namespace;
//! - the control path: a call through the shim against the same call to the agent.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};
use rds_csi_proto::context::PublishContext;
use rds_csi_proto::csi::NodeGetCapabilitiesRequest;
use rds_csi_proto::csi::node_client::NodeClient;

use crate::csi::{Csi, Volume, channel, raw_block, request};
use crate::process::run as command;
use crate::stack::{Stack, agent_socket};
use crate::writer::Writer;

const MIB: i64 = 1 << 20;
/// Long enough that every keep-alive has run out and every initiator is reconnecting.
const CUT: Duration = Duration::from_secs(30);
const ROUNDS: usize = 3;
/// After this an initiator counts as one that does not come back.
const NEVER: Duration = Duration::from_secs(60);

/// Runs all of it; true unless something that was to be measured did not work at all.
pub(crate) async fn run() -> bool {
    match measure().await {
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

async fn measure() -> Result<()> {
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
    data_path(&contenders)?;
    control_path(&stack).await?;
    recovery(&stack, &mut contenders).await
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
            false => (format!("not within {} s", NEVER.as_secs()), "-".into()),
        };
        table.add_row([name.clone(), shown, ratio]);
    }
    println!("\n{table}\n");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn recovery(stack: &Stack, contenders: &mut [Contender]) -> Result<()> {
    for contender in contenders.iter_mut() {
        contender.writer = Some(Writer::start(&contender.device, true)?);
    }
    for contender in contenders.iter() {
        let writer = contender.writer.as_ref().context("no writer")?;
        writer.progress(20, NEVER).await.with_context(|| contender.name)?;
    }
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 0..ROUNDS {
        stack.order(&["drop-packets"])?;
        // Not always the same phase of the kernels' reconnect timers.
        tokio::time::sleep(CUT + Duration::from_millis(1700 * round as u64)).await;
        stack.order(&["heal"])?;
        for (n, took) in returns(contenders).await.into_iter().enumerate() {
            println!(
                "  link back, round {}: {} writes after {took:.2} s",
                round + 1,
                contenders[n].name
            );
            seconds[n].push(took);
        }
    }
    let names = |s: &[Vec<f64>]| -> Vec<(String, f64)> {
        s.iter()
            .enumerate()
            .map(|(n, v)| (contenders[n].name.to_owned(), median(v.clone())))
            .collect()
    };
    ratio_table(
        "link back after a silent cut",
        "seconds to the first write (median)",
        &names(&seconds),
    );

    for contender in contenders.iter() {
        stack.order(&["export-toggle", &contender.volume.id])?;
    }
    let took: Vec<_> = returns(contenders).await.into_iter().map(|t| vec![t]).collect();
    ratio_table("export toggled, another identity", "seconds to the first write", &names(&took));
    ensure!(took[0][0].is_finite(), "the agent did not bring its volume back");
    Ok(())
}

/// How long after now each contender's next write completes; infinite for one that failed
/// or takes longer than [`NEVER`].
async fn returns(contenders: &[Contender]) -> Vec<f64> {
    let began = Instant::now();
    let start: Vec<u64> =
        contenders.iter().map(|c| c.writer.as_ref().map_or(0, Writer::last)).collect();
    let mut took = vec![f64::INFINITY; contenders.len()];
    while began.elapsed() < NEVER {
        for (n, contender) in contenders.iter().enumerate() {
            let Some(writer) = &contender.writer else { continue };
            // One write may have been acknowledged just before: the second one counts.
            if took[n].is_infinite() && writer.error().is_none() && writer.last() >= start[n] + 2 {
                took[n] = began.elapsed().as_secs_f64();
            }
        }
        let settled = contenders
            .iter()
            .zip(&took)
            .all(|(c, t)| t.is_finite() || c.writer.as_ref().is_some_and(|w| w.error().is_some()));
        if settled {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took
}

#[repr(align(4096))]
struct Buffer([u8; 1 << 20]);

/// Bytes per second of direct I/O of one size at given offsets, for a short while.
fn throughput(device: &Path, size: usize, random: bool, write: bool) -> Result<f64> {
    const SPAN: u64 = 32 << 20;
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let mut buffer = Box::new(Buffer([0x5a; 1 << 20]));
    let (began, mut bytes, mut state) = (Instant::now(), 0u64, 0x2545_f491_4f6c_dd1d_u64);
    while began.elapsed() < Duration::from_millis(1500) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let block = if random { state } else { bytes / size as u64 };
        let offset = block % (SPAN / size as u64) * size as u64;
        match write {
            true => file.write_all_at(&buffer.0[..size], offset)?,
            false => file.read_exact_at(&mut buffer.0[..size], offset)?,
        }
        bytes += size as u64;
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// The first contender's device is a shield, the second's a bare namespace of the same
/// target; they take turns, so that the guest's mood hits both.
fn data_path(contenders: &[Contender]) -> Result<()> {
    let [shield, bare, ..] = contenders else { bail!("too few contenders") };
    let mut table = Table::new();
    let header = ["direct I/O, one at a time", "bare namespace", "shield", "shield / bare"];
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    for (name, size, random, write) in [
        ("4 KiB random write", 4096, true, true),
        ("4 KiB random read", 4096, true, false),
        ("1 MiB sequential write", 1 << 20, false, true),
        ("1 MiB sequential read", 1 << 20, false, false),
    ] {
        let (mut on_shield, mut on_bare) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            on_bare.push(throughput(&bare.device, size, random, write)?);
            on_shield.push(throughput(&shield.device, size, random, write)?);
        }
        let (bare, shield) = (median(on_bare), median(on_shield));
        let mib = |v: f64| format!("{:.2} MiB/s", v / f64::from(1 << 20));
        table.add_row([name.into(), mib(bare), mib(shield), format!("{:.2}", shield / bare)]);
    }
    println!("\n{table}\n");
    Ok(())
}

async fn control_path(stack: &Stack) -> Result<()> {
    let mut rows = Vec::new();
    for (name, socket) in
        [("agent", agent_socket(&stack.dir)), ("through the shim", stack.dir.join("csi.sock"))]
    {
        let mut node = NodeClient::new(channel(&socket));
        let mut times = Vec::new();
        for _ in 0..200 {
            let began = Instant::now();
            node.node_get_capabilities(request(NodeGetCapabilitiesRequest {})).await?;
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        rows.push((name.to_owned(), median(times)));
    }
    ratio_table("NodeGetCapabilities", "milliseconds (median)", &rows);
    Ok(())
}
