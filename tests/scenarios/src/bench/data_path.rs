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
pub(super) fn measure(contenders: &[Contender]) -> Result<()> {
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
