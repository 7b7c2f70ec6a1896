//! Many volumes at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use super::scene::Scene;
use super::subject::{Kind, RECOVERY, Subject};
use crate::csi::Csi;
use crate::faults::rebooted;
use crate::writer::Pace;

const SIZE: usize = 16;
const MIB: i64 = 16;
/// Sixteen processes on an emulated processor.
const PACE: Pace = Pace { pause_ms: 400, slots: 2048 };

pub(super) struct Fleet {
    subjects: Vec<Subject>,
}

impl Fleet {
    async fn begin(csi: &Csi) -> Result<Self> {
        let begin = |_| {
            let mut csi = csi.clone();
            async move { Subject::begin(&mut csi, Kind::Raw, MIB, Default::default(), PACE).await }
        };
        let subjects = try_join_all((0..SIZE).map(begin)).await?;
        let fleet = Self { subjects };
        fleet.progress().await?;
        Ok(fleet)
    }

    async fn progress(&self) -> Result<()> {
        for subject in &self.subjects {
            subject.writer.progress(3, RECOVERY).await.context(subject.volume.id.clone())?;
        }
        Ok(())
    }

    /// All written to again; with the longest stall since `began`, and the first and last
    /// to be back after `over`.
    async fn recovers(&self, began: Instant, over: Instant) -> Result<String> {
        self.progress().await?;
        let now = Instant::now();
        let stalls = self.subjects.iter().map(|s| s.writer.longest_stall(began, now));
        let shortest = stalls.clone().min().unwrap_or_default();
        let longest = stalls.max().unwrap_or_default();
        ensure!(shortest > Duration::from_secs(5), "a volume stood still for {shortest:?} only");
        let back = self.subjects.iter().filter_map(|s| s.writer.first_after(over)).max();
        Ok(format!(
            "the 16 stood still for {:.1} to {:.1} s, the last was back {:.1} s after the last export",
            shortest.as_secs_f64(),
            longest.as_secs_f64(),
            back.map_or(0.0, |at| (at - over).as_secs_f64())
        ))
    }

    pub(super) async fn end(self, csi: &mut Csi) -> Result<()> {
        let one = |subject: Subject| {
            let mut csi = csi.clone();
            async move {
                let id = subject.volume.id.clone();
                subject.end(&mut csi).await.context(id)
            }
        };
        try_join_all(self.subjects.into_iter().map(one)).await?;
        Ok(())
    }
}

async fn reboot(scene: &mut Scene, how: &str) -> Result<String> {
    if scene.fleet.is_none() {
        scene.fleet = Some(Fleet::begin(&scene.csi).await?);
    }
    let fleet = scene.fleet.as_ref().context("no fleet")?;
    let began = Instant::now();
    rebooted(&scene.stack, how)?;
    fleet.recovers(began, Instant::now()).await
}

pub(super) async fn at_once(scene: &mut Scene) -> Result<String> {
    reboot(scene, "--down 10 --portal-first false").await
}

/// The portal answers from the first, each export comes a second after the one before.
pub(super) async fn staggered(scene: &mut Scene) -> Result<String> {
    reboot(scene, "--down 5 --export-delay 2 --stagger 1 --portal-first true").await
}
