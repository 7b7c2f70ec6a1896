//! Snapshots of volumes that are attached and written to, a file system and a raw block
//! volume, on a btrfs pool: what is restored from them is the data of that moment, beside the original on
//! one node, under a writer that goes on.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rds_csi_proto::csi::volume_content_source::{SnapshotSource, Type};
use rds_csi_proto::csi::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    VolumeContentSource,
};

use crate::csi::{Csi, Volume, filesystem, raw_block, request, with_retries};
use crate::demo::{no_devices, nothing_exported, status, taken_away};
use crate::process::{run as command, tail};
use crate::report::Report;
use crate::stack::Stack;
use crate::writer::{Pace, Writer, verify_copy};

const MIB: i64 = 1 << 20;
/// No place is written twice in this story.
const PACE: Pace = Pace { pause_ms: 40, slots: 4000 };
const RECOVERY: Duration = Duration::from_secs(120);

/// What the first volume has on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// As small as it can be: a restore is a copy, and an emulated guest copies slowly.
    Ext4,
    /// Takes 300 MiB at least, and refuses to be mounted twice with one UUID.
    Xfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Of the file system and of the raw block volume.
    fn sizes(self) -> [i64; 2] {
        match self {
            Self::Ext4 => [32 * MIB, 16 * MIB],
            Self::Xfs => [320 * MIB, 16 * MIB],
        }
    }

    /// What is restored from the first is larger: its file system has to fill it.
    fn restored(self) -> [i64; 2] {
        let [first, second] = self.sizes();
        [first / 2 * 3, second]
    }
}

/// Runs it; true if all was as it should be.
pub(crate) async fn run(kind: Kind) -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("snapshots, Linux {kernel}"));
    let mut story = match Story::begin(&report, kind).await {
        Ok(story) => story,
        Err(error) => {
            report.case("everything starts", Err(error));
            return report.finish();
        }
    };
    let result = story.tell(&mut report).await;
    if !report.case("the story is told to its end", result) {
        println!("--- agent\n{}\n--- controller\n{}", tail("agent", 60), tail("controller", 30));
    }
    report.case("everything ends when told to", story.stack.stop().and_then(|()| unmount_pool()));
    report.finish()
}

fn unmount_pool() -> Result<()> {
    command(&["umount", "/scratch/rds/sim"]).map(drop)
}

struct Story {
    kind: Kind,
    stack: Stack,
    csi: Csi,
    volumes: Vec<Volume>,
    writers: Vec<Writer>,
}

/// A snapshot, and the last records that were reported before it was asked for and after it
/// was there.
struct Cut {
    id: String,
    before: u64,
    after: u64,
}

impl Story {
    async fn begin(report: &Report, kind: Kind) -> Result<Self> {
        let stack = Stack::start_on_btrfs().await?;
        let mut csi = stack.csi().await?;
        let (mut volumes, mut writers) = (Vec::new(), Vec::new());
        for (n, capability) in [filesystem(kind.name()), raw_block()].into_iter().enumerate() {
            let name = format!("pvc-{}", uuid::Uuid::new_v4());
            let created = csi.create(&name, kind.sizes()[n], capability, HashMap::new()).await;
            let mut volume = created.map_err(status("create"))?;
            csi.attach(&mut volume).await.map_err(status("attach"))?;
            csi.mount(&volume).await.map_err(status("stage and publish"))?;
            writers.push(Writer::start_paced(&volume.target, n == 1, PACE)?);
            volumes.push(volume);
        }
        report.say("a file system and a raw block volume are attached, and written to");
        Ok(Self { kind, stack, csi, volumes, writers })
    }

    async fn tell(&mut self, report: &mut Report) -> Result<()> {
        self.progress(30).await?;
        let mut cuts = Vec::new();
        for n in 0..2 {
            cuts.push(self.cut(n).await?);
        }
        self.progress(30).await.context("after the snapshots")?;
        report.say("a snapshot of each while it was written to; the writers went on");

        let mut restored = Vec::new();
        for (n, cut) in cuts.iter().enumerate() {
            restored.push(self.restore(n, cut).await?);
        }
        report.say("restored, attached and published beside their originals");
        for (n, cut) in cuts.iter().enumerate() {
            let result = self.compare(report, n, cut, &restored[n]);
            let kind = if n == 0 { self.kind.name() } else { "raw block" };
            report.case(&format!("a restored {kind} volume has the data of the snapshot"), result);
        }
        let grown = nix::sys::statvfs::statvfs(&restored[0].target)?;
        let size = grown.blocks() * grown.fragment_size();
        let before = u64::try_from(self.kind.sizes()[0])?;
        ensure!(size > before, "the larger restore has a file system of {size} bytes");

        let result = self.originals(report).await;
        report.case("the originals have all that was written", result);
        let result = self.end(restored, &cuts).await;
        report.case("nothing is left of volumes, snapshots and restores", result);
        Ok(())
    }

    async fn progress(&self, records: u64) -> Result<()> {
        for writer in &self.writers {
            writer.progress(records, RECOVERY).await?;
        }
        Ok(())
    }

    async fn cut(&self, n: usize) -> Result<Cut> {
        let before = self.writers[n].last();
        let name = format!("snapshot-{}", uuid::Uuid::new_v4());
        let asked = CreateSnapshotRequest {
            name,
            source_volume_id: self.volumes[n].id.clone(),
            ..CreateSnapshotRequest::default()
        };
        let made = self.csi.controller.clone().create_snapshot(request(asked)).await;
        let made = made.map_err(status("snapshot"))?.into_inner();
        let snapshot = made.snapshot.context("no snapshot in the answer")?;
        ensure!(snapshot.ready_to_use, "not ready: {snapshot:?}");
        ensure!(snapshot.size_bytes == self.kind.sizes()[n], "of another size: {snapshot:?}");
        Ok(Cut { id: snapshot.snapshot_id, before, after: self.writers[n].last() })
    }

    async fn restore(&mut self, n: usize, cut: &Cut) -> Result<Volume> {
        let source = Type::Snapshot(SnapshotSource { snapshot_id: cut.id.clone() });
        let asked = CreateVolumeRequest {
            name: format!("pvc-{}", uuid::Uuid::new_v4()),
            capacity_range: Some(CapacityRange {
                required_bytes: self.kind.restored()[n],
                limit_bytes: 0,
            }),
            volume_capabilities: vec![self.volumes[n].capability.clone()],
            volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
            ..CreateVolumeRequest::default()
        };
        let made = with_retries("restore", RECOVERY, || {
            let (mut csi, asked) = (self.csi.clone(), asked.clone());
            async move { csi.create_as(asked).await }
        });
        let mut volume = made.await.map_err(status("restore"))?;
        self.csi.attach(&mut volume).await.map_err(status("attach what was restored"))?;
        self.csi.mount(&volume).await.map_err(status("stage what was restored"))?;
        Ok(volume)
    }

    fn compare(&self, report: &Report, n: usize, cut: &Cut, restored: &Volume) -> Result<()> {
        let block = n == 1;
        let path = if block { restored.target.clone() } else { restored.target.join("records") };
        // One may have been on its way while the snapshot was made.
        let last = self.writers[n].last();
        ensure!(last > cut.after + 20, "nothing was written after the snapshot");
        let newest = verify_copy(&path, PACE, block, [cut.before, cut.after + 1, last])?;
        report.say(format!(
            "records 1 to {newest} are in it; the snapshot was made between {} and {}, and the \
             writer is at {last}",
            cut.before, cut.after
        ));
        Ok(())
    }

    async fn originals(&mut self, report: &Report) -> Result<()> {
        for writer in &mut self.writers {
            writer.stop(RECOVERY).await?;
            ensure!(writer.error().is_none(), "a write failed: {:?}", writer.error());
            let checked = writer.verify(writer.last())?;
            report.say(format!("{checked} records of the original read back"));
        }
        Ok(())
    }

    /// The snapshots go while what was restored from them is in use; then all the rest.
    async fn end(&mut self, restored: Vec<Volume>, cuts: &[Cut]) -> Result<()> {
        for cut in cuts {
            let asked = DeleteSnapshotRequest {
                snapshot_id: cut.id.clone(),
                ..DeleteSnapshotRequest::default()
            };
            let gone = self.csi.controller.delete_snapshot(request(asked)).await;
            gone.map_err(status("delete the snapshot"))?;
        }
        for volume in restored.iter().chain(&self.volumes) {
            taken_away(&mut self.csi, volume).await?;
        }
        no_devices()?;
        nothing_exported().await?;
        let disks = self.stack.order(&["list"])?.to_string();
        ensure!(!disks.contains("pvc-") && !disks.contains("snp-"), "disks are left: {disks}");
        let directory = self.stack.backing_file("x").parent().map(PathBuf::from);
        let began = Instant::now();
        loop {
            let left: Vec<_> = fs::read_dir(directory.as_ref().context("no directory")?)?
                .flatten()
                .map(|e| e.file_name())
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(10), "files are left: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
