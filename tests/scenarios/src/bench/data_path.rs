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

/// One kind of direct I/O: name, size, random or sequential, write or read.
type Kind = (&'static str, usize, bool, bool);

const KINDS: [Kind; 4] = [
    ("4 KiB random write", 4096, true, true),
    ("4 KiB random read", 4096, true, false),
    ("1 MiB sequential write", 1 << 20, false, true),
    ("1 MiB sequential read", 1 << 20, false, false),
];

/// Requests of one kind, one after the other, while `more` says so; it is told how many
/// were made.
fn requests(device: &Path, kind: Kind, mut more: impl FnMut(u64) -> bool) -> Result<u64> {
    const SPAN: u64 = 32 << 20;
    let (_, size, random, write) = kind;
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let mut buffer = Box::new(Buffer([0x5a; 1 << 20]));
    let (mut made, mut state) = (0u64, 0x2545_f491_4f6c_dd1d_u64);
    while more(made) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let block = if random { state } else { made };
        let offset = block % (SPAN / size as u64) * size as u64;
        match write {
            true => file.write_all_at(&buffer.0[..size], offset)?,
            false => file.read_exact_at(&mut buffer.0[..size], offset)?,
        }
        made += 1;
    }
    Ok(made)
}

/// Bytes per second of direct I/O, for a short while.
fn throughput(device: &Path, kind: Kind) -> Result<f64> {
    let began = Instant::now();
    let made = requests(device, kind, |_| began.elapsed() < TURN)?;
    Ok((made * kind.1 as u64) as f64 / began.elapsed().as_secs_f64())
}

/// Requests between two marks: enough that what else the guest does is little beside them.
const COUNTED: u64 = 400;

/// Makes a fixed number of requests between two calls of `mark` (tests/profile), and prints
/// what lay between which marks. The agent is stopped meanwhile: it is not in the path of
/// I/O, and what it does once in some seconds (it samples a volume that is written to, 64
/// reads) would be counted as the shield's.
pub(super) fn count(contenders: &[Contender], mark: &str, agent: u32) -> Result<()> {
    let [shield, bare, ..] = contenders else { bail!("too few contenders") };
    crate::process::run(&["kill", "-STOP", &agent.to_string()])?;
    let mut marks = 0;
    for kind in KINDS {
        let number = if kind.1 > 4096 { COUNTED / 10 } else { COUNTED };
        for round in 1..=3 {
            for (name, device) in [("bare", &bare.device), ("shield", &shield.device)] {
                // Whatever is done the first time only is not counted.
                requests(device, kind, |made| made < 8)?;
                crate::process::run(&[mark])?;
                requests(device, kind, |made| made < number)?;
                crate::process::run(&[mark])?;
                marks += 2;
                println!("counted {marks} {number} {round} {name} {}", kind.0);
            }
        }
    }
    crate::process::run(&["kill", "-CONT", &agent.to_string()])?;
    Ok(())
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
    for kind in KINDS {
        let (mut on_shield, mut on_bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..TURNS {
            // Who goes first changes, too: the guest may be getting slower or faster.
            let devices = if turn % 2 == 0 { [bare, shield] } else { [shield, bare] };
            let first = throughput(&devices[0].device, kind)?;
            let second = throughput(&devices[1].device, kind)?;
            let (of_bare, of_shield) =
                if turn % 2 == 0 { (first, second) } else { (second, first) };
            on_bare.push(of_bare);
            on_shield.push(of_shield);
            ratios.push(of_shield / of_bare);
        }
        let mib = |v: Vec<f64>| format!("{:.2} MiB/s", median(v) / f64::from(1 << 20));
        let ratio = format!("{:.2}", median(ratios));
        table.add_row([kind.0.into(), mib(on_bare), mib(on_shield), ratio]);
    }
    println!("\n{table}\n");
    Ok(())
}
