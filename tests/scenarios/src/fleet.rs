//! Many volumes on one agent, all lost at once by a reboot of the appliance that gives each
//! of them another identity: how long until all are back, how many connections that takes,
//! and what the agent costs its host with so many volumes, in memory and in idle time. Its
//! own metrics have to tell the same story as the writers.

mod gauge;
mod writers;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};
use futures::{StreamExt, TryStreamExt};

use crate::csi::{Csi, Volume, raw_block};
use crate::demo::{no_devices, status};
use crate::process::tail;
use crate::report::Report;
use crate::stack::Stack;

use gauge::{Connections, scrape, series};
use writers::Writer;

pub(crate) use gauge::{Process, scrape_at, speed, value};

const VOLUMES: usize = 32;
const BYTES: i64 = 16 << 20;
/// Calls at a time: kubelet makes them for several pods at once.
const AT_ONCE: usize = 4;
/// Longer than it takes an emulated guest to notice that all are gone.
const REBOOT: [&str; 9] =
    ["reboot", "--down", "20", "--export-delay", "4", "--stagger", "0.1", "--portal-first", "true"];
/// From the end of the reboot until the last volume writes again, in an emulated guest.
const RECOVERY: Duration = Duration::from_secs(180);
const IDLE: Duration = Duration::from_secs(30);
/// What a node may lose to the agent.
const MOST_MEMORY: u64 = 30_000_000;
const MOST_IDLE_CPU: f64 = 0.005;
/// How far metrics may be from what a writer felt: a look at each end, in an emulated guest.
const LOOKS: f64 = 2.5;

/// Runs it; true if all was as it should be.
pub(crate) async fn run() -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("{VOLUMES} volumes, Linux {kernel}"));
    let mut fleet = match Fleet::begin(&report).await {
        Ok(fleet) => fleet,
        Err(error) => {
            report.case("all are staged", Err(error));
            println!("--- agent\n{}", tail("agent", 40));
            return report.finish();
        }
    };
    report.case("all are staged", Ok(()));
    let memory = fleet.memory();
    report.case("the agent stays below 30 MB", memory);
    let idle = fleet.idle(&report).await;
    report.case("the agent is idle while nothing happens", idle);
    let lost = fleet.lose_all(&report).await;
    let survived = lost.is_ok();
    report.case("all come back", lost);
    if survived {
        let memory = fleet.memory();
        report.case("the agent stays below 30 MB after the outage", memory);
    } else {
        println!("--- agent\n{}", tail("agent", 60));
        // Writers that wait for ever could not be ended otherwise.
        let _ = fleet.stack.agent_cli(&["fail", "--all"]);
    }
    fleet.print();
    let end = fleet.end().await;
    report.case("all are taken away, and their metrics with them", end);
    report.finish()
}

struct Fleet {
    stack: Stack,
    csi: Csi,
    agent: Process,
    volumes: Vec<Volume>,
    writers: Vec<Writer>,
    rows: Vec<(String, String)>,
}

impl Fleet {
    async fn begin(report: &Report) -> Result<Self> {
        let stack = Stack::start().await?;
        let csi = stack.csi().await?;
        let agent = Process(stack.agent_pid()?);
        let rows = Vec::new();
        let mut fleet = Self { stack, csi, agent, volumes: vec![], writers: vec![], rows };
        fleet.note("agent without volumes, resident", mib(agent.status("VmRSS")?));
        let began = Instant::now();
        let csi = fleet.csi.clone();
        fleet.volumes = futures::stream::iter(0..VOLUMES)
            .map(|_| stage(csi.clone()))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        report.say(format!("{VOLUMES} volumes staged in {:.0?}", began.elapsed()));
        for path in ["/healthz", "/readyz"] {
            scrape(path)?;
        }
        Ok(fleet)
    }

    fn note(&mut self, what: &str, value: impl Into<String>) {
        self.rows.push((what.to_owned(), value.into()));
    }

    fn print(&self) {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header(["measured", "value"]);
        for (what, value) in &self.rows {
            table.add_row([what, value]);
        }
        println!("\n{table}\n");
    }

    fn memory(&mut self) -> Result<()> {
        let agent = self.agent;
        let now = agent.status("VmRSS")?;
        let parts = format!(
            "{} (peak {}; anonymous {}, of files {}, locked {}; {} threads)",
            mib(now),
            mib(agent.status("VmHWM")?),
            mib(agent.status("RssAnon")?),
            mib(agent.status("RssFile")?),
            mib(agent.status("VmLck")?),
            agent.status("Threads")?
        );
        self.note(&format!("agent with {VOLUMES} volumes, resident"), parts.clone());
        if now * 1024 >= MOST_MEMORY {
            println!("  largest mappings, KiB resident:\n{}", agent.largest_mappings()?);
            bail!("resident memory is {parts}");
        }
        Ok(())
    }

    /// Emulated guests are slow: the share of a core is also given as it would be on the host,
    /// by the ratio of what a small read in sysfs costs in both.
    async fn idle(&mut self, report: &Report) -> Result<()> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (began, before) = (Instant::now(), self.agent.cpu()?);
        let sweeps = |text: &str, what: &str| {
            value(text, &format!("rds_csi_agent_sweep_seconds_{what}")).unwrap_or(0.0)
        };
        let first = scrape("/metrics")?;
        tokio::time::sleep(IDLE).await;
        let spent = self.agent.cpu()?.saturating_sub(before);
        let took = began.elapsed();
        let last = scrape("/metrics")?;
        let looks = sweeps(&last, "count") - sweeps(&first, "count");
        let each = (sweeps(&last, "sum") - sweeps(&first, "sum")) / looks;
        let share = spent.as_secs_f64() / took.as_secs_f64();
        self.note("idle, share of a core in the guest", format!("{:.2} %", share * 100.0));
        self.note(
            "one look at everything, in the guest",
            format!("{:.1} ms ({looks} in {took:.0?})", each * 1e3),
        );
        let (read, compute) = speed()?;
        report.say(format!(
            "here: {read:.0} ns a read in sysfs, {compute:.2} ns a step of computing on text"
        ));
        let Some((host_read, host_compute)) = host_speed() else {
            report
                .say("RDS_HOST_SPEED is not given (`rds-scenario speed` on the host): not scaled");
            ensure!(share < MOST_IDLE_CPU, "{:.2} % of a core in the guest", share * 100.0);
            return Ok(());
        };
        // The smaller of the two, so as not to flatter.
        let slower = (read / host_read).min(compute / host_compute).max(1.0);
        let scaled = share / slower;
        self.note(
            "idle, share of a core at the host's speed",
            format!(
                "{:.2} % (the guest is {:.1} times slower at reads in sysfs, {:.1} at computing)",
                scaled * 100.0,
                read / host_read,
                compute / host_compute
            ),
        );
        ensure!(scaled < MOST_IDLE_CPU, "{:.2} % of a core", scaled * 100.0);
        Ok(())
    }

    async fn lose_all(&mut self, report: &Report) -> Result<()> {
        for volume in &self.volumes {
            self.writers.push(Writer::start(&volume.target)?);
        }
        self.progress(3, RECOVERY).await.context("before the outage")?;
        for writer in &self.writers {
            writer.slowest();
        }
        let before = scrape("/metrics")?;
        let connections = Connections::watch()?;
        report.say("the appliance reboots, each export comes back with another identity");
        let lost_at = Instant::now();
        let during = self.reboot(report).await?;
        report.say("all exports are back");
        let (back_at, was) = (Instant::now(), self.done());
        let took = self.returns(&was).await?;
        let (established, opening, volumes) = connections.peaks();
        drop(connections);
        self.note("all are back, after the last export", format!("{:.1} s", took[VOLUMES - 1]));
        self.note("half of them", format!("{:.1} s", took[VOLUMES / 2 - 1]));
        self.note(
            "the whole outage",
            format!("{:.1} s", (back_at - lost_at).as_secs_f64() + took[VOLUMES - 1]),
        );
        self.note("connections to the portal, peak", established.to_string());
        self.note("connections being opened, peak", opening.to_string());
        self.note("volumes that the agent connects at once, peak", volumes.to_string());
        self.metrics(report, &before, &during).await
    }

    /// Gives what the metrics said in the middle of it, when nothing moved any more.
    async fn reboot(&self, report: &Report) -> Result<String> {
        self.stack.order(&REBOOT)?;
        let (began, mut during) = (Instant::now(), None);
        loop {
            let text = scrape("/metrics")?;
            if during.is_none() && standing(&text) == VOLUMES {
                report.say(format!("all {VOLUMES} stand still"));
                during = Some(text);
            }
            let state = self.stack.order(&["status"])?;
            if state["rebooting"] == false {
                return during.context("at no moment did the metrics show all as standing still");
            }
            ensure!(began.elapsed() < RECOVERY, "the appliance still reboots: {state}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn done(&self) -> Vec<u64> {
        self.writers.iter().map(Writer::done).collect()
    }

    async fn progress(&self, more: u64, patience: Duration) -> Result<()> {
        let (began, was) = (Instant::now(), self.done());
        while self.done().iter().zip(&was).any(|(now, was)| *now < was + more) {
            self.no_errors()?;
            ensure!(began.elapsed() < patience, "not all volumes write after {patience:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn no_errors(&self) -> Result<()> {
        for (writer, volume) in self.writers.iter().zip(&self.volumes) {
            ensure!(writer.error().is_none(), "{}: {:?}", volume.id, writer.error());
        }
        Ok(())
    }

    /// Seconds from now until each volume's next write completes, in that order.
    async fn returns(&self, was: &[u64]) -> Result<Vec<f64>> {
        let began = Instant::now();
        let mut took = vec![None; self.writers.len()];
        while took.iter().any(Option::is_none) {
            self.no_errors()?;
            for (n, now) in self.done().into_iter().enumerate() {
                if took[n].is_none() && now > was[n] {
                    took[n] = Some(began.elapsed().as_secs_f64());
                }
            }
            let waiting = took.iter().filter(|t| t.is_none()).count();
            ensure!(began.elapsed() < RECOVERY, "{waiting} volumes do not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut took: Vec<f64> = took.into_iter().flatten().collect();
        took.sort_by(f64::total_cmp);
        Ok(took)
    }

    /// What the metrics say against what the writers felt.
    async fn metrics(&mut self, report: &Report, before: &str, during: &str) -> Result<()> {
        // The last looks of the story.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let after = scrape("/metrics")?;
        let count = VOLUMES as f64;
        let grown =
            |name: &str| value(&after, name).unwrap_or(0.0) - value(before, name).unwrap_or(0.0);

        let live = |text: &str| value(text, r#"rds_csi_agent_sessions{state="Live"}"#);
        ensure!(live(before) == Some(count), "before: {:?} live", live(before));
        ensure!(live(during) == Some(0.0), "during the outage: {:?} live", live(during));
        ensure!(live(&after) == Some(count), "after: {:?} live", live(&after));
        let states = series(&after, "rds_csi_agent_volume_state");
        let in_live = states.iter().filter(|(l, v)| l.contains(r#"state="Live""#) && *v == 1.0);
        ensure!(in_live.count() == VOLUMES, "not every volume's state is Live");

        let outages = grown("rds_csi_agent_outages_total");
        ensure!(outages >= count, "{outages} outages are counted");
        let ended = grown("rds_csi_agent_outage_seconds_count");
        ensure!(ended == outages, "{outages} outages began, {ended} ended");
        let felt: f64 = self.writers.iter().map(|w| w.slowest().as_secs_f64()).sum();
        let told = grown("rds_csi_agent_io_stall_seconds_sum");
        let stalls = grown("rds_csi_agent_io_stall_seconds_count");
        let per = |sum: f64| sum / count;
        let text =
            format!("writers {:.2} s, metrics {:.2} s ({stalls} stalls)", per(felt), per(told));
        report.say(format!("standing still, mean of {VOLUMES}: {text}"));
        self.note("I/O stood still, mean", text);
        ensure!(
            (per(told) - per(felt)).abs() < LOOKS,
            "writers stood still for {felt:.1} s in all, the metrics say {told:.1} s"
        );
        let mut attempts = Vec::new();
        for (labels, n) in series(&after, "rds_csi_agent_connect_attempts_total") {
            if n > 0.0 {
                attempts.push(format!(
                    "{} {n}",
                    labels.trim_start_matches("outcome=").replace('"', "")
                ));
            }
        }
        self.note("attempts to connect, staging included", attempts.join(", "));
        let made = value(&after, r#"rds_csi_agent_connect_attempts_total{outcome="connected"}"#);
        ensure!(made >= Some(count), "only {made:?} attempts succeeded");
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        for writer in &self.writers {
            writer.stop();
        }
        let began = Instant::now();
        while !self.writers.iter().all(Writer::has_ended) {
            ensure!(began.elapsed() < RECOVERY, "a writer does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let csi = self.csi.clone();
        futures::stream::iter(std::mem::take(&mut self.volumes))
            .map(|volume| clear(csi.clone(), volume))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        no_devices()?;
        let text = scrape("/metrics")?;
        ensure!(!text.contains("volume=\""), "metrics of detached volumes are left:\n{text}");
        self.stack.stop()
    }
}

/// Volumes whose requests have been waiting for a while.
fn standing(text: &str) -> usize {
    let stalled = series(text, "rds_csi_agent_volume_io_stalled_seconds");
    stalled.iter().filter(|(_, seconds)| *seconds > 2.0).count()
}

async fn stage(mut csi: Csi) -> Result<Volume> {
    let id = format!("pvc-{}", uuid::Uuid::new_v4());
    let created = csi.create(&id, BYTES, raw_block(), HashMap::new()).await;
    let mut volume = created.map_err(status("create"))?;
    csi.attach(&mut volume).await.map_err(status("attach"))?;
    csi.mount(&volume).await.map_err(status("stage"))?;
    Ok(volume)
}

async fn clear(mut csi: Csi, volume: Volume) -> Result<()> {
    csi.unmount(&volume).await.map_err(status("unstage"))?;
    csi.detach(&volume).await.map_err(status("detach"))?;
    csi.delete(&volume).await.map_err(status("delete"))
}

/// `RDS_HOST_SPEED`, as `rds-scenario speed` printed it on the host.
pub(crate) fn host_speed() -> Option<(f64, f64)> {
    let text = std::env::var("RDS_HOST_SPEED").ok()?;
    let (read, compute) = text.trim().split_once(',')?;
    Some((read.parse().ok()?, compute.parse().ok()?))
}

fn mib(kib: u64) -> String {
    format!("{:.1} MB", kib as f64 * 1024.0 / 1e6)
}
