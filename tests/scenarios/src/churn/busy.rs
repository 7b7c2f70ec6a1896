//! The busy check on a node with many processes: the one that has a file of the volume open
//! is found, named, and found soon.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tonic::Code;

use super::PAUSE;
use crate::csi::{Csi, Volume};
use crate::demo::status;
use crate::fleet;
use crate::report::Report;

const PROCESSES: usize = 2000;
/// Until all of them run, in an emulated guest.
const STARTS: Duration = Duration::from_secs(180);
/// For the whole refused call, at the host's speed: the search is most of it.
const MOST: Duration = Duration::from_millis(200);
const TIMES: usize = 7;

/// A process group that ends with this.
struct Crowd(Child);

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

impl Crowd {
    /// One shell and its children.
    async fn gather(count: usize) -> Result<Self> {
        let script = format!("for ((n = 0; n < {count}; n++)); do sleep 3600 & done; wait");
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).stdin(Stdio::null()).process_group(0);
        let (began, crowd) = (Instant::now(), Self(shell.spawn().context("start bash")?));
        while crowd.children()? < count {
            let now = crowd.children()?;
            ensure!(began.elapsed() < STARTS, "only {now} processes run after {STARTS:?}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(crowd)
    }

    /// The kernel's own processes come and go; these stay.
    fn children(&self) -> Result<usize> {
        let pid = self.0.id();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(list.split_whitespace().count())
    }
}

fn processes() -> Result<usize> {
    let numbers = fs::read_dir("/proc")?.flatten();
    let is_pid = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    Ok(numbers.filter(|e| e.file_name().to_str().is_some_and(is_pid)).count())
}

/// Keeps a file open, as a backup program that was forgotten would.
fn holder(file: File) -> Result<Crowd> {
    let mut sleep = Command::new("sleep");
    sleep.arg("3600").stdin(file).process_group(0);
    Ok(Crowd(sleep.spawn().context("start sleep")?))
}

/// The first volume has a file system.
pub(super) async fn told(report: &Report, csi: &Csi, volumes: &mut [Volume]) -> Result<()> {
    let (mut csi, volume) = (csi.clone(), volumes.first().context("no volume")?.clone());
    csi.mount(&volume).await.map_err(status("stage and publish"))?;
    let file = volume.staging.join("held");
    fs::write(&file, "in use")?;
    csi.unpublish(&volume).await.map_err(status("unpublish"))?;
    let user = holder(File::open(&file)?)?;
    let alone = refused(&mut csi, &volume, &user).await?;
    let crowd = Crowd::gather(PROCESSES).await?;
    let running = processes()?;
    report.say(format!("{running} processes run"));
    let crowded = refused(&mut csi, &volume, &user).await?;
    drop(crowd);
    drop(user);
    csi.unstage(&volume).await.map_err(status("unstage when it is free"))?;
    judge(report, running, alone, crowded)
}

/// The median of several refusals, each of which names the user.
async fn refused(csi: &mut Csi, volume: &Volume, user: &Crowd) -> Result<Duration> {
    let named = format!("pid {} (sleep): open file {}", user.0.id(), volume.staging.display());
    let mut took = Vec::new();
    for n in 0..TIMES {
        let began = Instant::now();
        let answer = csi.unstage(volume).await;
        took.push(began.elapsed());
        let Err(refusal) = answer else { bail!("a volume with an open file was unstaged") };
        let (code, text) = (refusal.code(), refusal.message());
        ensure!(code == Code::FailedPrecondition, "{code:?}: {text}");
        ensure!(text.contains(&named), "it does not name {named:?}: {text}");
        if n == 0 {
            println!("  {code:?}: {text}");
        }
    }
    took.sort_unstable();
    Ok(took[TIMES / 2])
}

fn judge(report: &Report, running: usize, alone: Duration, crowded: Duration) -> Result<()> {
    let (read, compute) = fleet::speed()?;
    let slower = match fleet::host_speed() {
        // The smaller of the two, so as not to flatter.
        Some((host_read, host_compute)) => (read / host_read).min(compute / host_compute).max(1.0),
        None => {
            report.say("RDS_HOST_SPEED is not given (`rds-scenario speed` on the host)");
            1.0
        }
    };
    let scaled = crowded.div_f64(slower);
    report.say(format!(
        "NodeUnstage is refused after {alone:.1?} without them, after {crowded:.1?} with \
         {running} processes; {scaled:.1?} at the host's speed (the guest is {slower:.1} times \
         slower)"
    ));
    ensure!(scaled < MOST, "the search takes {scaled:.1?} at the host's speed");
    Ok(())
}
