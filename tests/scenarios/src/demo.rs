//! The main job: one file system and one raw block volume live their whole lives, and lose
//! their sessions in six ways while a writer goes on. Then the same without the shield,
//! which must fail: otherwise the first part proves nothing.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rds_csi_proto::agent::notices_client::NoticesClient;
use rds_csi_proto::agent::{Notice, NoticeKind, NoticesRequest};
use serde_json::Value;
use tokio::time::timeout;
use tonic::Status;

use crate::csi::{Csi, Volume, channel, filesystem, raw_block, with_retries};
use crate::faults::{ALL, Fault};
use crate::process::{run as command, tail};
use crate::report::{Report, Row};
use crate::stack::Stack;
use crate::writer::Writer;

const MIB: i64 = 1 << 20;
/// From the end of a fault until writes flow again, in an emulated guest.
const RECOVERY: Duration = Duration::from_secs(120);
/// From an item's removal until its export is gone, on a busy machine.
const UNEXPORTED: Duration = Duration::from_secs(30);

/// Runs both parts; true if all was as it should be.
pub(crate) async fn run() -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("Linux {kernel}"));
    let mut story = match Story::begin(&report, true).await {
        Ok(story) => story,
        Err(error) => {
            report.case("everything starts", Err(error));
            return report.finish();
        }
    };
    let result = story.tell(&mut report).await;
    if !report.case("the main job", result) {
        println!("--- agent\n{}\n--- controller\n{}", tail("agent", 60), tail("controller", 20));
    }
    report.case("everything ends when told to", story.stack.stop());

    let result = without_shield(&mut report).await;
    if !report.case("without the shield a write fails", result) {
        println!("--- agent\n{}", tail("agent", 40));
    }
    report.finish()
}

/// One volume of each kind, and their writers.
struct Story {
    stack: Stack,
    csi: Csi,
    volumes: Vec<Volume>,
    writers: Vec<Writer>,
}

pub(crate) fn status(what: &str) -> impl FnOnce(Status) -> anyhow::Error {
    let what = what.to_owned();
    move |s| anyhow!("{what}: {:?}: {}", s.code(), s.message())
}

impl Story {
    async fn begin(report: &Report, shield: bool) -> Result<Self> {
        let stack = Stack::start().await?;
        report.say("appliance, controller, agent and shim are up");
        let mut csi = stack.csi().await?;
        let mut volumes = Vec::new();
        let mut writers = Vec::new();
        for (bytes, capability) in [(256 * MIB, filesystem("ext4")), (64 * MIB, raw_block())] {
            let name = format!("pvc-{}", uuid::Uuid::new_v4());
            let block = volumes.len() == 1;
            let kind = if block { "raw block" } else { "ext4" };
            let parameters = HashMap::from([("shield".to_owned(), shield.to_string())]);
            let mut volume =
                csi.create(&name, bytes, capability, parameters).await.map_err(status("create"))?;
            report.say(format!("created {} ({kind}, {} MiB)", volume.id, bytes / MIB));
            csi.attach(&mut volume).await.map_err(status("attach"))?;
            csi.mount(&volume).await.map_err(status("stage and publish"))?;
            report.say(format!("attached, staged and published at {}", volume.target.display()));
            writers.push(Writer::start(&volume.target, block)?);
            volumes.push(volume);
        }
        Ok(Self { stack, csi, volumes, writers })
    }

    async fn tell(&mut self, report: &mut Report) -> Result<()> {
        self.progress(50).await.context("before any fault")?;
        for fault in ALL {
            let result = self.survive(report, fault).await;
            let failed = result.is_err();
            report.case(fault.name(), result);
            ensure!(!failed, "the volume did not survive: {}", fault.name());
        }
        let result = self.by_hand();
        report.case("a reconnect by hand leaves a healthy session alone", result);
        let result = self.check_data(report).await;
        report.case("every record is there", result);
        let result = self.another_attachment(report).await;
        report.case("the data is there in the next attachment", result);
        let result = self.end_of_life(report).await;
        report.case("delete leaves nothing behind", result);
        Ok(())
    }

    async fn progress(&self, records: u64) -> Result<()> {
        for writer in &self.writers {
            writer.progress(records, RECOVERY).await?;
        }
        Ok(())
    }

    fn each_status(&self) -> Result<Vec<Value>> {
        self.volumes.iter().map(|v| self.stack.status(&v.id)).collect()
    }

    async fn survive(&mut self, report: &mut Report, fault: Fault) -> Result<()> {
        let outages =
            |all: &[Value]| -> u64 { all.iter().map(|v| v["outages"].as_u64().unwrap_or(0)).sum() };
        let before = outages(&self.each_status()?);
        self.told().await?;
        let began = Instant::now();
        report.say(format!("fault: {}", fault.name()));
        let volumes = self.volumes.clone();
        fault.inflict(&mut self.stack, &volumes.iter().collect::<Vec<_>>()).await?;
        report.say("the cause is over");
        self.progress(20).await?;
        let ended = Instant::now();
        // Live again is what the agent says; that writes flow is what was just seen.
        let status = loop {
            let status = self.each_status()?;
            if status.iter().all(|v| v["state"] == "Live") {
                break status;
            }
            ensure!(ended.elapsed() < RECOVERY, "writes flow, but the agent says {status:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let longest = status.iter().filter_map(|v| v["lastOutageMs"].as_u64()).max();
        let stalls = [0, 1].map(|n| self.writers[n].longest_stall(began, ended));
        report.say(format!("writes flow again; they stood still for {stalls:.1?}"));
        report.row(Row {
            fault: fault.name().into(),
            // The agent that was restarted counts from its own start.
            outage: longest.filter(|ms| *ms > 0).map(Duration::from_millis),
            stalls,
            failed_writes: self.writers.iter().filter(|w| w.error().is_some()).count(),
        });
        if !matches!(fault, Fault::AgentKilled | Fault::JournalLost) {
            let after = outages(&status);
            ensure!(
                after >= before + 2,
                "the fault took no session away: {before} outages, then {after}"
            );
            let told = self.told().await?;
            for volume in &self.volumes {
                for kind in [NoticeKind::SessionLost, NoticeKind::SessionRestored] {
                    let is_told = told.iter().any(|n| n.volume_id == volume.id && n.kind() == kind);
                    ensure!(is_told, "{kind:?} of {} is not among {told:?}", volume.id);
                }
            }
        }
        Ok(())
    }

    /// What a shim would make Events of since the last time.
    async fn told(&self) -> Result<Vec<Notice>> {
        let mut agent = NoticesClient::new(channel(&self.stack.socket()));
        let listening = agent.listen(NoticesRequest {}).await;
        let mut notices = listening.map_err(status("listen to notices"))?.into_inner();
        let mut told = Vec::new();
        while let Ok(next) = timeout(Duration::from_millis(500), notices.message()).await {
            let Some(notice) = next.map_err(status("listen to notices"))? else { break };
            told.push(notice);
        }
        Ok(told)
    }

    fn by_hand(&self) -> Result<()> {
        let volume = &self.volumes[0].id;
        let before = self.stack.status(volume)?;
        let said = self.stack.agent_cli(&["reconnect", volume])?;
        ensure!(said.contains("live"), "it said {said:?}");
        let after = self.stack.status(volume)?;
        ensure!(before["controller"] == after["controller"], "{before} then {after}");
        println!("{}", self.stack.agent_cli(&["status"])?);
        println!("{}", self.stack.agent_cli(&["history", volume])?);
        Ok(())
    }

    async fn check_data(&mut self, report: &Report) -> Result<()> {
        for writer in &mut self.writers {
            writer.stop(RECOVERY).await?;
            ensure!(writer.error().is_none(), "a write failed: {:?}", writer.error());
        }
        // What is read back must come from the appliance, not from memory.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        for writer in &self.writers {
            let last = writer.last();
            let checked = writer.verify(last)?;
            report
                .say(format!("{checked} records read back, the newest is {last}; none is missing"));
        }
        Ok(())
    }

    async fn unmount_all(&mut self) -> Result<()> {
        for volume in self.volumes.clone() {
            let csi = &self.csi;
            with_retries("unpublish and unstage", RECOVERY, || {
                let (mut csi, volume) = (csi.clone(), volume.clone());
                async move { csi.unmount(&volume).await }
            })
            .await
            .map_err(status("unpublish and unstage"))?;
            ensure!(!volume.target.exists(), "{} is still there", volume.target.display());
            self.csi.detach(&volume).await.map_err(status("detach"))?;
        }
        no_devices()
    }

    async fn another_attachment(&mut self, report: &Report) -> Result<()> {
        self.unmount_all().await?;
        report.say("unpublished, unstaged, detached: no device, controller or mount is left");
        let file = self.stack.backing_file(&self.volumes[0].id);
        let file = file.to_str().context("path")?;
        command(&["e2fsck", "-f", "-n", file]).context("fsck of the file on the appliance")?;
        report.say("fsck is clean");
        let old: Vec<_> = self.volumes.iter().map(|v| v.publish_context.clone()).collect();
        for (n, volume) in self.volumes.iter_mut().enumerate() {
            self.csi.attach(volume).await.map_err(status("attach again"))?;
            ensure!(volume.publish_context != old[n], "the new attachment has the old host NQN");
            self.csi.mount(volume).await.map_err(status("mount again"))?;
        }
        for writer in &self.writers {
            writer.verify(writer.last())?;
        }
        self.unmount_all().await?;
        report.say("attached and mounted once more: the same records");
        Ok(())
    }

    async fn end_of_life(&mut self, report: &Report) -> Result<()> {
        for volume in &self.volumes {
            self.csi.delete(volume).await.map_err(status("delete"))?;
            self.csi.delete(volume).await.map_err(status("delete again"))?;
            let file = self.stack.backing_file(&volume.id);
            ensure!(!file.exists(), "{} is still there", file.display());
        }
        no_devices()?;
        nothing_exported().await?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        for volume in &self.volumes {
            ensure!(!mounts.contains(&volume.id), "a mount of {} is left", volume.id);
        }
        let status = self.stack.agent_cli(&["status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        ensure!(status["volumes"] == Value::Array(vec![]), "the agent still lists {status}");
        report.say("deleted: no file, no subsystem, no record is left");
        Ok(())
    }
}

/// Nothing of ours in device-mapper or among the controllers.
pub(crate) fn no_devices() -> Result<()> {
    for entry in fs::read_dir("/sys/block")? {
        let name = fs::read_to_string(entry?.path().join("dm/name")).unwrap_or_default();
        ensure!(!name.starts_with("rds-"), "the device {} is left", name.trim());
    }
    let controllers: Vec<_> =
        fs::read_dir("/sys/class/nvme")?.flatten().map(|e| e.file_name()).collect();
    ensure!(controllers.is_empty(), "controllers are left: {controllers:?}");
    Ok(())
}

/// The end of a volume that nobody writes to any more. What follows in the same boot must
/// not find it: a mount whose appliance is gone holds up whoever syncs.
pub(crate) async fn taken_away(csi: &mut Csi, volume: &Volume) -> Result<()> {
    let unmounted = with_retries("unpublish and unstage", RECOVERY, || {
        let (mut csi, volume) = (csi.clone(), volume.clone());
        async move { csi.unmount(&volume).await }
    });
    unmounted.await.map_err(status("unpublish and unstage"))?;
    csi.detach(volume).await.map_err(status("detach"))?;
    csi.delete(volume).await.map_err(status("delete"))?;
    Ok(())
}

/// No subsystem on the target. A removed item's export ends a moment after the item.
pub(crate) async fn nothing_exported() -> Result<()> {
    let began = Instant::now();
    loop {
        let left: Vec<_> = fs::read_dir("/sys/kernel/config/nvmet/subsystems")?
            .flatten()
            .map(|e| e.file_name())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(began.elapsed() < UNEXPORTED, "subsystems are left on the target: {left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The kernel alone: the same volume, the same faults, no shield. It must lose.
async fn without_shield(report: &mut Report) -> Result<()> {
    report.say("the same without the shield (StorageClass shield: \"false\")");
    let mut story = Story::begin(report, false).await?;
    story.progress(20).await?;
    let volumes = story.volumes.clone();
    for fault in [Fault::ExportToggled, Fault::ApplianceRebooted] {
        report.say(format!("fault: {}", fault.name()));
        fault.inflict(&mut story.stack, &volumes.iter().collect::<Vec<_>>()).await?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if story.writers.iter().all(|w| w.error().is_some()) {
                for writer in &story.writers {
                    report.say(format!("as expected: {}", writer.error().unwrap_or_default()));
                }
                return story.clear_away().await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    bail!("all writes went through without the shield: these faults prove nothing of it")
}

impl Story {
    /// Even a volume whose device has died under it can be taken away.
    async fn clear_away(mut self) -> Result<()> {
        for writer in &mut self.writers {
            writer.stop(RECOVERY).await?;
        }
        self.unmount_all().await?;
        for volume in &self.volumes {
            self.csi.delete(volume).await.map_err(status("delete"))?;
        }
        self.stack.stop()
    }
}
