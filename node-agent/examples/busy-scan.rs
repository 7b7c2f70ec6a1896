//! How long the search for a volume's users takes on a host with many processes, on this machine
//! itself: `make bench-busy`. Exits with 1 when it is slower than was promised, or misses the
//! one user.
#![allow(clippy::print_stdout)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rds_node_agent::kernel::DeviceNumber;
use rds_node_agent::kernel::processes::{Search, scan};

const PROCESSES: usize = 2_000;
const SCANS: usize = 15;
const MOST: Duration = Duration::from_millis(200);
const STARTS: Duration = Duration::from_secs(120);
/// A file system that nobody else has open, as a volume is: on the host's own disk every process
/// would be a user.
const SOMEWHERE: &str = "/dev/shm";

/// A process group that ends with this.
struct Group(Child);

impl Group {
    fn start(mut command: Command) -> std::io::Result<Self> {
        command.process_group(0).spawn().map(Self)
    }

    fn children(&self) -> std::io::Result<usize> {
        let pid = self.0.id();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(list.split_whitespace().count())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("busy-scan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<bool, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir_in(SOMEWHERE)?;
    let file = dir.path().join("held");
    fs::write(&file, "in use")?;
    let device = DeviceNumber::from_raw(fs::metadata(&file)?.dev());
    let mut sleep = Command::new("sleep");
    sleep.arg("3600").stdin(File::open(&file)?);
    let user = Group::start(sleep)?;

    let script = format!("for ((n = 0; n < {PROCESSES}; n++)); do sleep 3600 & done; wait");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).stdin(Stdio::null());
    let (began, crowd) = (Instant::now(), Group::start(bash)?);
    while crowd.children()? < PROCESSES {
        if began.elapsed() > STARTS {
            return Err(format!("only {} processes run", crowd.children()?).into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }

    let search = Search { device, expected_mount: None };
    let mut took = Vec::new();
    let mut always_found = true;
    for _ in 0..SCANS {
        let began = Instant::now();
        let mut found = false;
        scan(&search, |holder| found |= holder.pid == Some(user.0.id()))?;
        took.push(began.elapsed());
        always_found &= found;
    }
    took.sort_unstable();
    let median = took[SCANS / 2];
    let fine = always_found && median < MOST;
    println!(
        "{} the search among {PROCESSES} processes: median {median:.1?}, best {:.1?}, worst {:.1?} \
         (less than {MOST:?}); the one user was found {}",
        if fine { "ok" } else { "FAILED" },
        took[0],
        took[SCANS - 1],
        if always_found { "each time" } else { "not each time" },
    );
    Ok(fine)
}
