//! One volume and the pod that writes to it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rds_csi_proto::csi::VolumeCapability;
use serde_json::Value;

use crate::csi::{Csi, Volume, filesystem, raw_block, with_retries};
use crate::demo::status;
use crate::stack::Stack;
use crate::writer::{Pace, Writer};

const MIB: i64 = 1 << 20;
/// From the end of a cause until writes flow again, or a volume is taken off its node: in
/// an emulated guest, with a share of two processors.
pub(super) const RECOVERY: Duration = Duration::from_secs(120);
/// As fast as leaves an emulated processor to others. No record is overwritten in the whole
/// run, so that each one can be read back.
const PACE: Pace = Pace { pause_ms: 200, slots: 32_000 };
/// For a volume of a single case.
const BRIEF: Pace = Pace { pause_ms: 100, slots: 4096 };

/// What is on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ext4,
    Xfs,
    Raw,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Raw => "raw block",
        }
    }

    pub(super) fn capability(self) -> VolumeCapability {
        match self {
            Self::Ext4 => filesystem("ext4"),
            Self::Xfs => filesystem("xfs"),
            Self::Raw => raw_block(),
        }
    }
}

pub(super) struct Subject {
    pub(super) kind: Kind,
    pub(super) volume: Volume,
    pub(super) writer: Writer,
}

/// Creates, attaches, stages and publishes a volume.
pub(super) async fn mounted(
    csi: &mut Csi,
    kind: Kind,
    mib: i64,
    parameters: HashMap<String, String>,
) -> Result<Volume> {
    let name = format!("pvc-{}", uuid::Uuid::new_v4());
    let created = csi.create(&name, mib * MIB, kind.capability(), parameters).await;
    let mut volume = created.map_err(status("create"))?;
    csi.attach(&mut volume).await.map_err(status("attach"))?;
    csi.mount(&volume).await.map_err(status("stage and publish"))?;
    Ok(volume)
}

impl Subject {
    /// One of the three that live through everything.
    pub(super) async fn lasting(csi: &mut Csi, kind: Kind, mib: i64) -> Result<Self> {
        Self::begin(csi, kind, mib, HashMap::new(), PACE).await
    }

    /// One for a single case.
    pub(super) async fn brief(
        csi: &mut Csi,
        kind: Kind,
        parameters: &[(&str, &str)],
    ) -> Result<Self> {
        let parameters =
            parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let subject = Self::begin(csi, kind, 64, parameters, BRIEF).await?;
        subject.writer.progress(20, RECOVERY).await?;
        Ok(subject)
    }

    pub(super) async fn begin(
        csi: &mut Csi,
        kind: Kind,
        mib: i64,
        parameters: HashMap<String, String>,
        pace: Pace,
    ) -> Result<Self> {
        let volume = mounted(csi, kind, mib, parameters).await?;
        let writer = Writer::start_paced(&volume.target, kind == Kind::Raw, pace)?;
        Ok(Self { kind, volume, writer })
    }

    /// Waits until the agent says so.
    pub(super) async fn becomes(
        &self,
        stack: &Stack,
        what: &str,
        patience: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let began = Instant::now();
        loop {
            let seen = stack.status(&self.volume.id)?;
            if is(&seen) {
                return Ok(seen);
            }
            if began.elapsed() > patience {
                bail!("after {patience:?} the {} volume is not {what}: {seen}", self.kind.name());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Its write waits: none is acknowledged and none fails for so long.
    pub(super) async fn waits(&self, time: Duration) -> Result<()> {
        let last = self.writer.last();
        tokio::time::sleep(time).await;
        ensure!(self.writer.error().is_none(), "a write failed: {:?}", self.writer.error());
        ensure!(self.writer.last() == last, "writes of {} go on", self.kind.name());
        Ok(())
    }

    /// Unpublishes and unstages it; with what time that took.
    pub(super) async fn unmount(&self, csi: &Csi) -> Result<Duration> {
        let began = Instant::now();
        with_retries("unpublish and unstage", RECOVERY, || {
            let (mut csi, volume) = (csi.clone(), self.volume.clone());
            async move { csi.unmount(&volume).await }
        })
        .await
        .map_err(status("unpublish and unstage"))?;
        ensure!(!self.volume.target.exists(), "{} is left", self.volume.target.display());
        Ok(began.elapsed())
    }

    /// After a failed write and an unmount: another attachment has all that was
    /// acknowledged. Then the volume is deleted.
    pub(super) async fn next_attachment(mut self, csi: &mut Csi) -> Result<u64> {
        self.writer.stop(RECOVERY).await?;
        csi.detach(&self.volume).await.map_err(status("detach"))?;
        csi.attach(&mut self.volume).await.map_err(status("attach again"))?;
        csi.mount(&self.volume).await.map_err(status("mount again"))?;
        let checked = self.writer.verify(self.writer.last())?;
        self.unmount(csi).await?;
        self.remove(csi).await?;
        Ok(checked)
    }

    /// The end of a volume whose writer has gone on to the end.
    pub(super) async fn end(mut self, csi: &mut Csi) -> Result<u64> {
        self.writer.stop(RECOVERY).await?;
        ensure!(self.writer.error().is_none(), "a write failed: {:?}", self.writer.error());
        let checked = self.writer.verify(self.writer.last())?;
        self.unmount(csi).await?;
        self.remove(csi).await?;
        Ok(checked)
    }

    pub(super) async fn remove(&self, csi: &mut Csi) -> Result<()> {
        csi.detach(&self.volume).await.map_err(status("detach"))?;
        csi.delete(&self.volume).await.map_err(status("delete"))
    }
}
