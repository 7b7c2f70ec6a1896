//! A second guest beside the first, on an Ethernet link that only these two have: a process of
//! this same program, whose standard input is its end of the link.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::accel::Accel;
use crate::console;
use crate::guest::BOOT_DEADLINE;
use crate::layout::Layout;
use crate::run::Request;

/// Below the first guest's results, so that its command can read them.
const RESULTS: &str = "peer";

/// Which of the two guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    Second,
}

impl Place {
    fn number(self) -> u8 {
        match self {
            Self::First => 1,
            Self::Second => 2,
        }
    }

    /// In 10.98.0.0/24, which command.sh gives to the link's interface.
    pub(crate) fn address(self) -> String {
        format!("10.98.0.{}", self.number())
    }

    /// By which command.sh knows the interface, whatever udev calls it.
    pub(crate) fn mac(self) -> String {
        format!("52:54:00:98:00:{:02x}", self.number())
    }
}

/// A guest's end of the link.
pub(crate) struct End {
    pub(crate) place: Place,
    socket: OwnedFd,
}

impl End {
    /// Both ends; neither guest sees the other leave while this process holds them, so that a
    /// boot can be repeated.
    fn pair() -> Result<(Self, OwnedFd)> {
        let (first, second) = UnixStream::pair().context("creating the guests' link")?;
        Ok((Self { place: Place::First, socket: first.into() }, second.into()))
    }

    /// That of the second guest, as its process was given it.
    pub(crate) fn of_second() -> Result<Self> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().context("taking the link")?;
        Ok(Self { place: Place::Second, socket })
    }

    /// As QEMU's standard input, which it has no other use for.
    pub(crate) fn stdin(&self) -> Result<Stdio> {
        Ok(Stdio::from(self.socket.try_clone().context("duplicating the link")?))
    }
}

/// The second guest, which ends with this value.
pub(crate) struct Peer {
    child: Child,
    console: PathBuf,
    output: PathBuf,
}

impl Peer {
    /// Boots it; gives the first guest's end of the link as well.
    pub(crate) fn start(
        layout: &Layout,
        request: &Request,
        command: &str,
        accel: Accel,
        log: &Path,
        results: &Path,
    ) -> Result<(Self, End)> {
        let (end, theirs) = End::pair()?;
        let console = log.with_extension("peer.log");
        let results = results.join(RESULTS);
        fs::create_dir_all(&results).with_context(|| format!("creating {}", results.display()))?;
        let output = results.join("output.log");
        let file = File::create(&output).with_context(|| format!("{}", output.display()))?;
        // It boots beside the first and has to last as long.
        let timeout = request.timeout + BOOT_DEADLINE + Duration::from_secs(60);
        let accel = accel.to_possible_value().context("an acceleration without a name")?;
        let program = std::env::current_exe().context("finding this program")?;
        // setpriv: as in qemu.rs.
        let mut process = Command::new("setpriv");
        process.args(["--pdeathsig", "KILL"]).arg(program).arg("--dir").arg(layout.root());
        process.args(["run", "--linked", "--kernel", &request.series.to_string()]);
        process.args(["--multipath", request.multipath.letter(), "--accel", accel.get_name()]);
        process.args(["--timeout", &timeout.as_secs().to_string()]);
        process.args(["--memory", &request.memory_mib.to_string()]);
        if request.host_network.is_some() {
            process.arg("--host-network");
        }
        for (name, value) in &request.environment {
            process.args(["--env", &format!("{name}={value}")]);
        }
        process.arg("--log").arg(&console).arg("--results").arg(&results);
        process.args(["--", "sh", "-c", command]);
        process.stdin(Stdio::from(theirs));
        process.stdout(file.try_clone().context("duplicating a file")?).stderr(file);
        let child = process.spawn().context("starting the second guest")?;
        Ok((Self { child, console, output }, end))
    }

    /// What somebody should know of it once the first guest is done.
    pub(crate) fn report(&mut self, passed: bool) {
        for line in console::complaints(&self.console) {
            eprintln!("rds-vm: the second guest's kernel complained: {line}");
        }
        if !passed {
            let (console, output) = (self.console.display(), self.output.display());
            eprintln!("rds-vm: the second guest's console is in {console}, its output in {output}");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
