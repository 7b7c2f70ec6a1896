//! KVM or emulation. `/dev/kvm` proves nothing: in nested machines it may exist and hang.
//! So a kernel is booted by it once, with a deadline, and the verdict kept.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::initramfs;
use crate::kernels::Kernel;
use crate::layout::Layout;
use crate::qemu::{self, Machine, Running};

/// A kernel by KVM greets within two seconds on a slow machine.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
const GREETING: &str = "rds-vm: greeting by kvm";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Accel {
    Kvm,
    /// Emulation, each processor of the guest in a thread of its own.
    Tcg,
    /// Emulation in one thread: slower by a third, and without the race of [`RACE`].
    TcgSingle,
}

/// How a guest dies of a race in QEMU before 8.1: it runs a stale translation of a
/// breakpoint that the guest's kernel had patched into its own code for a moment (fixed by
/// QEMU's commit deba78709a, "accel/tcg: Always lock pages before translation").
pub(crate) const RACE: &str = "Oops: int3";

impl Accel {
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::TcgSingle => ["-accel", "tcg,thread=single", "-cpu", "max"],
        }
    }
}

/// What was found, and on what: another QEMU or host kernel is asked anew.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    accel: Accel,
    qemu: String,
    host: String,
}

/// The faster one that works here.
pub(crate) fn choose(layout: &Layout, kernel: &Kernel) -> Result<Accel> {
    // Readable and writable by us, or of no use.
    let qemu = qemu::version()?;
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(emulation(&qemu));
    }
    let path = layout.root().join("accel.json");
    let host = fs::read_to_string("/proc/version").context("reading /proc/version")?;
    let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Verdict>(&text).ok());
    if let Some(verdict) = known.filter(|v| v.qemu == qemu && v.host == host) {
        return Ok(if verdict.accel == Accel::Kvm { Accel::Kvm } else { emulation(&qemu) });
    }
    let accel = if kvm_boots(layout, kernel)? { Accel::Kvm } else { emulation(&qemu) };
    eprintln!("rds-vm: {} (kept in {})", describe(accel), path.display());
    let text = serde_json::to_vec_pretty(&Verdict { accel, qemu, host })
        .context("encoding the verdict on kvm")?;
    let temporary =
        tempfile::NamedTempFile::new_in(layout.root()).context("creating a temporary file")?;
    fs::write(temporary.path(), text)
        .with_context(|| format!("writing {}", temporary.path().display()))?;
    temporary.persist(&path).with_context(|| format!("replacing {}", path.display()))?;
    Ok(accel)
}

/// How to emulate with this QEMU (`QEMU emulator version 7.2.22 (…)`): in one thread where
/// it has the race. A test that fails by chance costs more than a third of its time.
fn emulation(version: &str) -> Accel {
    let number = version.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
    let mut parts = number.unwrap_or_default().split('.').map(|p| p.parse::<u32>().unwrap_or(0));
    let release = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if release >= (8, 1) { Accel::Tcg } else { Accel::TcgSingle }
}

fn describe(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm boots a kernel: using it",
        Accel::Tcg | Accel::TcgSingle => "kvm did not boot a kernel in time: emulating",
    }
}

fn kvm_boots(layout: &Layout, kernel: &Kernel) -> Result<bool> {
    let directory = tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(layout.root())
        .with_context(|| format!("creating a directory in {}", layout.root().display()))?;
    let (initramfs, console) =
        (directory.path().join("initramfs"), directory.path().join("console"));
    fs::write(&initramfs, initramfs::greeting(GREETING)?)
        .with_context(|| format!("writing {}", initramfs.display()))?;
    let machine = Machine {
        accel: Accel::Kvm,
        memory_mib: 512,
        kernel: &kernel.image(),
        initramfs: &initramfs,
        console: &console,
        kernel_arguments: "",
        plugin: None,
    };
    let mut command = machine.command();
    // Its complaints (an assertion, on some hosts) are the expected case, not news.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut running = Running::start(command)?;
    let started = Instant::now();
    while started.elapsed() < PROBE_DEADLINE {
        let ended = running.ended();
        if greeted(&console) {
            return Ok(true);
        }
        if ended {
            return Ok(false);
        }
        thread::sleep(PROBE_INTERVAL);
    }
    Ok(false)
}

fn greeted(console: &Path) -> bool {
    fs::read(console).is_ok_and(|text| String::from_utf8_lossy(&text).contains(GREETING))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_with_the_race_emulates_in_one_thread() {
        assert_eq!(emulation("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)"), Accel::TcgSingle);
        assert_eq!(emulation("QEMU emulator version 8.0.4"), Accel::TcgSingle);
        assert_eq!(emulation("QEMU emulator version 8.1.0"), Accel::Tcg);
        assert_eq!(emulation("QEMU emulator version 10.0.2"), Accel::Tcg);
        assert_eq!(emulation("something else"), Accel::TcgSingle);
    }
}
