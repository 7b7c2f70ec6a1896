//! The appliances' own readings, as they were when last asked, and nothing once that is old.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};
use tokio::time::Instant;

use crate::routeros::readings::{Kind, Reading};

/// Name, label and help of each kind.
const FAMILIES: &[(Kind, &str, &str, &str)] = &[
    (Kind::Temperature, "temperature_celsius", "sensor", "Temperature of a sensor of the RDS"),
    (Kind::Fan, "fan_rpm", "sensor", "Speed of a fan of the RDS"),
    (Kind::Voltage, "voltage_volts", "sensor", "Voltage that the RDS measures"),
    (Kind::Current, "current_amperes", "sensor", "Current that the RDS measures"),
    (Kind::Power, "power_watts", "sensor", "Power that the RDS takes"),
    (Kind::PartOk, "part_ok", "part", "1 if a fan or power supply says ok, 0 if not"),
    (Kind::CpuLoad, "cpu_load_ratio", "", "Load of the RDS's processor, 0 to 1"),
    (Kind::MemoryTotal, "memory_total_bytes", "", "Memory of the RDS"),
    (Kind::MemoryFree, "memory_free_bytes", "", "Memory of the RDS that is free"),
    (Kind::Size, "filesystem_size_bytes", "slot", "Size of a disk with a file system"),
    (Kind::Free, "filesystem_free_bytes", "slot", "What is free on it"),
    (
        Kind::Promised,
        "promised_bytes",
        "pool",
        "Sum of the sizes of all file disks of a pool, whoever owns them",
    ),
    (Kind::RaidClean, "raid_clean", "slot", "1 if a RAID says clean, 0 if anything else"),
    (Kind::DiskTemperature, "disk_temperature_celsius", "slot", "Temperature of a disk"),
    (Kind::DiskUsed, "disk_used_ratio", "slot", "Wear of a disk: 1 is its rated life, or more"),
    (Kind::DiskSpare, "disk_spare_ratio", "slot", "Spare blocks of a disk that are left"),
    (Kind::DiskFailed, "disk_failed", "slot", "1 if the RAID has given the disk up, 0 if not"),
];
const PREFIX: &str = "rds_csi_controller_appliance_";

/// The newest readings of each appliance. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Readings(Arc<Mutex<BTreeMap<(String, usize), Look>>>);

struct Look {
    taken: Instant,
    stale_after: Duration,
    readings: Vec<Reading>,
}

impl Readings {
    /// The answers of one question (by its number in the round) of one appliance.
    pub(crate) fn put(
        &self,
        rds: &str,
        question: usize,
        readings: Vec<Reading>,
        stale_after: Duration,
    ) {
        let look = Look { taken: Instant::now(), stale_after, readings };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((rds.to_owned(), question), look);
    }

    fn families(&self) -> Result<Vec<GaugeVec>, prometheus::Error> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = Vec::new();
        for (kind, name, label, help) in FAMILIES {
            let labels: Vec<&str> = ["rds", label].into_iter().filter(|l| !l.is_empty()).collect();
            let family = GaugeVec::new(Opts::new(format!("{PREFIX}{name}"), *help), &labels)?;
            for ((rds, _), look) in all.iter() {
                if look.taken.elapsed() > look.stale_after {
                    continue;
                }
                for reading in look.readings.iter().filter(|r| r.kind == *kind) {
                    let values = [rds.as_str(), reading.of.as_str()];
                    family
                        .get_metric_with_label_values(&values[..labels.len()])?
                        .set(reading.value);
                }
            }
            families.push(family);
        }
        Ok(families)
    }
}

impl Collector for Readings {
    fn desc(&self) -> Vec<&Desc> {
        // They come and go with the model and its age; a registry takes none as "unchecked".
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = self.families().unwrap_or_else(|e| {
            tracing::error!("readings cannot be shown: {e}");
            Vec::new()
        });
        let shown = families.iter().flat_map(Collector::collect);
        shown.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(readings: &Readings) -> Vec<String> {
        readings.collect().iter().map(|f| f.name().to_owned()).collect()
    }

    #[test]
    fn what_is_old_is_not_shown() {
        let readings = Readings::default();
        assert!(shown(&readings).is_empty());
        let fan = Reading { kind: Kind::Fan, of: "fan1".into(), value: 0.0 };
        readings.put("main", 0, vec![fan.clone()], Duration::from_secs(60));
        assert_eq!(shown(&readings), ["rds_csi_controller_appliance_fan_rpm"]);
        readings.put("main", 0, vec![fan], Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        assert!(shown(&readings).is_empty(), "an old value is shown");
    }
}
