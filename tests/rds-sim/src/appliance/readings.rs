//! What the appliance says of itself: health, resources, traffic, physical disks.
//!
//! Properties are those of the manual: pages "Health" and "Resource", CLI reference of `/disk` and of
//! `/disk/monitor-traffic`. Which of the health readings an RDS2216 has is not documented: here it has
//! one of each kind. Tests change any of them (`ctl reading`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::command::Reply;
use super::core::Appliance;
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::item::{Item, Value};

/// Ids of physical disks, far from those of others.
const FIRST_PHYSICAL_ID: u32 = 0x00F0_0000;
/// Where no pool has as many disks: one of the size that is in the sample.
const PHYSICAL_SIZE: u64 = 4_000_786_153_472;

/// Name, value and unit (manual, "Health", Readings and Power supply states).
const HEALTH: &[(&str, &str, &str)] = &[
    ("cpu-temperature", "43", "C"),
    ("board-temperature1", "29", "C"),
    ("fan1-speed", "5654", "RPM"),
    ("fan2-speed", "5825", "RPM"),
    ("fan-state", "ok", ""),
    ("psu1-state", "ok", ""),
    ("psu2-state", "ok", ""),
    ("psu1-voltage", "12.1", "V"),
    ("psu1-current", "4.2", "A"),
    ("power-consumption", "50.8", "W"),
];

/// CLI reference of `/disk/monitor-traffic`. In which unit the API gives the rates is not known (the
/// console prints bits per second): tests set what they need.
const TRAFFIC: &[&str] = &[
    "io-ops",
    "io-errors",
    "read-ops",
    "read-ops-per-second",
    "read-bytes",
    "read-rate",
    "read-merges",
    "write-ops",
    "write-ops-per-second",
    "write-bytes",
    "write-rate",
    "write-merges",
    "in-flight-ops",
    "discard-ops",
    "discard-bytes",
    "discard-merges",
    "flush-ops",
];
const TRAFFIC_TIMES: &[&str] =
    &["read-time", "write-time", "active-time", "wait-time", "discard-time", "flush-time"];

/// Readings that a test changed: `health/fan1-speed`, `resource/cpu-load`, `raid/raid10`,
/// `traffic/raid10/read-rate`, `disk/nvme1/temperature`. `None`: there is no such reading.
pub type Readings = BTreeMap<String, Option<String>>;

impl Appliance {
    pub fn set_reading(&self, name: String, value: Option<String>) {
        self.inner().readings.insert(name, value);
    }

    /// A reading, unless a test took it away.
    fn reading(&self, name: &str, usual: &str) -> Option<String> {
        let changed = self.inner().readings.get(name).cloned();
        changed.unwrap_or_else(|| Some(usual.to_owned()))
    }

    pub(super) fn raid_state(&self, pool: &str) -> Option<String> {
        self.reading(&format!("raid/{pool}"), "clean")
    }

    pub(super) fn health(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for (n, (name, usual, unit)) in (1..).zip(HEALTH) {
            let Some(value) = self.reading(&format!("health/{name}"), usual) else { continue };
            let mut item = Item::default();
            item.word(".id", ItemId(n).to_string());
            item.word("name", *name);
            item.word("value", value);
            item.word("type", *unit);
            items.push(item);
        }
        items
    }

    /// Sizes are bytes and the frequency MHz, as in the manual's answer of REST ("REST API", POST).
    pub(super) fn resource(&self) -> Item {
        let booted = self.inner().booted;
        let version = format!("{} (stable)", self.version);
        let usual = [
            ("uptime", uptime(booted.elapsed())),
            ("version", version),
            ("build-time", "2026-09-03 09:57:14".into()),
            ("free-memory", (30u64 << 30).to_string()),
            ("total-memory", (32u64 << 30).to_string()),
            ("cpu", "ARM64".into()),
            ("cpu-count", "16".into()),
            ("cpu-frequency", "2000".into()),
            ("cpu-load", "1".into()),
            ("free-hdd-space", (90u64 << 20).to_string()),
            ("total-hdd-space", (128u64 << 20).to_string()),
            ("architecture-name", "arm64".into()),
            ("board-name", "RDS2216".into()),
            ("platform", "MikroTik".into()),
        ];
        let mut item = Item::default();
        for (name, usual) in usual {
            let Some(value) = self.reading(&format!("resource/{name}"), &usual) else { continue };
            match value.parse() {
                Ok(number) if name != "version" => item.push(name, Value::Number(number)),
                _ => item.text(name, value),
            }
        }
        item
    }

    pub(super) fn monitor_traffic(&self, targets: &[String]) -> Result<Reply, Refusal> {
        let disks = self.disks();
        let mut items = Vec::new();
        for target in targets {
            let one = std::slice::from_ref(target);
            let disk = disks.iter().find(|d| d.is_any("slot", one)).ok_or(Refusal::NoSuchItem)?;
            let slot = disk.get("slot").map(Value::rest).unwrap_or_default();
            let mut item = Item::default();
            item.word("slot", slot.clone());
            for name in TRAFFIC {
                let value = self.reading(&format!("traffic/{slot}/{name}"), "0");
                if let Some(number) = value.and_then(|v| v.parse().ok()) {
                    item.push(name, Value::Number(number));
                }
            }
            for name in TRAFFIC_TIMES {
                if let Some(time) = self.reading(&format!("traffic/{slot}/{name}"), "0ms") {
                    item.word(name, time);
                }
            }
            items.push(item);
        }
        match items.is_empty() {
            true => Err(Refusal::NoSuchItem),
            false => Ok(Reply::Items(items)),
        }
    }

    /// `--physical-disks`: members of the first pool's RAID, as in the output of a real one.
    pub(super) fn physical(&self) -> Vec<Item> {
        let Some(pool) = self.pools.pools().first() else { return Vec::new() };
        let print = |n: u32| {
            let slot = format!("nvme{}", n + 1);
            let reading =
                |name: &str, usual: &str| self.reading(&format!("disk/{slot}/{name}"), usual);
            let mut item = Item::default();
            item.word(".id", ItemId(FIRST_PHYSICAL_ID + n).to_string());
            item.push("block-device", Value::Flag(true));
            item.push("raid-member", Value::Flag(true));
            item.push("disabled", Value::Flag(false));
            item.word("type", "hardware");
            item.text("slot", &*slot);
            item.text("slot-default", &*slot);
            item.text("parent", "");
            item.text("model", "TS1TUTE210T");
            item.text("serial", format!("J39877{n:04}"));
            item.push("size", Value::Number(PHYSICAL_SIZE));
            item.text("interface", "PCIe 2x8 GT/s");
            item.text("raid-master", &*pool.name);
            item.push("raid-role", Value::Number(n.into()));
            let failed = reading("raid-member-failed", "no");
            item.push("raid-member-failed", Value::Flag(failed.as_deref() == Some("yes")));
            let state = reading("raid-member-state", &format!("{n}:in_sync"));
            if let Some(state) = state {
                item.text("raid-member-state", state);
            }
            let numbers =
                [("temperature", "38"), ("percentage-used", "1"), ("available-spare", "100")];
            for (name, usual) in numbers {
                if let Some(number) = reading(name, usual).and_then(|v| v.parse().ok()) {
                    item.push(name, Value::Number(number));
                }
            }
            item
        };
        (0..self.switches.physical_disks).map(print).collect()
    }
}

fn uptime(since: Duration) -> String {
    let mut rest = since.as_secs();
    let mut out = String::new();
    for (unit, seconds) in [("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60)] {
        if rest >= seconds {
            out.push_str(&format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    format!("{out}{rest}s")
}
