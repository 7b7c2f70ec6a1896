//! One guest, from start to end: passes its output on, and watches deadlines, signals and
//! QEMU itself. One thread, one `poll`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::qemu::{Devices, Running};
use crate::stream::{Decoder, Piece};

/// A guest is up in about ten seconds when emulated on an idle machine; this is for a busy one.
pub(crate) const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// How a run came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The command ended by itself.
    Exit(i32),
    /// The command had not ended by its deadline.
    Deadline,
    /// The guest did not come up.
    NoBoot,
    /// The guest went away under the command: a panic, or QEMU was killed.
    Died,
    /// Somebody wants this process to end.
    Interrupted(i32),
}

/// Blocks the signals that end this process, so that `poll` sees them instead. The
/// standard library resets the mask in children.
pub(crate) fn catch_signals() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("creating a signalfd")
}

/// Runs the machine. `ready` is called once the guest is up (QEMU has all files open).
pub(crate) fn run(
    mut command: Command,
    devices: &Devices<'_>,
    signals: &SignalFd,
    token: &str,
    timeout: Duration,
    mut ready: impl FnMut(Duration),
) -> Result<Ending> {
    let (mut stream, port) =
        UnixStream::pair().context("creating a socket pair for the guest's output")?;
    devices.add(&mut command, OwnedFd::from(port))?;
    let started = Instant::now();
    let _running = Running::start(command)?;

    let mut decoder = Decoder::new(token);
    let mut is_ready = false;
    let mut deadline = started + BOOT_DEADLINE;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            pass_on(&decoder.finish())?;
            return Ok(if is_ready { Ending::Deadline } else { Ending::NoBoot });
        }
        wait(&stream, signals, left)?;
        if let Ok(Some(signal)) = signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            return Ok(Ending::Interrupted(number));
        }
        if !readable(&stream)? {
            continue;
        }
        // An error (a reset, when QEMU is killed) is an end like any other.
        let count = stream.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            pass_on(&decoder.finish())?;
            return Ok(if is_ready { Ending::Died } else { Ending::NoBoot });
        }
        for piece in decoder.push(&buffer[..count]) {
            match piece {
                Piece::Output(bytes) => pass_on(&bytes)?,
                Piece::Exit(status) => return Ok(Ending::Exit(status)),
                Piece::Ready => {
                    is_ready = true;
                    ready(started.elapsed());
                    deadline = Instant::now() + timeout;
                }
            }
        }
    }
}

fn wait(stream: &UnixStream, signals: &SignalFd, left: Duration) -> Result<()> {
    // Rounded up, so that the last wait does not spin.
    let timeout =
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    let mut fds = [
        PollFd::new(stream.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for the guest"),
    }
}

fn readable(stream: &UnixStream) -> Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("waiting for the guest's output"),
    }
}

fn pass_on(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).context("passing the guest's output on")
}
