//! Who is on the stage, and what must hold after each fault.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::agent;
use super::fleet::Fleet;
use super::host::signal_udevd;
use super::root::{Root, controllers_of};
use super::rows::{Row, Run, seconds, state_path};
use super::subject::{Kind, RECOVERY, Subject};
use super::{Case, Effect};
use crate::csi::{Csi, Volume};
use crate::demo::{no_devices, nothing_exported, status};
use crate::process::run as command;
use crate::report::Report;
use crate::stack::Stack;

/// A write that was on its way is followed by others: I/O flows.
const FLOWING: u64 = 5;

pub(super) struct Scene {
    pub(super) stack: Stack,
    pub(super) csi: Csi,
    /// They live through everything.
    pub(super) three: Vec<Subject>,
    /// Volumes that several cases share, made by the first of them.
    pub(super) fleet: Option<Fleet>,
    root: Option<Root>,
}

/// What was before a fault.
struct Before {
    began: Instant,
    unix_ms: u64,
    outages: Vec<u64>,
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Scene {
    pub(super) async fn begin(report: &Report) -> Result<Self> {
        let options = agent::prepare()?;
        let stack = Stack::start_with(options).await?;
        // As on an appliance with other volumes: its portal answers whatever is exported.
        stack.order(&["portal", "open"])?;
        let root = Root::begin().context("the host's own subsystem")?;
        let mut csi = stack.csi().await?;
        let mut three = Vec::new();
        // mkfs.xfs makes nothing smaller than 300 MiB.
        for (kind, mib) in [(Kind::Ext4, 192), (Kind::Xfs, 320), (Kind::Raw, 128)] {
            three.push(Subject::lasting(&mut csi, kind, mib).await.context(kind.name())?);
        }
        report.say("three volumes are mounted and written to");
        let scene = Self { stack, csi, three, fleet: None, root: Some(root) };
        scene.writes_flow().await?;
        Ok(scene)
    }

    pub(super) fn volumes(&self) -> Vec<&Volume> {
        self.three.iter().map(|s| &s.volume).collect()
    }

    /// The same order for the export of each of the three.
    pub(super) fn exports(&self, order: &str) -> Result<()> {
        for volume in self.volumes() {
            self.stack.order(&[order, &volume.id])?;
        }
        Ok(())
    }

    pub(super) async fn writes_flow(&self) -> Result<()> {
        for subject in &self.three {
            let flowing = subject.writer.progress(FLOWING, RECOVERY).await;
            flowing.with_context(|| subject.kind.name())?;
        }
        Ok(())
    }

    pub(super) fn first_error(&self) -> Option<String> {
        self.three.iter().find_map(|s| s.writer.error())
    }

    /// What the agent says of the three.
    fn views(&self) -> Result<Vec<Value>> {
        let all = self.stack.statuses()?;
        let find = |v: &Volume| all.iter().find(|s| s["volumeId"] == v.id.as_str()).cloned();
        let of = |v| find(v).with_context(|| format!("the agent does not list {}", v.id));
        self.volumes().into_iter().map(of).collect()
    }

    fn outages(&self) -> Result<Vec<u64>> {
        Ok(self.views()?.iter().map(|v| v["outages"].as_u64().unwrap_or(0)).collect())
    }

    /// Inflicts a fault, and sees what becomes of the three.
    pub(super) async fn live_through(&mut self, case: &Case) -> (Row, Result<()>) {
        let mut row = Row { name: case.name.into(), title: case.title.into(), ..Row::default() };
        let before = match self.outages() {
            Ok(outages) => Before { began: Instant::now(), unix_ms: unix_ms(), outages },
            Err(error) => return (row, Err(error.context("before the fault"))),
        };
        let inflicted = (case.inflict)(self).await;
        let over = Instant::now();
        let result = match inflicted {
            Ok(note) => {
                row.note = note;
                self.settle().await
            }
            Err(error) => Err(error),
        };
        self.describe(&mut row, &before, over);
        let result = result.and_then(|()| self.expect(case.effect, &row, &before));
        (row, result)
    }

    /// All three are written to and live, each by one controller, and nobody has touched
    /// the host's own.
    async fn settle(&self) -> Result<()> {
        self.writes_flow().await?;
        let began = Instant::now();
        let views = loop {
            let views = self.views()?;
            if views.iter().all(|v| v["state"] == "Live") {
                break views;
            }
            ensure!(began.elapsed() < RECOVERY, "writes flow, but the agent says {views:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        for view in views {
            let nqn = view["nqn"].as_str().context("no NQN")?;
            let controllers = controllers_of(nqn)?;
            ensure!(controllers.len() == 1, "{} controllers of {nqn}", controllers.len());
        }
        self.root.as_ref().map_or(Ok(()), Root::check)
    }

    fn describe(&self, row: &mut Row, before: &Before, over: Instant) {
        let now = Instant::now();
        let mut back = Some(Duration::ZERO);
        for (n, subject) in self.three.iter().enumerate() {
            let stall = subject.writer.longest_stall(before.began, now);
            let history = self.stack.history(&subject.volume.id).unwrap_or_default();
            if let (Some(s), Some(p)) = (row.stalls.get_mut(n), row.paths.get_mut(n)) {
                (*s, *p) = (seconds(stall), state_path(&history, before.unix_ms));
            }
            let next = subject.writer.first_after(over).map(|at| at - over);
            back = back.zip(next).map(|(a, b)| a.max(b));
            row.failed_writes += usize::from(subject.writer.error().is_some());
        }
        row.back = back.map(seconds);
    }

    /// A fault that had no effect proves nothing.
    fn expect(&self, effect: Effect, row: &Row, before: &Before) -> Result<()> {
        let now = self.outages()?;
        for (n, subject) in self.three.iter().enumerate() {
            let (kind, path) = (subject.kind.name(), row.paths.get(n).map_or("", String::as_str));
            let lost = now.get(n) > before.outages.get(n)
                || ["Degraded", "Lost", "Backoff"].iter().any(|s| path.contains(s));
            let stall = row.stalls.get(n).copied().unwrap_or_default();
            match effect {
                Effect::Lost => ensure!(lost, "{kind} did not lose its session ({path})"),
                Effect::Spared => ensure!(!lost, "{kind} lost its session ({path})"),
                Effect::Stalled(least) if stall < least as f64 => {
                    bail!("{kind} stood still for {stall} s only")
                }
                Effect::Stalled(_) | Effect::Certain | Effect::Elsewhere => {}
            }
        }
        Ok(())
    }

    /// After a failure: takes back what may still be in force, so that the next case has a
    /// chance. What cannot be taken back shows there.
    pub(super) async fn mend(&mut self) {
        let _ = signal_udevd(Signal::SIGCONT);
        let _ = self.stack.order(&["heal"]);
        let _ = self.exports("export-on");
        agent::free_space();
        if !self.stack.has_agent() {
            let _ = self.stack.restart_agent().await;
        }
    }

    /// Everything is read back and taken away.
    pub(super) async fn close(mut self, run: &mut Run, report: &mut Report) -> Result<()> {
        if let Some(fleet) = self.fleet.take() {
            let ended = fleet.end(&mut self.csi).await;
            run.end(report, "every record of the 16 volumes is there", ended);
        }
        let root = self.root.take().context("no subsystem of the host's own")?;
        let untouched = root.check();
        run.end(
            report,
            "the host's own subsystem, without our prefix, was never touched",
            untouched,
        );
        root.end()?;
        let read = self.read_back(report).await;
        run.end(report, "every record is there, read from the target", read);
        let clean = self.file_systems_are_clean().await;
        run.end(report, "e2fsck and xfs_repair find nothing", clean);
        let gone = self.nothing_is_left().await;
        run.end(report, "nothing is left on either side", gone);
        run.end(report, "everything ends when told to", self.stack.stop());
        Ok(())
    }

    async fn read_back(&mut self, report: &Report) -> Result<()> {
        for subject in &mut self.three {
            subject.writer.stop(RECOVERY).await?;
            let error = subject.writer.error();
            ensure!(error.is_none(), "a write to {} failed: {error:?}", subject.kind.name());
        }
        // Not from memory.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        for subject in &self.three {
            let (kind, last) = (subject.kind.name(), subject.writer.last());
            let checked = subject.writer.verify(last).context(kind)?;
            report.say(format!("{kind}: {checked} of {last} records read back"));
            ensure!(checked == last, "only {checked} of {last} records could be checked");
        }
        Ok(())
    }

    async fn file_systems_are_clean(&mut self) -> Result<()> {
        for subject in &self.three {
            subject.unmount(&self.csi).await?;
            self.csi.detach(&subject.volume).await.map_err(status("detach"))?;
            let file = self.stack.backing_file(&subject.volume.id);
            let file = file.to_str().context("path")?;
            match subject.kind {
                Kind::Ext4 => command(&["e2fsck", "-f", "-n", file])?,
                Kind::Xfs => command(&["xfs_repair", "-n", "-f", file])?,
                Kind::Raw => String::new(),
            };
        }
        Ok(())
    }

    async fn nothing_is_left(&mut self) -> Result<()> {
        no_devices()?;
        for subject in &self.three {
            self.csi.delete(&subject.volume).await.map_err(status("delete"))?;
        }
        self.stack.order(&["portal", "auto"])?;
        nothing_exported().await?;
        let files = fs::read_dir(self.stack.backing_file("x").parent().context("path")?)?.count();
        ensure!(files == 0, "{files} files are left on the target");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains("pvc-"), "a mount is left:\n{mounts}");
        let listed = self.stack.agent_cli(&["status", "-o", "json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        ensure!(listed["volumes"] == Value::Array(vec![]), "the agent still lists {listed}");
        Ok(())
    }
}
