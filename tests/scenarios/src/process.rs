//! Child processes with their logs kept.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A daemon under test.
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    /// Where its own part of the log begins.
    log_start: u64,
}

/// Where logs of a run go: the guest's results, or a scratch directory.
pub(crate) fn results() -> PathBuf {
    std::env::var_os("RDS_VM_RESULTS").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// A program of this project, which lies beside this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.exists() {
        Ok(path)
    } else {
        bail!("{} is missing: cargo build --workspace", path.display())
    }
}

/// From SIGKILL to the end; reads of a lost session may hold it up for a keep-alive timeout.
const KILLED: Duration = Duration::from_secs(30);
/// No command of these stories takes longer, in an emulated guest either.
const DEADLINE: &str = "400";

/// Runs a command to its end, and fails with its output if it fails, or takes too long.
pub(crate) fn run(command: &[&str]) -> Result<String> {
    let program = command.first().context("an empty command")?;
    let output = Command::new("timeout")
        .args(["--kill-after=5", DEADLINE])
        .args(command)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

impl Daemon {
    /// Starts it, with what it prints appended to `<name>.log`.
    pub(crate) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let path = results().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path)?;
        let log_start = log.metadata()?.len();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name, child, log_start })
    }

    /// Whether it has printed this line since it was started.
    pub(crate) fn has_printed(&self, line: &str) -> bool {
        self.own_log().lines().any(|l| l.trim() == line)
    }

    /// What it has printed since it was started.
    pub(crate) fn own_log(&self) -> String {
        let log = std::fs::read(results().join(format!("{}.log", self.name))).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(0).min(log.len());
        String::from_utf8_lossy(&log[start..]).into_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("signal {}", self.name))
    }

    /// SIGKILL: as the out-of-memory killer or a crash would end it. A process that is stuck
    /// in the kernel does not end of it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > KILLED {
                bail!(
                    "{} has not ended {KILLED:?} after SIGKILL: it hangs in the kernel",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self, patience: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > patience {
                self.child.kill()?;
                bail!("{} did not end within {patience:?} of SIGTERM", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a socket accepts, or the daemon behind it has ended.
pub(crate) async fn socket_up(
    daemon: &mut Daemon,
    socket: &Path,
    patience: Duration,
) -> Result<()> {
    let began = Instant::now();
    loop {
        if tokio::net::UnixStream::connect(socket).await.is_ok() {
            return Ok(());
        }
        if daemon.has_ended()? || began.elapsed() > patience {
            bail!(
                "{} does not serve {}; the end of its log:\n{}",
                daemon.name,
                socket.display(),
                tail(daemon.name, 15)
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The end of a daemon's log.
pub(crate) fn tail(name: &str, lines: usize) -> String {
    let text = std::fs::read_to_string(results().join(format!("{name}.log"))).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
