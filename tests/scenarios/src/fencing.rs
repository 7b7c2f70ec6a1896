//! A node that was given up while it still writes: its volume goes to another node. The
//! first one must be shut out by the target, must notice, and must never write again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::csi::{Csi, Volume, filesystem, with_retries};
use crate::demo::{no_devices, status};
use crate::process::tail;
use crate::report::Report;
use crate::stack::Stack;
use crate::writer::Writer;

const BYTES: i64 = 64 << 20;
const OTHER_NODE: &str = "node-2";
/// How long a volume that nobody holds is left so at least: longer than the agent takes to
/// ask. On a busy machine it is left so until the agent has said what it heard.
const UNEXPORTED: Duration = Duration::from_secs(9);
const UNEXPORTED_AT_MOST: Duration = Duration::from_secs(60);
/// From the other node's attachment until the first one knows: the kernel's next attempt
/// (2 s) or the agent's own question (5 s), asked twice, in an emulated guest.
const FENCED: Duration = Duration::from_secs(30);
/// From then until its waiting write has failed.
const TOLD: Duration = Duration::from_secs(20);
/// How long a fenced node is watched for writes.
const WATCHED: Duration = Duration::from_secs(5);
/// Taking a fenced volume off its node.
const CLEARED: Duration = Duration::from_secs(60);
const RECOVERY: Duration = Duration::from_secs(120);

/// Runs it; true if all was as it should be.
pub(crate) async fn run() -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("fencing, Linux {kernel}"));
    let mut story = match Story::begin(&report).await {
        Ok(story) => story,
        Err(error) => {
            report.case("everything starts", Err(error));
            return report.finish();
        }
    };
    let result = story.tell(&mut report).await;
    if !report.case("the story is told to its end", result) {
        println!("--- agent\n{}\n--- controller\n{}", tail("agent", 60), tail("controller", 20));
    }
    report.case("everything ends when told to", story.stack.stop());
    report.finish()
}

struct Story {
    stack: Stack,
    csi: Csi,
    volume: Volume,
    writer: Writer,
}

impl Story {
    async fn begin(report: &Report) -> Result<Self> {
        let stack = Stack::start().await?;
        // As on an appliance with other volumes: its portal answers whatever is exported.
        stack.order(&["portal", "open"])?;
        let mut csi = stack.csi().await?;
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let mut volume = csi
            .create(&name, BYTES, filesystem("ext4"), HashMap::new())
            .await
            .map_err(status("create"))?;
        csi.attach(&mut volume).await.map_err(status("attach"))?;
        csi.mount(&volume).await.map_err(status("stage and publish"))?;
        let writer = Writer::start(&volume.target, false)?;
        report.say(format!("{} is attached, mounted and written to on node-1", volume.id));
        Ok(Self { stack, csi, volume, writer })
    }

    async fn tell(&mut self, report: &mut Report) -> Result<()> {
        self.writer.progress(50, RECOVERY).await?;
        self.csi.detach(&self.volume).await.map_err(status("detach from node-1"))?;
        // On return nobody has the volume: what is on the disk now is all there will be.
        let disk = self.disk()?;
        report.say("detached from node-1, which goes on writing into its shield");

        let result = self.not_exported(report).await;
        report.case("a volume that is not exported is waited for", result);

        let context = self.csi.attach_to(&self.volume, OTHER_NODE).await;
        let context = context.map_err(status("attach to node-2"))?;
        ensure!(context != self.volume.publish_context, "node-2 got node-1's host NQN");
        let result = self.fenced(report).await;
        let fenced = result.is_ok();
        report.case("a volume that another node holds is fenced", result);
        ensure!(fenced, "without that the rest proves nothing");
        let result = self.shut_out(report, disk).await;
        report.case("a fenced node writes nothing", result);
        let result = self.taken_off(report, disk).await;
        report.case("a fenced volume is taken off its node", result);

        let detached = self.csi.detach_from(&self.volume, OTHER_NODE).await;
        detached.map_err(status("detach from node-2"))?;
        let result = self.next_attachment(report).await;
        report.case("the next attachment has all that was acknowledged", result);
        self.csi.delete(&self.volume).await.map_err(status("delete"))?;
        let file = self.stack.backing_file(&self.volume.id);
        ensure!(!file.exists(), "{} is still there", file.display());
        Ok(())
    }

    /// A checksum of the volume as the appliance has it.
    fn disk(&self) -> Result<u32> {
        let path = self.stack.backing_file(&self.volume.id);
        let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let (mut sum, mut buffer) = (crc32fast::Hasher::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(sum.finalize()),
                n => sum.update(buffer.get(..n).unwrap_or_default()),
            }
        }
    }

    fn reason(&self) -> Result<(String, String)> {
        let view = self.stack.status(&self.volume.id)?;
        let text = |key: &str| view[key].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("reason")))
    }

    async fn not_exported(&self, report: &Report) -> Result<()> {
        let began = Instant::now();
        let mut said = None;
        let waited = |said: &Option<_>| {
            let least = if said.is_some() { UNEXPORTED } else { UNEXPORTED_AT_MOST };
            began.elapsed() > least
        };
        while !waited(&said) {
            let (state, reason) = self.reason()?;
            ensure!(state != "Fenced", "fenced although nobody else holds it: {reason}");
            if reason.contains("no such subsystem") {
                said = Some(format!("{state}: {reason}"));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let said = said.with_context(|| {
            let (state, reason) = self.reason().unwrap_or_default();
            format!("the agent does not say that it is not exported, but {state}: {reason}")
        })?;
        report.say(format!("after {:.1?} without an export: {said}", began.elapsed()));
        ensure!(self.writer.error().is_none(), "a write failed: {:?}", self.writer.error());
        Ok(())
    }

    async fn fenced(&self, report: &Report) -> Result<()> {
        let began = Instant::now();
        loop {
            let (state, reason) = self.reason()?;
            if state == "Fenced" {
                ensure!(reason.contains("Connect Invalid Host"), "the reason is {reason:?}");
                report.say(format!("fenced after {:.1?}: {reason}", began.elapsed()));
                break;
            }
            if began.elapsed() > FENCED {
                bail!("after {FENCED:?} it is {state}: {reason}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Linux 6.1 would go on with the old controller for ever.
        while fs::read_dir("/sys/class/nvme")?.count() > 0 {
            ensure!(began.elapsed() < FENCED, "the fenced node keeps its controller");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let by_hand = self.stack.agent_cli(&["reconnect", &self.volume.id]);
        let refused = by_hand.err().context("a fenced session was reconnected by hand")?;
        ensure!(refused.to_string().contains("fenced"), "it said {refused:#}");
        Ok(())
    }

    async fn shut_out(&self, report: &Report, disk: u32) -> Result<()> {
        let last = self.writer.last();
        let began = Instant::now();
        // Whoever waits for a volume that will not come back has to hear of it.
        let error = loop {
            if let Some(error) = self.writer.error() {
                break error;
            }
            ensure!(began.elapsed() < TOLD, "the waiting write did not fail within {TOLD:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        ensure!(error.contains("os error 5"), "the waiting write ended with {error}");
        report.say(format!("record {last} is the last one; the next one's write failed: {error}"));
        tokio::time::sleep(WATCHED).await;
        ensure!(self.writer.last() == last, "a fenced node's write was acknowledged");
        ensure!(self.disk()? == disk, "a fenced node's write reached the disk");
        Ok(())
    }

    async fn taken_off(&mut self, report: &Report, disk: u32) -> Result<()> {
        let began = Instant::now();
        let csi = &self.csi;
        with_retries("unpublish and unstage", CLEARED, || {
            let (mut csi, volume) = (csi.clone(), self.volume.clone());
            async move { csi.unmount(&volume).await }
        })
        .await
        .map_err(status("unpublish and unstage"))?;
        report.say(format!("unpublished and unstaged in {:.1?}", began.elapsed()));
        self.writer.stop(RECOVERY).await?;
        no_devices()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.volume.id), "a mount is left");
        ensure!(self.disk()? == disk, "a fenced node's write reached the disk in the end");
        Ok(())
    }

    async fn next_attachment(&mut self, report: &Report) -> Result<()> {
        self.csi.attach(&mut self.volume).await.map_err(status("attach again"))?;
        self.csi.mount(&self.volume).await.map_err(status("mount again"))?;
        let last = self.writer.last();
        let checked = self.writer.verify(last)?;
        report.say(format!("{checked} records read back, the newest acknowledged is {last}"));
        self.csi.unmount(&self.volume).await.map_err(status("unmount"))?;
        self.csi.detach(&self.volume).await.map_err(status("detach"))?;
        no_devices()
    }
}
