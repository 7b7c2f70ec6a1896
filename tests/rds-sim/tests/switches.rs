//! Guesses both ways, faults, permissions, certificates, and many disks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::Running;
use common::ssh::{exec, login, login_as};
use serde_json::json;

const DISK: &str = r#"{"type":"file","slot":"a","file-path":"/raid10/a.img","file-size":"1048576","nvme-tcp-export":"yes"}"#;

fn exported(sim: &Running) {
    assert_eq!(sim.post("/disk/add", DISK).0, 200);
    sim.until("the export", || sim.get("/disk?slot=a").1[0]["nvme-tcp-export"] == "true");
}

#[test]
fn a_disk_grown_while_it_is_exported() {
    let grow = r#"{".id":"a","file-size":"2097152"}"#;
    for (size, before) in [("immediately", "2097152"), ("after-toggle", "1048576")] {
        let sim = Running::start(&["--grown-size", size]);
        exported(&sim);
        assert_eq!(sim.post("/disk/set", grow).0, 200);
        assert_eq!(sim.get("/disk?slot=a").1[0]["size"], before);
        assert_eq!(sim.ctl(&["list"])[0]["exported_size"], 1_048_576, "hosts see no change");
        sim.ctl(&["export-toggle", "a"]);
        assert_eq!(sim.get("/disk?slot=a").1[0]["size"], "2097152");
        assert_eq!(sim.ctl(&["list"])[0]["exported_size"], 2_097_152);
        let shrink = sim.post("/disk/set", r#"{".id":"a","file-size":"1048576"}"#);
        assert_eq!(shrink.1["detail"], "invalid value for argument file-size");
    }
    let sim = Running::start(&["--grow-exported", "false"]);
    exported(&sim);
    assert_eq!(sim.post("/disk/set", grow).1["detail"], "can not do that");
}

#[test]
fn ten_thousand_disks_are_printed_fast() {
    let sim = Running::start(&["--pool", "raid10:1P", "--allocate", "sparse"]);
    sim.ctl(&["seed", "10000", "--comment", "owner={uuid}"]);
    // The first print after a change looks at each file; the next ones do not.
    let (_, all) = sim.get("/disk?type=file&.proplist=slot");
    assert_eq!(all.as_array().unwrap().len(), 10_000);
    let took = |path: &str| {
        sim.ctl(&["stats", "--reset"]);
        assert_eq!(sim.get(path).0, 200);
        sim.ctl(&["stats"])["requests"]["rest GET /rest/disk/print"]["max_ms"].as_u64().unwrap()
    };
    // Under 200 ms when optimised; this build is not, and the machine is shared.
    let whole = (0..2).map(|_| took("/disk")).min().unwrap();
    assert!(whole < 600, "{whole} ms");
    let one = (0..3).map(|_| took(&format!("/disk?slot={}", all[77]["slot"].as_str().unwrap())));
    assert!(one.min().unwrap() < 40);
}

#[test]
fn a_hung_request_is_done_and_never_answered() {
    let sim = Running::start(&[]);
    sim.ctl(&["hang", "/disk/add"]);
    let asked = Instant::now();
    assert!(sim.request_within(Duration::from_millis(500), "POST", "/disk/add", DISK).is_err());
    assert!(asked.elapsed() >= Duration::from_millis(500), "neither an answer nor an end");
    assert_eq!(sim.get("/disk?slot=a").1.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_user_who_lacks_a_policy() {
    let sim = Running::start(&["--policies", "read,test,api,rest-api,ssh"]);
    let (status, body) = sim.post("/disk/add", DISK);
    assert_eq!((status, &body["detail"]), (500, &json!("std failure: not allowed (9)")));
    assert_eq!(sim.get("/disk?slot=a"), (200, json!([])));
    let session = login(&sim).await;
    let add = "/disk add type=file slot=a file-path=raid10/a.img file-size=1M";
    assert_eq!(exec(&session, add).await.0, "not enough permissions (9)\r\n");
    let sim = Running::start(&["--policies", "read,write,test,api"]);
    assert_eq!(sim.get("/disk").0, 500, "no rest-api");
}

#[test]
fn certificates() {
    let sim = Running::start(&["--certificate", "private-ca"]);
    assert!(sim.try_request("GET", "/disk", "").is_err(), "the leaf is no root");
    assert_eq!(sim.trusting("ca.pem", "GET", "/disk", "").unwrap().0, 200);
    for (kind, reason) in [("expired", "Expired"), ("wrong-name", "NotValidForName")] {
        let sim = Running::start(&["--certificate", kind]);
        let refused = sim.try_request("GET", "/disk", "").unwrap_err().to_string();
        assert!(
            refused.contains(reason) || refused.to_lowercase().contains("certificate"),
            "{refused}"
        );
    }
}

#[test]
fn readings() {
    let sim = Running::start(&["--physical-disks", "2"]);
    let health = |name: &str| sim.get(&format!("/system/health?name={name}")).1;
    assert_eq!(health("fan1-speed")[0]["value"], "5654");
    sim.ctl(&["reading", "health/fan1-speed", "0"]);
    assert_eq!(health("fan1-speed")[0]["value"], "0");
    sim.ctl(&["reading", "health/fan1-speed"]);
    assert_eq!(health("fan1-speed"), json!([]), "absent, not 0");
    let (_, resource) = sim.get("/system/resource");
    assert_eq!((&resource["cpu-load"], &resource["board-name"]), (&json!("1"), &json!("RDS2216")));
    sim.ctl(&["reading", "raid/raid10", "degraded"]);
    assert_eq!(sim.get("/disk?slot=raid10").1[0]["state"], "degraded");
    let (_, disks) = sim.get("/disk?type=hardware");
    assert_eq!((&disks[1]["slot"], &disks[1]["temperature"]), (&json!("nvme2"), &json!("38")));
    sim.ctl(&["reading", "traffic/raid10/read-rate", "123456"]);
    let (_, traffic) = sim.post("/disk/monitor-traffic", r#"{"numbers":"raid10","once":""}"#);
    assert_eq!(traffic[0]["read-rate"], "123456");
    assert_eq!(sim.post("/disk/monitor-traffic", r#"{"numbers":"x","once":""}"#).0, 400);
}

#[tokio::test]
async fn console_options_set_the_width_except_in_one_version() {
    for (version, wide) in [("7.24", true), ("7.25", false), ("7.25.1", true)] {
        let sim = Running::start(&["--version", version, "--console-width", "80"]);
        exported(&sim);
        let session = login_as(&sim, "admin+cet1024w").await;
        let (out, _) = exec(&session, "/disk print detail where slot=a").await;
        assert_eq!(out.lines().all(|l| l.len() <= 80), !wide, "{version}: {out}");
    }
}
