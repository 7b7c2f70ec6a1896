//! Full copies and btrfs subvolumes, over both transports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::Running;
use common::ssh::{exec, login};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn disk(slot: &str, path: &str, size: u64) -> String {
    json!({"type": "file", "slot": slot, "file-path": path, "file-size": size.to_string(),
        "mount-filesystem": "no"})
    .to_string()
}

fn write(sim: &Running, path: &str, at: u64, bytes: &[u8]) {
    let path = sim.path("pools").join(path);
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn contents(sim: &Running, path: &str) -> Vec<u8> {
    std::fs::read(sim.path("pools").join(path)).unwrap()
}

fn size(sim: &Running, name: &str) -> Option<u64> {
    let (_, found) = sim.get(&format!("/file?name={name}&.proplist=size"));
    found[0]["size"].as_str().map(|s| s.parse().unwrap())
}

#[test]
fn a_file_and_a_disk_are_copied() {
    let sim = Running::start(&[]);
    sim.post("/disk/add", &disk("a", "/raid10/a.img", 3 * MIB));
    sim.post("/disk/add", &disk("b", "/raid10/b.img", 4 * MIB));
    write(&sim, "raid10/a.img", 2 * MIB + 5, b"data");
    let copy = |body: Value| sim.post("/file/copy", &body.to_string());
    assert_eq!(copy(json!({".id": "raid10/a.img", "name": "raid10/c.img"})), (200, json!([])));
    assert_eq!(contents(&sim, "raid10/c.img"), contents(&sim, "raid10/a.img"));
    let again = copy(json!({"numbers": "/raid10/a.img", "name": "/raid10/c.img"}));
    assert_eq!(again.1["detail"], "failure: file already exists");
    assert_eq!(
        copy(json!({".id": "raid10/x.img", "name": "raid10/d.img"})).1["detail"],
        "no such item"
    );
    let nowhere = copy(json!({".id": "raid10/a.img", "name": "raid10/no/d.img"}));
    assert_eq!(nowhere.1["detail"], "failure: no such directory");

    // Slots and paths; the target is larger, and keeps its size.
    let copy = |body: Value| sim.post("/disk/copy", &body.to_string());
    write(&sim, "raid10/b.img", 0, b"old data that must go");
    assert_eq!(copy(json!({"src": "a", "dst": "/raid10/b.img"})).0, 200);
    assert_eq!(contents(&sim, "raid10/b.img")[..3 << 20], contents(&sim, "raid10/a.img")[..]);
    assert_eq!(size(&sim, "raid10/b.img"), Some(4 * MIB));
    assert_eq!(copy(json!({"src": "b", "dst": "a"})).1["detail"], "failure: destination too small");
    assert_eq!(copy(json!({"src": "b", "dst": "a", "size": MIB.to_string()})).0, 200);
    let missing = copy(json!({"src": "a", "dst": "raid10/new.img"}));
    assert_eq!(missing.1["detail"], "input does not match any value of dst");
}

#[test]
fn a_slow_copy_shows_its_progress_and_a_reboot_leaves_a_part() {
    let sim = Running::start(&[
        "--copy-bytes-per-second",
        "4M",
        "--rest-cut-ms",
        "300",
        "--cut-frees-queue",
        "true",
        "--boot-stage-ms",
        "50",
    ]);
    sim.post("/disk/add", &disk("a", "/raid10/a.img", 4 * MIB));
    let copy = |name: &str| {
        sim.post("/file/copy", &json!({".id": "raid10/a.img", "name": name}).to_string())
    };
    assert_eq!(copy("raid10/b.img").1["detail"], "Session closed");
    let seen = size(&sim, "raid10/b.img").expect("a partial file");
    assert!((1..4 * MIB).contains(&seen), "{seen}");
    sim.until("the end", || size(&sim, "raid10/b.img") == Some(4 * MIB));

    assert_eq!(copy("raid10/c.img").1["detail"], "Session closed");
    sim.ctl(&["reboot", "--down", "0.1", "--wait"]);
    let left = size(&sim, "raid10/c.img").expect("what was copied stays");
    assert!(left < 4 * MIB, "{left}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(size(&sim, "raid10/c.img"), Some(left), "and nobody goes on with it");
}

#[test]
fn other_ways_a_copy_may_look() {
    let args =
        ["--copy-bytes-per-second", "4M", "--rest-cut-ms", "200", "--cut-frees-queue", "true"];
    for (progress, expected) in [("full-size", Some(2 * MIB)), ("hidden", None)] {
        let sim = Running::start(&[&args[..], &["--copy-progress", progress]].concat());
        sim.post("/disk/add", &disk("a", "/raid10/a.img", 2 * MIB));
        let body = json!({".id": "raid10/a.img", "name": "raid10/b.img"}).to_string();
        assert_eq!(sim.post("/file/copy", &body).1["detail"], "Session closed");
        assert_eq!(size(&sim, "raid10/b.img"), expected, "{progress}");
        sim.until("the end", || size(&sim, "raid10/b.img") == Some(2 * MIB));
    }
    // The default: the next request of the user waits behind the one that was cut.
    let sim = Running::start(&["--copy-bytes-per-second", "2M", "--rest-cut-ms", "800"]);
    sim.post("/disk/add", &disk("a", "/raid10/a.img", 2 * MIB));
    let body = json!({".id": "raid10/a.img", "name": "raid10/b.img"}).to_string();
    sim.post("/file/copy", &body);
    let asked = Instant::now();
    assert_eq!(size(&sim, "raid10/b.img"), Some(2 * MIB));
    assert!(asked.elapsed() > Duration::from_millis(50), "{:?}", asked.elapsed());
}

#[test]
fn a_full_pool_and_an_old_version_refuse_copies() {
    for (switch, left) in [("midway", Some(0..2 * MIB)), ("up-front", None)] {
        let sim = Running::start(&["--pool", "raid10:3M", "--copy-full", switch]);
        sim.post("/disk/add", &disk("a", "/raid10/a.img", 2 * MIB));
        let body = json!({".id": "raid10/a.img", "name": "raid10/b.img"}).to_string();
        assert_eq!(sim.post("/file/copy", &body).1["detail"], "failure: not enough space");
        assert_eq!(size(&sim, "raid10/b.img").is_some(), left.is_some(), "{switch}");
    }
    let sim = Running::start(&["--version", "7.22"]);
    assert_eq!(sim.post("/file/copy", "{}").1["detail"], "no such command");
}

#[tokio::test]
async fn snapshots_over_ssh_share_nothing_that_is_written_later() {
    let sim = Running::start(&["--pool", "data:64M:btrfs", "--pool", "raid10:64M"]);
    let session = login(&sim).await;
    let run = async |line: &str| exec(&session, line).await.0;
    let pool = &sim.get("/disk?slot=data").1[0];
    assert_eq!((&pool["fs"], &pool["fs-label"]), (&json!("btrfs"), &json!("data-fs")));
    assert_eq!(
        run("/disk/btrfs/subvolume/add name=vol1 fs=raid10-fs").await,
        "input does not match any value of fs\r\n"
    );
    assert_eq!(run("/disk/btrfs/subvolume/add name=vol1 fs=data-fs").await, "");
    assert_eq!(run("/disk/btrfs/subvolume/add name=Snapshots fs=data-fs").await, "");
    sim.post("/disk/add", &disk("vol1", "/data/vol1/disk.img", MIB));
    write(&sim, "data/vol1/disk.img", 0, b"before");
    let snap = "/disk/btrfs/subvolume/add read-only=yes parent=vol1 fs=data-fs name=Snapshots/s1";
    assert_eq!(run(snap).await, "");
    assert_eq!(run(snap).await, "failure: File exists\r\n");
    write(&sim, "data/vol1/disk.img", 0, b"after!");
    assert_eq!(contents(&sim, "data/Snapshots/s1/disk.img")[..6], *b"before");

    let json = r#":put [:serialize to=json options=json.no-string-conversion value=[/disk/btrfs/subvolume/print detail as-value where name="s1"]]"#;
    let items: Value = serde_json::from_str(&run(json).await).unwrap();
    let item = &items[0];
    assert_eq!(item["fullname"], "Snapshots/s1");
    assert_eq!((&item["top-level"], &item["parent"]), (&json!("Snapshots"), &json!("vol1")));
    assert_eq!((&item["snapshot"], &item["read-only"]), (&json!(true), &json!(true)));

    // Read only: no new file, no removal, no growth, no export.
    let into =
        sim.post("/file/copy", r#"{".id":"data/vol1/disk.img","name":"data/Snapshots/s1/x"}"#);
    assert_eq!(into.1["detail"], "failure: Read-only file system");
    let removal = sim.post("/file/remove", r#"{".id":"data/Snapshots/s1/disk.img"}"#);
    assert_eq!(removal.1["detail"], "failure: Read-only file system");
    let kept = disk("s1", "/data/Snapshots/s1/disk.img", MIB);
    assert_eq!(sim.post("/disk/add", &kept).0, 200, "an item over a file that is there");

    // A writable one of the snapshot, found by its name and not by its path.
    let clone =
        |parent: &str| format!("/disk/btrfs/subvolume/add parent={parent} fs=data-fs name=vol2");
    assert_eq!(run(&clone("Snapshots/s1")).await, "input does not match any value of parent\r\n");
    assert_eq!(run(&clone("s1")).await, "");
    write(&sim, "data/vol2/disk.img", 0, b"second");
    assert_eq!(contents(&sim, "data/Snapshots/s1/disk.img")[..6], *b"before");
    // The size that is shared counts once.
    assert_eq!(sim.get("/disk?slot=data").1[0]["free"], (63 * MIB).to_string());

    assert_eq!(
        run("/disk/btrfs/subvolume/remove [find where name=Snapshots]").await,
        "failure: Directory not empty\r\n"
    );
    assert_eq!(run("/disk/btrfs/subvolume/remove [find where name=s1]").await, "");
    assert_eq!(sim.get("/disk/btrfs/subvolume?name=s1").1, json!([]));
    assert_eq!(size(&sim, "data/Snapshots/s1/disk.img"), None);
    assert_eq!(contents(&sim, "data/vol2/disk.img")[..6], *b"second");
}

#[test]
fn subvolumes_survive_a_restart_and_answer_to_rest() {
    let mut sim = Running::start(&["--pool", "data:64M:btrfs"]);
    let (status, added) =
        sim.request("PUT", "/disk/btrfs/subvolume", r#"{"fs":"data-fs","name":"v"}"#);
    assert_eq!((status, &added["fullname"]), (201, &json!("v")));
    let label = sim.request("PATCH", "/disk/btrfs/filesystem/data-fs", r#"{"label":"Fast"}"#);
    assert_eq!((label.0, &label.1["label"]), (200, &json!("Fast")));
    sim.restart();
    let (_, all) = sim.get("/disk/btrfs/subvolume?.proplist=name,fs");
    assert_eq!(all, json!([{"name": "<FS_ROOT>", "fs": "Fast"}, {"name": "v", "fs": "Fast"}]));
    let body = json!({".id": added[".id"]}).to_string();
    assert_eq!(sim.post("/disk/btrfs/subvolume/remove", &body), (200, json!([])));
    assert_eq!(sim.get("/file?name=data/v").1, json!([]));
}
