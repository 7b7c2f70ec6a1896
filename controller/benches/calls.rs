//! What the controller adds to the appliance's own time, over both transports; what a page of
//! ListVolumes takes among 10,000 volumes; how much memory that needs. Each figure beside its
//! limit and beside one bare command by the same transport. `make bench-controller`.
//!
//! The simulated appliance does at once what it is asked (no delays), and writes down for how
//! long it held each request. The rest of a call's time is the controller's, the encryption
//! on both sides and the simulator's parsing included.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::io::{Read, Seek, SeekFrom};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use lab::*;
use rds_csi_controller::config::RdsUrl;
use rds_csi_controller::credentials::CredentialsDir;
use rds_csi_controller::metrics::Metrics;
use rds_csi_controller::routeros::{self, Appliance};
use rds_csi_proto::csi::*;
use rds_csi_proto::ids::VolumeId;

/// What was promised (issue 5): of overhead a call, a page, memory.
const OVERHEAD_MS: f64 = 5.0;
const PAGE_MS: f64 = 300.0;
const RESIDENT_MB: f64 = 100.0;
const MANY: &str = "10000";
const PAGES: usize = 15;
/// Lives of a volume that are measured; those before warm up connections and allocators.
const LIVES: usize = 200;
const WARM_UP: usize = 20;

/// The calls of a life, in their order.
const CALLS: [&str; 6] = ["Create", "Publish", "Expand", "Get", "Unpublish", "Delete"];

fn budget(call: &str, via: Via) -> Option<u64> {
    match call {
        "Create" => Some(CREATE),
        "Publish" => Some(PUBLISH),
        "Delete" => Some(delete_commands(via)),
        _ => None,
    }
}

/// What the simulator wrote down, from one look to the next.
struct Held {
    log: std::fs::File,
    at: u64,
}

impl Held {
    fn of(lab: &Lab) -> Self {
        let mut log = std::fs::File::open(lab.path("rds/requests.jsonl")).unwrap();
        let at = log.seek(SeekFrom::End(0)).unwrap();
        Self { log, at }
    }

    /// How many requests came, and for how many milliseconds they were held.
    fn since(&mut self) -> (usize, f64) {
        let mut text = String::new();
        self.log.seek(SeekFrom::Start(self.at)).unwrap();
        self.log.read_to_string(&mut text).unwrap();
        self.at += text.len() as u64;
        let records = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let held: Vec<f64> = records.map(|r| r["us"].as_f64().unwrap() / 1000.0).collect();
        (held.len(), held.iter().sum())
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One figure; whether it keeps to its limit.
fn row(what: &str, found: f64, most: Option<f64>, beside: &str) -> bool {
    // Not a number is no good figure either.
    let fine = most.is_none_or(|most| found <= most);
    let limit = most.map_or_else(|| "no limit".into(), |most| format!("at most {most}"));
    println!("{} {what}: {found:.2} ({limit}); {beside}", if fine { "ok" } else { "FAILED" });
    fine
}

async fn call(lab: &Lab, which: usize, volume: &str) {
    let mut client = lab.volumes();
    match which {
        0 => drop(lab.create(volume).await.unwrap()),
        1 => drop(lab.publish(volume, "node-1").await.unwrap()),
        2 => {
            let request = ControllerExpandVolumeRequest {
                volume_id: volume.into(),
                capacity_range: Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 }),
                ..Default::default()
            };
            client.controller_expand_volume(request).await.unwrap();
        }
        3 => {
            let request = ControllerGetVolumeRequest { volume_id: volume.into() };
            client.controller_get_volume(request).await.unwrap();
        }
        4 => lab.unpublish(volume, "node-1").await.unwrap(),
        _ => lab.delete(volume).await.unwrap(),
    }
}

/// A client of the appliance without a controller around it.
fn bare(lab: &Lab) -> Appliance {
    let url: RdsUrl = lab.url.parse().unwrap();
    let credentials = CredentialsDir::new(lab.path("secrets"));
    Appliance::new(routeros::transport(url, credentials), Arc::new(Metrics::new().unwrap()))
}

async fn overheads(lab: &Lab, via: Via) -> bool {
    let appliance = bare(lab);
    let mut held = Held::of(lab);
    let mut times: [Vec<f64>; CALLS.len()] = Default::default();
    let mut alone = Vec::new();
    let mut commands = [0; CALLS.len()];
    for n in 0..WARM_UP + LIVES {
        let volume = format!("pvc-00000000-0000-4000-8000-{n:012x}");
        let warm = n >= WARM_UP;
        for which in 0..CALLS.len() {
            held.since();
            let began = Instant::now();
            call(lab, which, &volume).await;
            let took = began.elapsed().as_secs_f64() * 1000.0;
            let (sent, at_the_appliance) = held.since();
            if warm {
                times[which].push(took - at_the_appliance);
                commands[which] = sent.max(commands[which]);
            }
        }
        let began = Instant::now();
        let gone = appliance.disk(&volume.parse::<VolumeId>().unwrap()).await.unwrap();
        let took = began.elapsed().as_secs_f64() * 1000.0;
        assert_eq!(gone, None);
        if warm {
            alone.push(took - held.since().1);
        }
    }
    let alone = median(alone);
    println!("{via:?}: one bare command adds {alone:.2} ms (median of {LIVES})");
    let mut fine = true;
    for ((name, times), sent) in CALLS.into_iter().zip(times).zip(commands) {
        let commands = format!("{sent} commands");
        let budget = budget(name, via).map(|most| most as f64);
        fine &= row(&format!("{via:?} {name}, commands"), sent as f64, budget, &commands);
        let added = median(times);
        let ratio = format!("{:.1} times a bare command", added / alone);
        fine &= row(&format!("{via:?} {name}, ms added"), added, Some(OVERHEAD_MS), &ratio);
    }
    fine
}

async fn pages(lab: &Lab, via: Via) -> bool {
    let before = lab.controller.resident_mb();
    let comment = "--comment=rds-csi v1 cluster=lab vol=pvc-{uuid} stage=ready";
    let path = format!("--file-path={DIRECTORY}/pvc-{{uuid}}.img");
    lab.ctl(&["seed", MANY, &path, comment]);
    let appliance = bare(lab);
    let mut held = Held::of(lab);
    let (mut times, mut alone, mut commands) = (Vec::new(), Vec::new(), 0);
    let mut token = String::new();
    for _ in 0..PAGES {
        held.since();
        let request = ListVolumesRequest { max_entries: 1000, starting_token: token };
        let began = Instant::now();
        let page = lab.volumes().list_volumes(request).await.unwrap().into_inner();
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        commands = held.since().0.max(commands);
        assert_eq!(page.entries.len(), 1000);
        token = page.next_token;
        let began = Instant::now();
        appliance.disks_where(|_| false).await.unwrap();
        alone.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let (page, alone) = (median(times), median(alone));
    let resident = lab.controller.resident_mb();
    let mut fine = row(&format!("{via:?} List, commands"), commands as f64, Some(1.0), "a page");
    let ratio = format!("the bare command takes {alone:.0} ms, {:.2} times", page / alone);
    // Over SSH all properties of all disks are printed: that has no promise, and is shown.
    let most = (via == Via::Rest).then_some(PAGE_MS);
    fine &= row(&format!("{via:?} page of 1,000 among {MANY}, ms"), page, most, &ratio);
    let more = format!("{before:.0} MB before the first page");
    fine &= row(&format!("{via:?} resident, MB"), resident, Some(RESIDENT_MB), &more);
    fine
}

#[tokio::main]
async fn main() -> ExitCode {
    // Half a dozen processes that take turns: whatever else runs here shows in each figure.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load of the machine before: {}", load.split(' ').next().unwrap_or_default());
    let mut fine = true;
    for via in [Via::Rest, Via::Ssh] {
        let lab = Lab::start_via(via, PROMPT, |_| {}).await;
        fine &= overheads(&lab, via).await;
        fine &= pages(&lab, via).await;
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
