//! The appliance's own readings in `/metrics`: fresh, or not there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::metrics::scrape;
use lab::*;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

async fn until(address: SocketAddr, what: &str, there: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let text = scrape(address).await;
        if there(&text) {
            return text;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: {text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn readings_are_fresh_or_absent() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut lab = Lab::start_with(&["--physical-disks", "2"], |_| {}).await;
    lab.ctl(&["reading", "health/fan2-speed"]);
    lab.ctl(&["reading", "raid/raid10", "degraded"]);
    lab.ctl(&["reading", "disk/nvme1/temperature", "61"]);
    let flags = ["--metrics-addr", &address.to_string(), "--readings-interval", "1"];
    lab.restart_controller(&flags).await;
    lab.create(ID).await.unwrap();
    let text = until(address, "promised bytes", |t| t.contains("_promised_bytes{")).await;
    for want in [
        "rds_csi_controller_appliance_promised_bytes{pool=\"raid10\",rds=\"default\"} 67108864",
        "_fan_rpm{rds=\"default\",sensor=\"fan1-speed\"} 5654",
        "_temperature_celsius{rds=\"default\",sensor=\"cpu-temperature\"} 43",
        "_part_ok{part=\"psu1\",rds=\"default\"} 1",
        "_power_watts{rds=\"default\",sensor=\"power-consumption\"} 50.8",
        "_cpu_load_ratio{rds=\"default\"} 0.01",
        "_raid_clean{rds=\"default\",slot=\"raid10\"} 0",
        "_disk_temperature_celsius{rds=\"default\",slot=\"nvme1\"} 61",
        "_disk_failed{rds=\"default\",slot=\"nvme2\"} 0",
        "_filesystem_size_bytes{rds=\"default\",slot=\"raid10\"} 8589934592",
        "appliance_request_seconds_count{request=\"system/health/print\"}",
    ] {
        assert!(text.contains(want), "{want} is not in {text}");
    }
    assert!(!text.contains("fan2-speed"), "a fan that is not there turns");
    // A sensor that fails is gone, and not 0.
    lab.ctl(&["reading", "health/cpu-temperature"]);
    until(address, "the failed sensor", |t| !t.contains("cpu-temperature")).await;
    // Nor is anything shown of an appliance that does not answer; calls are not held up by
    // whoever asks it for readings.
    lab.ctl(&["drop-connections", "refuse"]);
    until(address, "old values", |t| !t.contains("_fan_rpm") && !t.contains("_promised")).await;
    let down = scrape(address).await;
    assert!(down.contains("rds_csi_controller_appliance_up{rds=\"default\"} 0"), "{down}");
    lab.ctl(&["clear"]);
    until(address, "the readings again", |t| t.contains("_fan_rpm")).await;
    lab.delete(ID).await.unwrap();
}
