//! What the shield costs on the data path.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{Table, presets};

use super::{Contender, median};

#[repr(align(4096))]
struct Buffer([u8; 1 << 20]);

/// Bytes per second of direct I/O of one size at given offsets, for a short while.
fn throughput(device: &Path, size: usize, random: bool, write: bool) -> Result<f64> {
    const SPAN: u64 = 32 << 20;
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let mut buffer = Box::new(Buffer([0x5a; 1 << 20]));
    let (began, mut bytes, mut state) = (Instant::now(), 0u64, 0x2545_f491_4f6c_dd1d_u64);
    while began.elapsed() < TURN {
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

/// Pairs of measurements, and how long each takes.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(700);

/// The first contender's device is a shield, the second's a bare namespace of the same
/// target. They take turns, and each turn gives a ratio: so the guest's mood hits both.
pub(super) fn measure(contenders: &[Contender]) -> Result<()> {
    let [shield, bare, ..] = contenders else { bail!("too few contenders") };
    let mut table = Table::new();
    let header =
        ["direct I/O, one at a time", "bare namespace", "shield", "shield / bare (median)"];
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    for (name, size, random, write) in [
        ("4 KiB random write", 4096, true, true),
        ("4 KiB random read", 4096, true, false),
        ("1 MiB sequential write", 1 << 20, false, true),
        ("1 MiB sequential read", 1 << 20, false, false),
    ] {
        let (mut on_shield, mut on_bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..TURNS {
            // Who goes first changes, too: the guest may be getting slower or faster.
            let devices = if turn % 2 == 0 { [bare, shield] } else { [shield, bare] };
            let first = throughput(&devices[0].device, size, random, write)?;
            let second = throughput(&devices[1].device, size, random, write)?;
            let (of_bare, of_shield) =
                if turn % 2 == 0 { (first, second) } else { (second, first) };
            on_bare.push(of_bare);
            on_shield.push(of_shield);
            ratios.push(of_shield / of_bare);
        }
        let mib = |v: Vec<f64>| format!("{:.2} MiB/s", median(v) / f64::from(1 << 20));
        let ratio = format!("{:.2}", median(ratios));
        table.add_row([name.into(), mib(on_bare), mib(on_shield), ratio]);
    }
    println!("\n{table}\n");
    Ok(())
}
