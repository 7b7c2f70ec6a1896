//! What the checks look at, and what had to be asked for first.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rds_csi_proto::agent::{StatusReply, Volume};
use tokio::process::Command;

use crate::cli;
use crate::error::{Error, Result};
use crate::kernel::blocking;
use crate::kernel::programs::search_path;

use super::Subject;

/// The daemon answers from memory.
const DAEMON_DEADLINE: Duration = Duration::from_secs(5);
/// `multipath -t` reads a few files; `systemctl` asks process 1.
const TOOL_DEADLINE: Duration = Duration::from_secs(10);

/// What the daemon says, if it says anything.
#[derive(Debug)]
pub(super) enum Daemon {
    Answers(StatusReply),
    /// Nobody is there, with the reason.
    Absent(String),
    /// Somebody is there and does not answer as it should.
    Mute(String),
}

/// What a tool of the host said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ran {
    NotInstalled,
    Ended { success: bool, output: String },
    Unknown(String),
}

/// Everything that a check may look at.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) subject: Subject,
    pub(super) host: Host,
    /// Whether this runs in a container of the host: then the tools are the container's, if it has
    /// any, and say nothing about the host.
    pub(super) contained: bool,
    pub(super) daemon: Daemon,
    /// The process behind the socket.
    pub(super) daemon_pid: Option<i32>,
    pub(super) multipath_config: Ran,
    pub(super) udev_ping: Ran,
    /// `systemctl is-enabled` and `is-active` of our units, by unit.
    pub(super) units: Vec<(&'static str, Ran, Ran)>,
}

/// Units that this project ships.
const UNITS: [&str; 2] = ["rds-node-agent.service", "rds-csi-shutdown.service"];

impl Context {
    /// Asks the daemon and the tools, all at once.
    pub(super) async fn gather(subject: Subject) -> Self {
        let (daemon, daemon_pid, multipath_config, udev_ping, units) = tokio::join!(
            ask_daemon(&subject.socket),
            peer(subject.socket.clone()),
            run("multipath", &["-t"]),
            run("udevadm", &["control", "--ping", "--timeout=5"]),
            futures::future::join_all(UNITS.map(|unit| async move {
                (
                    unit,
                    run("systemctl", &["is-enabled", unit]).await,
                    run("systemctl", &["is-active", unit]).await,
                )
            })),
        );
        let contained = in_a_container();
        // Only the host's own files tell of its modules, rules, and configuration.
        let host = Host::new(if contained { "/proc/1/root" } else { "/" });
        Self { subject, host, contained, daemon, daemon_pid, multipath_config, udev_ping, units }
    }

    /// The volumes that the daemon keeps; nothing if it cannot be asked.
    pub(super) fn volumes(&self) -> Option<&[Volume]> {
        match &self.daemon {
            Daemon::Answers(reply) => Some(&reply.volumes),
            Daemon::Absent(_) | Daemon::Mute(_) => None,
        }
    }
}

/// Whether process 1 has another view of the file system, as the host's has beside the agent's pod,
/// which sees the host's processes. A container that does not see them takes itself for a host.
fn in_a_container() -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    // Whoever may not look there is no root, which is told elsewhere.
    namespace("1").is_some_and(|first| namespace("self").is_some_and(|own| own != first))
}

async fn ask_daemon(socket: &Path) -> Daemon {
    match tokio::time::timeout(DAEMON_DEADLINE, cli::client::status(socket)).await {
        Ok(Ok(reply)) => Daemon::Answers(reply),
        Ok(Err(cli::client::NoStatus::Unreachable(reason))) => Daemon::Absent(reason),
        Ok(Err(cli::client::NoStatus::Refused(reason))) => Daemon::Mute(reason),
        Err(_) => Daemon::Mute(format!("no answer within {DAEMON_DEADLINE:?}")),
    }
}

/// Who made the socket listen: the kernel remembers (unix(7), SO_PEERCRED).
async fn peer(socket: PathBuf) -> Option<i32> {
    let pid = blocking("ask who serves", DAEMON_DEADLINE, move || {
        let stream =
            UnixStream::connect(&socket).map_err(Error::kernel("connect to", socket.display()))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(|e| Error::kernel("ask for the peer of", socket.display())(e.into()))?;
        Ok(peer.pid.as_raw_nonzero().get())
    });
    pid.await.ok()
}

async fn run(program: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("PATH", search_path(std::env::var_os("PATH")))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(TOOL_DEADLINE, output).await {
        Err(_) => Ran::Unknown(format!("{program} has not ended after {TOOL_DEADLINE:?}")),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ran::NotInstalled,
        Ok(Err(error)) => Ran::Unknown(format!("start {program}: {error}")),
        Ok(Ok(output)) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.trim().is_empty() {
                text = String::from_utf8_lossy(&output.stderr).into_owned();
            }
            Ran::Ended { success: output.status.success(), output: text }
        }
    }
}

/// The host's files, below a root that tests choose.
#[derive(Debug, Clone)]
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, `None` if there is no such file.
    ///
    /// # Errors
    /// If it cannot be read: that is not the same as absent.
    pub(super) fn text(&self, path: &str) -> Result<Option<String>> {
        match fs::read(self.path(path)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(e) if absent(&e) => Ok(None),
            Err(e) => Err(Error::kernel("read", path)(e)),
        }
    }

    pub(super) fn exists(&self, path: &str) -> Result<bool> {
        self.path(path).try_exists().map_err(Error::kernel("look at", path))
    }

    /// The names in a directory, sorted; none if there is no such directory.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>> {
        let name =
            |entry: io::Result<fs::DirEntry>| -> io::Result<OsString> { Ok(entry?.file_name()) };
        let entries = match fs::read_dir(self.path(path)) {
            Ok(entries) => entries,
            Err(e) if absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(Error::kernel("list", path)(e)),
        };
        let names: io::Result<Vec<_>> = entries.map(name).collect();
        let names = names.map_err(Error::kernel("list", path))?;
        let mut names: Vec<_> = names.iter().map(|n| n.to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Processes with this command name.
    ///
    /// # Errors
    /// If /proc cannot be listed.
    pub(super) fn processes(&self, command: &str) -> Result<Vec<u32>> {
        let pids = self.list("/proc")?.into_iter().filter_map(|name| name.parse::<u32>().ok());
        // One that has ended meanwhile is none.
        let is_it = |pid: &u32| {
            let comm = fs::read_to_string(self.path(&format!("/proc/{pid}/comm")));
            comm.is_ok_and(|comm| comm.trim_end() == command)
        };
        Ok(pids.filter(is_it).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Host {
    /// Makes a file of a host that tests invent.
    pub(super) fn with(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(host.text("/etc/none").unwrap(), None);
        assert!(host.list("/etc/none").unwrap().is_empty());
        fs::create_dir_all(dir.path().join("etc/file")).unwrap();
        assert!(host.text("/etc/file").is_err(), "a directory is not an absent file");
    }

    #[tokio::test]
    async fn a_tool_that_is_not_installed_is_told_from_one_that_fails() {
        assert_eq!(run("no-such-tool", &[]).await, Ran::NotInstalled);
        let Ran::Ended { success: false, .. } = run("false", &[]).await else { panic!() };
    }
}
