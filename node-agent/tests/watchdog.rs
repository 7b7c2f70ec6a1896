//! An agent in which something really hangs must not tell systemd that it is alive.
//!
//! The agent's own keeper and watchdog run in a process of their own, which is this test
//! program once more: systemd's variables are read from the environment.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rds_csi_proto::ids::{HostNqn, Portal, VolumeId};
use rds_node_agent::journal::Journal;
use rds_node_agent::metrics::Metrics;
use rds_node_agent::session::beat::{Board, ROUND};
use rds_node_agent::session::copy::Copies;
use rds_node_agent::session::keeper::Keeper;
use rds_node_agent::session::{Content, SessionSpec};
use rds_node_agent::watchdog;

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
/// What systemd would be told to wait; the agent reports four times as often.
const LIMIT: Duration = Duration::from_secs(2);
/// Made by the child when everything runs, and by the test when something is to hang.
const RUNS: &str = "runs";
const HANG: &str = "hang";

/// What hangs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hang {
    Nothing,
    Task,
    Runtime,
}

struct Agent {
    child: Child,
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start(hang: Hang) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_agent_in_its_own_process", "--nocapture"])
            .env("TEST_AGENT_DIR", dir.path())
            .env("TEST_AGENT_HANG", format!("{hang:?}"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("WATCHDOG_USEC", LIMIT.as_micros().to_string())
            .spawn()
            .unwrap();
        let agent = Self { child, socket, dir };
        let began = Instant::now();
        while !agent.dir.path().join(RUNS).exists() {
            assert!(began.elapsed() < Duration::from_secs(60), "the agent does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    /// Signs of life that come within `time`.
    fn signs(&self, time: Duration) -> usize {
        let (began, mut count) = (Instant::now(), 0);
        let mut message = [0; 256];
        loop {
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() {
                return count;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            if let Ok(length) = self.socket.recv(&mut message) {
                assert_eq!(message[..length].trim_ascii(), b"WATCHDOG=1");
                count += 1;
            }
        }
    }

    fn hang(&self) {
        std::fs::write(self.dir.path().join(HANG), "").unwrap();
    }
}

#[test]
fn a_sound_agent_reports_and_goes_on_reporting() {
    let agent = Agent::start(Hang::Nothing);
    agent.hang();
    assert!(agent.signs(LIMIT) >= 2);
    agent.signs(ROUND);
    assert!(agent.signs(LIMIT) >= 2, "it fell silent though nothing hangs");
}

#[test]
fn an_agent_with_a_task_that_hangs_falls_silent() {
    let agent = Agent::start(Hang::Task);
    assert!(agent.signs(LIMIT) >= 2);
    agent.hang();
    agent.signs(ROUND + LIMIT);
    assert_eq!(agent.signs(LIMIT * 2), 0, "a volume's task hangs, yet systemd hears nothing of it");
}

#[test]
fn an_agent_whose_runtime_hangs_falls_silent() {
    let agent = Agent::start(Hang::Runtime);
    assert!(agent.signs(LIMIT) >= 2);
    agent.hang();
    agent.signs(LIMIT);
    assert_eq!(agent.signs(LIMIT * 2), 0, "the runtime hangs, yet systemd hears nothing of it");
}

/// Does nothing unless it is started by the tests above.
#[test]
fn the_agent_in_its_own_process() {
    let Some(dir) = std::env::var_os("TEST_AGENT_DIR").map(PathBuf::from) else { return };
    let hang = match std::env::var("TEST_AGENT_HANG").unwrap().as_str() {
        "Task" => Hang::Task,
        "Runtime" => Hang::Runtime,
        _ => Hang::Nothing,
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    // From outside the runtime, so that it can be watched hanging.
    let keeper = runtime.block_on(start(&dir));
    std::fs::write(dir.join(RUNS), "").unwrap();
    while !dir.join(HANG).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    match hang {
        Hang::Nothing => {}
        Hang::Task => hang_the_task(&runtime, &dir, keeper),
        Hang::Runtime => {
            for _ in 0..2 {
                runtime.spawn(async { std::thread::sleep(Duration::MAX) });
            }
        }
    }
    // The test ends this process.
    std::thread::sleep(Duration::from_secs(120));
}

async fn start(dir: &Path) -> Keeper {
    let (journal, _) = Journal::open(&dir.join("state")).unwrap();
    let (metrics, board) = (Arc::new(Metrics::new().unwrap()), Board::default());
    let copies = Copies::new(dir.join("sessions"));
    let keeper = Keeper::start(journal, copies, metrics, board.clone()).await.unwrap();
    let spec = SessionSpec {
        volume: VOLUME.parse().unwrap(),
        nqn: "nqn.2000-02.com.mikrotik:x".parse().unwrap(),
        host_nqn: HostNqn::random(),
        portal: Portal::parse("127.0.0.1", "9").unwrap(),
        ctrl_loss_tmo: -1,
        reconnect_delay: 1,
        keep_alive_tmo: 5,
        nr_io_queues: 1,
        shield: true,
        io_timeout_secs: 0,
        reattach_check_secs: 60,
        arrival: None,
    };
    // Nothing answers there; the session's task lives on all the same.
    keeper.attach(spec, Duration::from_millis(100)).await.unwrap_err();
    tokio::spawn(watchdog::watch(board));
    keeper
}

/// The task writes a second copy of the record with calls that are expected to touch memory
/// only. A pipe in that place, which nobody reads, stops it in the kernel.
fn hang_the_task(runtime: &tokio::runtime::Runtime, dir: &Path, keeper: Keeper) {
    let pipe = dir.join(format!("sessions/{VOLUME}.new"));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let volume: VolumeId = VOLUME.parse().unwrap();
    runtime.spawn(async move { keeper.set_content(&volume, Content::Raw).await });
}
