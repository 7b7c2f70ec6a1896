//! `rds-vm run`: from a command line to an exit status.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::accel::{self, Accel};
use crate::choose::Series;
use crate::guest::{self, BOOT_DEADLINE, Ending};
use crate::initramfs::{self, Init, Job};
use crate::layout::{self, Layout};
use crate::peer::{End, Peer};
use crate::qemu::{Devices, Machine};
use crate::{command, console, kernels};

/// Exit statuses of our own, those of timeout(1).
const STATUS_DEADLINE: u8 = 124;
pub(crate) const STATUS_NO_GUEST: u8 = 125;

/// Sparse: takes what is written to it.
const SCRATCH_BYTES: u64 = 4 << 30;

/// Boots that a bug of the emulator spoils are repeated, this often in all.
const BOOT_ATTEMPTS: u32 = 4;

/// The guest hides the host's content of these behind file systems of its own. Of /tmp and
/// /run it shows the directory it is started from, read only.
const HIDDEN: [&str; 4] = ["/dev", "/proc", "/sys", "/scratch"];

/// This machine, as a guest with a network to it sees it: QEMU's own default.
const HOST: &str = "10.0.2.2";

const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Native NVMe multipathing, `nvme_core.multipath`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum Multipath {
    Y,
    N,
}

impl Multipath {
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Y => "Y",
            Self::N => "N",
        }
    }
}

pub(crate) struct Request {
    pub(crate) series: Series,
    pub(crate) multipath: Multipath,
    /// After those that every guest has.
    pub(crate) kernel_arguments: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) memory_mib: u32,
    pub(crate) accel: Option<Accel>,
    pub(crate) results: Option<PathBuf>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    /// For QEMU's `-plugin`: watches the instructions that are emulated.
    pub(crate) plugin: Option<String>,
    pub(crate) command: Vec<String>,
    pub(crate) init: Init,
    /// Whether the command is expected to shut the guest down, rather than to end by itself.
    pub(crate) until: Until,
    /// Keeps the guest's scratch disk under this name.
    pub(crate) scratch: Option<PathBuf>,
    pub(crate) beside: Beside,
    /// A network to this machine, with ports of this machine's loopback that lead to the guest's.
    pub(crate) host_network: Option<Vec<(u16, u16)>>,
}

/// Another guest on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Nobody,
    /// Boots one, for this shell command.
    Second(String),
    /// Was booted as one.
    First,
}

/// What ends a run well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// The command's end.
    Exit,
    /// The guest's own, which the command brings about.
    Shutdown,
}

/// Gives the exit status for this process.
pub(crate) fn run(layout: &Layout, request: &Request) -> Result<u8> {
    let directory = working_directory()?;
    layout.remove_stale();
    let kernel = kernels::prepare(layout, request.series, &[])?;
    let accel = match request.accel {
        // KVM shows a plugin nothing, and two processors at once would race in its counters.
        _ if request.plugin.is_some() => Accel::TcgSingle,
        Some(accel) => accel,
        None => accel::choose(layout, &kernel)?,
    };
    let (log, results) = outputs(layout, request)?;
    let token = fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading a token")?;
    let (mut peer, link) = match &request.beside {
        Beside::Nobody => (None, None),
        Beside::First => (None, Some(End::of_second()?)),
        Beside::Second(command) => {
            let (peer, end) = Peer::start(layout, request, command, accel, &log, &results)?;
            (Some(peer), Some(end))
        }
    };
    let environment = environment(request, link.as_ref());
    let job = Job {
        token: token.trim(),
        init: request.init,
        directory: &directory,
        command: &request.command,
        environment: &environment,
        timeout: request.timeout,
    };

    let files = tempfile::Builder::new()
        .prefix(layout::RUN_PREFIX)
        .tempdir_in(layout.root())
        .with_context(|| format!("creating a directory in {}", layout.root().display()))?;
    let initramfs = files.path().join("initramfs");
    let scratch = request.scratch.clone().unwrap_or_else(|| files.path().join("scratch"));
    fs::write(&initramfs, initramfs::build(&kernel, &job)?)
        .with_context(|| format!("writing {}", initramfs.display()))?;
    make_scratch(&scratch)?;
    let multipath = request.multipath.letter();
    // The last of two that contradict each other is the one that counts.
    let kernel_arguments = [
        [format!("nvme_core.multipath={multipath}")].as_slice(),
        request.kernel_arguments.as_slice(),
    ]
    .concat()
    .join(" ");
    let machine = Machine {
        accel,
        memory_mib: request.memory_mib,
        kernel: &kernel.image(),
        initramfs: &initramfs,
        console: &log,
        kernel_arguments: &kernel_arguments,
        plugin: request.plugin.as_deref(),
    };
    let devices = Devices {
        scratch: &scratch,
        results: &results,
        link: link.as_ref(),
        host_network: request.host_network.as_deref(),
    };
    eprintln!(
        "rds-vm: kernel {} ({accel:?}), nvme_core.multipath={multipath}, console in {}",
        kernel.release,
        log.display()
    );

    let signals = guest::catch_signals()?;
    let mut files = Some(files);
    let mut ready = |after: Duration| {
        eprintln!("rds-vm: guest ready after {:.1} s", after.as_secs_f32());
        // QEMU holds its files open by now; unlinked, they go away however this ends.
        files = None;
    };
    let mut attempts = 1..BOOT_ATTEMPTS;
    let ending = loop {
        let ending =
            guest::run(machine.command(), &devices, &signals, job.token, job.timeout, &mut ready)?;
        let retry = ending == Ending::NoBoot && console::contains(&log, accel::RACE);
        match attempts.next().filter(|_| retry) {
            Some(attempt) => keep_failed_boot(&log, attempt)?,
            None => break ending,
        }
    };
    let status = match (request.until, ending) {
        (Until::Shutdown, Ending::Died) => 0,
        (Until::Shutdown, Ending::Exit(status)) => {
            eprintln!("rds-vm: the command ended with {status} and shut nothing down");
            1
        }
        (_, ending) => report(&ending, &log, request.timeout),
    };
    if let Some(peer) = &mut peer {
        peer.report(status == 0);
    }
    Ok(status)
}

fn working_directory() -> Result<PathBuf> {
    let directory = std::env::current_dir().context("finding the current directory")?;
    if let Some(hidden) = HIDDEN.iter().find(|hidden| directory.starts_with(hidden)) {
        let directory = directory.display();
        bail!("the guest has its own {hidden} and cannot run in {directory}: start from elsewhere");
    }
    Ok(directory)
}

/// The console log (its directory made) and the results directory (made).
fn outputs(layout: &Layout, request: &Request) -> Result<(PathBuf, PathBuf)> {
    let name = layout::run_name(request.series);
    let log = request.log.clone().unwrap_or_else(|| layout.console_log(&name));
    let results = request.results.clone().unwrap_or_else(|| layout.results(&name));
    let (log, results) = (absolute(&log)?, absolute(&results)?);
    for directory in log.parent().into_iter().chain([results.as_path()]) {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    Ok((log, results))
}

fn environment(request: &Request, link: Option<&End>) -> Vec<(String, String)> {
    let series = request.series.to_string();
    let ours = [
        ("PATH", GUEST_PATH),
        ("HOME", "/root"),
        ("RDS_VM", "1"),
        ("RDS_VM_KERNEL", &series),
        ("RDS_VM_MULTIPATH", request.multipath.letter()),
        ("RDS_VM_RESULTS", "/results"),
    ];
    let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let link = link.map(|end| ("RDS_VM_LINK".to_owned(), end.place.address()));
    let host = request.host_network.as_ref().map(|_| ("RDS_VM_HOST".to_owned(), HOST.to_owned()));
    let link = link.into_iter().chain(host);
    ours.into_iter().chain(link).chain(request.environment.iter().cloned()).collect()
}

/// Makes way for another attempt: the command has not started, so nothing was lost.
fn keep_failed_boot(log: &Path, attempt: u32) -> Result<()> {
    let kept = log.with_extension(format!("boot-{attempt}.log"));
    fs::rename(log, &kept)
        .with_context(|| format!("moving {} to {}", log.display(), kept.display()))?;
    eprintln!(
        "rds-vm: the boot hit a bug of QEMU before 8.1 ({} in {}); booting again",
        accel::RACE,
        kept.display()
    );
    Ok(())
}

/// Says how it ended, with the console's end where that helps, and gives the exit status.
fn report(ending: &Ending, log: &Path, timeout: Duration) -> u8 {
    let (status, failure) = match ending {
        Ending::Exit(status) => {
            for line in console::complaints(log) {
                eprintln!("rds-vm: the kernel complained: {line}");
            }
            (u8::try_from(*status).unwrap_or(1), None)
        }
        Ending::Deadline => (
            STATUS_DEADLINE,
            Some(format!("the command had not ended after {} s; guest killed", timeout.as_secs())),
        ),
        Ending::NoBoot => (
            STATUS_NO_GUEST,
            Some(format!("the guest did not boot (it has {} s)", BOOT_DEADLINE.as_secs())),
        ),
        Ending::Died => (STATUS_NO_GUEST, Some("the guest died under the command".to_owned())),
        Ending::Interrupted(signal) => {
            eprintln!("rds-vm: interrupted; guest killed");
            (u8::try_from(128 + signal).unwrap_or(STATUS_NO_GUEST), None)
        }
    };
    if let Some(failure) = failure {
        eprintln!("rds-vm: {failure}. End of its console ({}):", log.display());
        eprint!("{}", console::tail(log, io::stderr().is_terminal()));
        eprintln!("rds-vm: {failure}");
        if console::contains(log, accel::RACE) {
            eprintln!(
                "rds-vm: `{}` is a bug of QEMU before 8.1, not of what was tested: run again, or \
                 with RDS_VM_ACCEL=tcg-single, which is slower and does not have it",
                accel::RACE
            );
        }
    }
    status
}

/// The guest's scratch disk, formatted here: the host is many times faster at it.
fn make_scratch(path: &Path) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(SCRATCH_BYTES))
        .with_context(|| format!("creating the scratch disk {}", path.display()))?;
    command::run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "rds-scratch"]).arg(path))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("making {} absolute", path.display()))
}
