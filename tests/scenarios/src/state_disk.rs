//! The disk of the state directory fails in each way it can, on a real file system: full,
//! read-only after an error, read-only at the agent's start, deleted. Volumes in use go on
//! through outages meanwhile; new ones are refused with a reason; and when the disk is back,
//! so is the journal, without anybody's help.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tonic::{Code, Status};

use crate::csi::{Csi, Volume, filesystem, with_retries};
use crate::demo::{no_devices, nothing_exported, status, taken_away};
use crate::process::{run as command, sibling, tail};
use crate::report::Report;
use crate::stack::Stack;
use crate::writer::Writer;

const MIB: i64 = 1 << 20;
const STATE: &str = "/var/lib/rds-csi";
const IMAGE: &str = "/scratch/state.img";
const PATIENCE: Duration = Duration::from_secs(90);

/// True if all went as it should.
pub(crate) async fn run() -> bool {
    let mut report = Report::new("state directory");
    let result = tell(&mut report).await;
    if result.is_err() {
        report.case("the story is told to its end", result);
        println!("--- agent\n{}", tail("agent", 60));
    }
    let _ = command(&["umount", "-l", STATE]);
    report.finish()
}

struct Story {
    stack: Stack,
    csi: Csi,
    /// In use all the time.
    volume: Volume,
    writer: Writer,
    /// Comes and goes.
    other: Volume,
}

async fn tell(report: &mut Report) -> Result<()> {
    disk_of_its_own()?;
    let mut story = Story::begin().await?;
    let result = story.full(report).await;
    case(report, "full: new volumes are refused, those in use go on, and space helps", result)?;
    let result = story.restarted(Disk::Full).await;
    case(report, "full: an agent that is restarted takes its volumes over", result)?;
    let result = story.fails_under_it(report).await;
    case(report, "read-only after an error: likewise, until it is mounted again", result)?;
    let result = story.restarted(Disk::ReadOnly).await;
    case(report, "read-only: an agent that is restarted takes its volumes over", result)?;
    let result = story.deleted().await;
    case(report, "deleted under the agent: written anew", result)?;
    let result = story.end(report).await;
    case(report, "every record is there, nothing is left", result)?;
    report.case("everything ends when told to", story.stack.stop());
    Ok(())
}

fn case(report: &mut Report, name: &str, result: Result<()>) -> Result<()> {
    ensure!(report.case(name, result), "the rest would prove nothing");
    Ok(())
}

/// Small, so that it is full soon; without reserved blocks, since the agent is root.
fn disk_of_its_own() -> Result<()> {
    let _ = command(&["modprobe", "loop"]);
    let _ = command(&["umount", "-l", STATE]);
    fs::create_dir_all(STATE)?;
    File::create(IMAGE)?.set_len(12 << 20)?;
    command(&["mkfs.ext4", "-q", "-m", "0", IMAGE])?;
    mount()
}

fn mount() -> Result<()> {
    command(&["mount", "-o", "loop,errors=remount-ro", IMAGE, STATE])?;
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Full,
    ReadOnly,
}

impl Disk {
    fn inflict(self) -> Result<()> {
        match self {
            Self::Full => fill(),
            Self::ReadOnly => command(&["mount", "-o", "remount,ro", STATE]).map(drop),
        }
    }

    fn mend(self) -> Result<()> {
        match self {
            Self::Full => fs::remove_file(filler()).context("make room"),
            Self::ReadOnly => command(&["mount", "-o", "remount,rw", STATE]).map(drop),
        }
    }
}

fn filler() -> std::path::PathBuf {
    Path::new(STATE).join("filler")
}

fn fill() -> Result<()> {
    let mut file = File::options().create(true).append(true).open(filler())?;
    for size in [1 << 16, 1 << 12, 512] {
        let block = vec![0xaa; size];
        while file.write_all(&block).and_then(|()| file.sync_all()).is_ok() {}
    }
    Ok(())
}

impl Story {
    async fn begin() -> Result<Self> {
        let stack = Stack::start().await?;
        let mut csi = stack.csi().await?;
        let mut volumes = Vec::new();
        for _ in 0..2 {
            let name = format!("pvc-{}", uuid::Uuid::new_v4());
            let created = csi.create(&name, 64 * MIB, filesystem("ext4"), HashMap::new()).await;
            let mut volume = created.map_err(status("create"))?;
            csi.attach(&mut volume).await.map_err(status("attach"))?;
            volumes.push(volume);
        }
        let (Some(other), Some(volume)) = (volumes.pop(), volumes.pop()) else {
            bail!("there are no volumes");
        };
        csi.mount(&volume).await.map_err(status("stage and publish"))?;
        let writer = Writer::start(&volume.target, false)?;
        writer.progress(5, PATIENCE).await?;
        Ok(Self { stack, csi, volume, writer, other })
    }

    /// The session is lost and brought back; no write may fail.
    async fn survives_an_outage(&self) -> Result<()> {
        self.stack.order(&["export-toggle", &self.volume.id, "--off-for", "1"])?;
        self.writer.progress(20, PATIENCE).await
    }

    async fn other_is_refused(&mut self) -> Result<()> {
        // A few small changes may still find a place in what the database has already.
        for _ in 0..12 {
            match self.csi.mount(&self.other).await {
                Err(refused) => return names_the_disk(&refused),
                Ok(()) => match self.csi.unmount(&self.other).await {
                    Err(refused) if refused.code() == Code::Unavailable => {
                        return names_the_disk(&refused);
                    }
                    other => other.map_err(status("unmount"))?,
                },
            }
        }
        bail!("nothing is refused on a disk that takes no write")
    }

    async fn other_is_accepted(&mut self) -> Result<()> {
        for up in [true, false] {
            let what = if up { "stage and publish" } else { "unpublish and unstage" };
            with_retries(what, PATIENCE, || {
                let (mut csi, volume) = (self.csi.clone(), self.other.clone());
                async move { if up { csi.mount(&volume).await } else { csi.unmount(&volume).await } }
            })
            .await
            .map_err(status(what))?;
        }
        self.journal_says_so()
    }

    /// The journal lists the volume in use, and no other session.
    fn journal_says_so(&self) -> Result<()> {
        let agent = sibling("rds-node-agent")?;
        let agent = agent.to_str().context("path")?;
        let told = command(&[agent, "journal", "export", "--state-dir", STATE])?;
        let told: Value = serde_json::from_str(&told)?;
        ensure!(told["problem"].is_null(), "{}", told["problem"]);
        let sessions: Vec<_> = told["sessions"].as_object().into_iter().flatten().collect();
        ensure!(sessions.len() == 1 && sessions[0].0 == &self.volume.id, "{sessions:?}");
        ensure!(told["stages"][&self.volume.id]["step"] == "Staged", "{}", told["stages"]);
        Ok(())
    }

    async fn full(&mut self, report: &Report) -> Result<()> {
        Disk::Full.inflict()?;
        report.say("the disk of the state directory is full");
        self.other_is_refused().await?;
        self.survives_an_outage().await?;
        Disk::Full.mend()?;
        self.other_is_accepted().await
    }

    async fn restarted(&mut self, disk: Disk) -> Result<()> {
        if disk == Disk::Full {
            disk.inflict()?;
            self.stack.kill_agent()?;
        } else {
            // Not before: files are open for writing.
            self.stack.kill_agent()?;
            disk.inflict()?;
        }
        self.stack.restart_agent().await?;
        self.survives_an_outage().await.context("after the restart")?;
        let view = self.stack.status(&self.volume.id)?;
        ensure!(view["state"] == "Live", "{view}");
        self.other_is_refused().await?;
        disk.mend()?;
        self.other_is_accepted().await
    }

    /// As a broken disk does: the file system refuses all writes from one moment on.
    async fn fails_under_it(&mut self, report: &Report) -> Result<()> {
        let devices = command(&["findmnt", "-no", "SOURCE", STATE])?;
        let device = Path::new(devices.trim()).file_name().context("no device")?.to_owned();
        fs::write(Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error"), "a test")?;
        report.say("the file system of the state directory has failed and is read-only");
        self.other_is_refused().await?;
        self.survives_an_outage().await?;
        command(&["umount", "-l", STATE])?;
        // Whatever it makes of the empty directory below: what counts is what is mounted.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let fsck = command(&["e2fsck", "-p", "-f", IMAGE]);
        report.say(format!("fsck: {}", fsck.unwrap_or_else(|e| format!("{e:#}"))));
        mount()?;
        self.other_is_accepted().await
    }

    async fn deleted(&mut self) -> Result<()> {
        for entry in fs::read_dir(STATE)?.flatten() {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        let began = Instant::now();
        // Nobody calls: it notices by itself.
        while let Err(error) = self.journal_says_so() {
            ensure!(began.elapsed() < Duration::from_secs(20), "{error:#}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.stack.kill_agent()?;
        self.stack.restart_agent().await?;
        self.survives_an_outage().await
    }

    async fn end(&mut self, report: &Report) -> Result<()> {
        self.writer.stop(PATIENCE).await?;
        ensure!(self.writer.error().is_none(), "a write failed: {:?}", self.writer.error());
        let checked = self.writer.verify(self.writer.last())?;
        report.say(format!("{checked} records read back"));
        // A pod can end although nothing can be written down.
        Disk::Full.inflict()?;
        self.csi.unpublish(&self.volume).await.map_err(status("unpublish"))?;
        ensure!(!self.volume.target.exists(), "the target is still there");
        Disk::Full.mend()?;
        let unstaged = with_retries("unstage", PATIENCE, || {
            let (mut csi, volume) = (self.csi.clone(), self.volume.clone());
            async move { csi.unstage(&volume).await }
        });
        unstaged.await.map_err(status("unstage"))?;
        no_devices()?;
        for volume in [&self.volume, &self.other] {
            taken_away(&mut self.csi, volume).await?;
        }
        nothing_exported().await
    }
}

fn names_the_disk(refused: &Status) -> Result<()> {
    let (code, message) = (refused.code(), refused.message());
    ensure!(code == Code::Unavailable && message.contains(STATE), "{code:?}: {message}");
    println!("  {code:?}: {message}");
    Ok(())
}
