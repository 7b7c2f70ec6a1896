//! The simulator as a client sees it: real TLS on loopback, no kernel target.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::Running;
use serde_json::json;

const DISK: &str = r#"{"type":"file","slot":"a","file-path":"/raid10/a.img","file-size":"1048576","nvme-tcp-export":"yes"}"#;

#[test]
fn a_disk_from_creation_to_removal() {
    let sim = Running::start(&[]);
    assert_eq!(sim.get("/disk?slot=a"), (200, json!([])));
    let (status, added) = sim.post("/disk/add", DISK);
    assert_eq!(status, 200, "{added}");
    let id = added["ret"].as_str().unwrap().to_owned();
    assert_eq!(sim.post("/disk/add", DISK).1["detail"], "failure: already have such entry");

    sim.until("the export", || sim.get("/disk?slot=a").1[0]["nvme-tcp-export"] == "true");
    let (_, disk) = sim.get(&format!("/disk/{id}"));
    assert_eq!(disk["size"], "1048576");
    assert_eq!(disk["file-path"], "/raid10/a.img");
    assert_eq!(disk["mount-filesystem"], "true", "the dangerous default");
    assert_eq!(sim.get(&format!("/disk/{}", id.replace('*', "%2A"))).0, 404);

    let set = format!(r#"{{".id":"{id}","nvme-tcp-export":"no"}}"#);
    assert_eq!(sim.post("/disk/set", &set), (200, json!([])));
    sim.until("the export's end", || sim.get("/disk?slot=a").1[0]["nvme-tcp-export"] == "false");
    assert_eq!(sim.post("/disk/remove", &format!(r#"{{".id":"{id}"}}"#)), (200, json!([])));
    assert_eq!(
        sim.get("/file?name=raid10/a.img&.proplist=size").1,
        json!([{"size": "1048576"}]),
        "the file stays"
    );
    assert_eq!(sim.post("/file/remove", r#"{".id":"raid10/a.img"}"#).0, 200);
    assert_eq!(sim.post("/file/remove", r#"{".id":"raid10/a.img"}"#).1["detail"], "no such item");
}

#[test]
fn refusals() {
    let sim = Running::start(&["--pool", "raid10:2M"]);
    let detail = |body: &str| {
        let (status, answer) = sim.post("/disk/add", body);
        assert_eq!(status, 400);
        answer["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(detail(r#"{"slot":"a","status":"x"}"#), "unknown parameter status");
    let file = |size: &str| {
        format!(r#"{{"type":"file","slot":"a","file-path":"raid10/a.img","file-size":{size}}}"#)
    };
    assert_eq!(detail(&file("\"3M\"")), "failure: not enough space");
    assert!(detail(&file("1e6")).contains("1e6"));
    assert_eq!(detail(&file("\"1e6\"")), "invalid value for argument file-size");
    assert_eq!(sim.get("/file?name=raid10/a.img").1, json!([]), "nothing is left of a refusal");
    // Octal, as the manual says of literals.
    assert_eq!(sim.post("/disk/add", &file("04000000")).0, 200);
    assert_eq!(sim.get("/disk?slot=a&.proplist=file-size").1, json!([{"file-size": "1048576"}]));
    // PATCH answers with the whole item, and hides the reason of a refusal.
    let (status, patched) = sim.request("PATCH", "/disk/a", r#"{"comment":"mine"}"#);
    assert_eq!((status, &patched["comment"], &patched["slot"]), (200, &json!("mine"), &json!("a")));
    assert_eq!(sim.request("PATCH", "/disk/b", r#"{"comment":"x"}"#).0, 404);
    assert_eq!(
        sim.request("PATCH", "/disk/a", r#"{"foo":"1"}"#).1,
        json!({"error":400,"message":"Bad Request"})
    );
    assert_eq!(sim.get("/nonsense").0, 404);
}

#[test]
fn an_answer_may_be_lost_and_the_work_done() {
    let sim = Running::start(&[]);
    sim.ctl(&["lose-answer", "/disk/add"]);
    assert!(sim.try_request("POST", "/disk/add", DISK).is_err());
    assert_eq!(sim.get("/disk?slot=a").1.as_array().unwrap().len(), 1);

    sim.ctl(&[
        "reject",
        "POST*/disk/remove*",
        "--status",
        "500",
        "--detail",
        "std failure: not allowed (9)",
    ]);
    let (status, body) = sim.post("/disk/remove", r#"{".id":"a"}"#);
    assert_eq!((status, &body["detail"]), (500, &json!("std failure: not allowed (9)")));
    assert_eq!(sim.post("/disk/remove", r#"{".id":"a"}"#).0, 200);
    let stats = sim.ctl(&["stats"]);
    assert_eq!(stats["requests"]["rest POST /rest/disk/remove"]["requests"], 2);
}

#[test]
fn a_cut_request_goes_on_running() {
    let sim = Running::start(&["--rest-cut-ms", "200"]);
    sim.ctl(&["delay", "600", "--pattern", "/disk/add", "--times", "1"]);
    let (status, body) = sim.post("/disk/add", DISK);
    assert_eq!((status, &body["detail"]), (400, &json!("Session closed")));
    // The next request waits for its turn behind it, and is cut as well.
    sim.until("the disk", || sim.get("/disk?slot=a").1.as_array().is_some_and(|a| a.len() == 1));
}

#[test]
fn a_restart_keeps_disks_and_certificate() {
    let mut sim = Running::start(&[]);
    assert_eq!(sim.post("/disk/add", DISK).0, 200);
    sim.until("the export", || sim.ctl(&["list"])[0]["exported"] == true);
    let before = sim.ctl(&["list"])[0].clone();
    let certificate = sim.file("cert.pem");
    sim.restart();
    assert_eq!(sim.file("cert.pem"), certificate);
    sim.until("the export", || sim.ctl(&["list"])[0]["exported"] == true);
    let after = sim.ctl(&["list"])[0].clone();
    assert_eq!(after["id"], before["id"]);
    assert_ne!(after["uuid"], before["uuid"], "a new export has a new identity");
}

#[test]
fn a_boot_misleads_before_it_answers() {
    let sim = Running::start(&["--boot-stage-ms", "300"]);
    assert_eq!(sim.post("/disk/add", DISK).0, 200);
    sim.until("the export", || sim.ctl(&["list"])[0]["exported"] == true);
    sim.ctl(&["reboot", "--down", "0.3", "--export-delay", "1"]);
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let now = match sim.try_request("GET", "/system/resource", "") {
            Err(_) => "no answer",
            Ok((401, _)) => "401",
            Ok((200, body)) if body["platform"] == "MikroTik" => "right",
            Ok((200, _)) => "wrong",
            Ok(other) => panic!("{other:?}"),
        };
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        if now == "right" {
            break;
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(seen, ["no answer", "401", "wrong", "right"]);
    sim.until("the export", || sim.get("/disk?slot=a").1[0]["nvme-tcp-export"] == "true");
}
