//! The report of orphans, and their sweep.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::process::{Command, Output};

use lab::snapshots::*;
use lab::*;
use serde_json::json;

fn id(n: u32) -> String {
    format!("pvc-00000000-0000-4000-8000-{n:012x}")
}

fn orphans(lab: &Lab, flags: &[&str]) -> (Output, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_rds-csi-controller"))
        .args(lab.controller_args())
        .arg("--orphans")
        .args(flags)
        .env("RDS_CSI_CLUSTER_ID", "lab")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    (out, text)
}

#[track_caller]
fn says(text: &str, volume: &str, what: &str) {
    let line = text.lines().find(|l| l.starts_with(volume) || l.contains(&format!("/{volume}")));
    let line = line.expect(volume);
    assert!(line.contains(what), "{line}");
}

#[tokio::test]
async fn only_what_is_proven_to_be_nobodys_is_swept() {
    let lab = Lab::start().await;
    for n in 1..=3 {
        lab.create(&id(n)).await.unwrap();
    }
    lab.publish(&id(2), "node-1").await.unwrap();
    // Of unknown age; another cluster's; a file without an item.
    for (n, comment) in [
        (4, format!("rds-csi v1 cluster=lab vol={} stage=ready", id(4))),
        (5, format!("rds-csi v1 cluster=prod vol={} made=00000001 stage=ready", id(5))),
        (6, format!("rds-csi v1 cluster=lab vol={} made=00000001 stage=ready", id(6))),
    ] {
        let item = json!({"slot": id(n), "type": "file", "file-size": "1048576",
            "file-path": format!("{DIRECTORY}/{}.img", id(n)), "comment": comment});
        assert_eq!(lab.rest("POST", "/rest/disk/add", item).await.0, 200);
    }
    let leftover = format!("raid10/volumes/{}.img", id(7));
    std::fs::write(lab.path(&format!("rds/pools/{leftover}")), "data").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let known = lab.path("known");
    std::fs::write(&known, format!("csi-other-1 {}\n", id(1))).unwrap();
    let known = known.to_str().unwrap();

    let (out, text) = orphans(&lab, &[]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    says(&text, &id(6), "users unknown");
    for flags in [&["--known", known][..], &["--known", known, "--sweep"]] {
        let (out, text) = orphans(&lab, flags);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        says(&text, &id(1), "in use");
        says(&text, &id(2), "attached");
        says(&text, &id(3), "too young");
        says(&text, &id(4), "age unknown");
        says(&text, &id(6), "ORPHAN");
        says(&text, &id(7), "never swept");
        assert!(!text.contains(&id(5)), "another cluster's: {text}");
        assert!(lab.item(&id(6)).await.is_some(), "a dry run deleted");
    }
    let (out, text) = orphans(&lab, &["--known", known, "--sweep", "--yes"]);
    assert!(out.status.success(), "{text}");
    assert!(lab.item(&id(6)).await.is_none() && !lab.file_exists(&id(6)).await);
    for n in 1..=5 {
        assert!(lab.item(&id(n)).await.is_some() && lab.file_exists(&id(n)).await, "{n}");
    }
    assert!(lab.file_exists(&id(7)).await);
    let (_, text) = orphans(&lab, &["--known", known, "--older-than-hours", "0"]);
    says(&text, &id(3), "ORPHAN");

    // A list that names nothing of ours would make everything an orphan.
    std::fs::write(known, "csi-other-1\n").unwrap();
    let (out, _) = orphans(&lab, &["--known", known, "--sweep", "--yes"]);
    assert_eq!(out.status.code(), Some(1));
    let (out, _) = orphans(&lab, &["--sweep", "--yes"]);
    assert_eq!(out.status.code(), Some(2), "without a list of handles");
}

/// Snapshots, and what calls that were given up have left half done.
#[tokio::test]
async fn snapshots_and_half_done_copies_are_known_for_what_they_are() {
    let lab = Lab::start_with(&["--pool", "raid10:1G:btrfs"], |_| {}).await;
    lab.create(&id(1)).await.unwrap();
    let uuid = |n: u32| format!("00000000-0000-4000-8000-{n:012x}");
    let take = async |n| snapshot(&lab, &format!("snapshot-{}", uuid(n)), &id(1)).await.unwrap();
    for n in [1, 2] {
        take(n).await;
    }
    let add = async |slot: String, comment: String| {
        let item = json!({"slot": slot, "type": "file", "file-size": "1048576",
            "file-path": format!("{DIRECTORY}/{slot}.img"), "comment": comment});
        assert_eq!(lab.rest("POST", "/rest/disk/add", item).await.0, 200);
    };
    let snap = |n: u32, cluster: &str, stage: &str| {
        let rest = format!("of={} size=4096 kind=copy created=1 stage={stage}", uuid(1));
        add(
            format!("snp-{}", uuid(n)),
            format!("rds-csi v1 cluster={cluster} snap={} {rest}", uuid(n)),
        )
    };
    snap(3, "lab", &format!("making epoch={}", uuid(9))).await;
    snap(4, "prod", "ready").await;
    let from = format!("filling from=snap-{}", uuid(2));
    let tag = format!("rds-csi v1 cluster=lab vol={} made=00000001 stage={from}", id(5));
    add(id(5), tag).await;
    // Without items: the subvolume of a creation that stopped, and a snapshot's.
    for name in [id(6), format!("snp-{}", uuid(6))] {
        std::fs::create_dir(lab.path(&format!("rds/pools/raid10/volumes/{name}"))).unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let known = lab.path("known");
    let known = known.to_str().unwrap();
    let sweep = ["--known", known, "--older-than-hours", "0", "--sweep", "--yes"];
    let handle = |n: u32| format!("snap-{}", uuid(n));

    // A list of volumes alone says nothing of snapshots; a half filled volume is swept.
    std::fs::write(known, id(1)).unwrap();
    let (out, text) = orphans(&lab, &sweep);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    for n in [1, 2, 3] {
        says(&text, &handle(n), "users unknown");
    }
    says(&text, &handle(3), "half made");
    says(&text, &id(5), &format!("half a copy of {}", handle(2)));
    assert!(lab.item(&id(5)).await.is_none() && !lab.file_exists(&id(5)).await);

    std::fs::write(known, format!("{} {}", id(1), handle(1))).unwrap();
    let (_, text) = orphans(&lab, &["--known", known]);
    says(&text, &handle(2), "too young");
    let (out, text) = orphans(&lab, &sweep);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    says(&text, &handle(1), "in use");
    says(&text, &handle(2), "ORPHAN");
    says(&text, &handle(3), "ORPHAN, half made");
    assert!(!text.contains(&handle(4)), "another cluster's: {text}");
    for name in [id(6), format!("snp-{}", uuid(6))] {
        says(&text, &name, "never swept");
    }
    let left: Vec<_> = list(&lab).await.into_iter().map(|s| s.snapshot_id).collect();
    assert_eq!(left, [handle(1)]);
    let all = everything(&lab).await.join("\n");
    assert!(!all.contains(&uuid(2)) && !all.contains(&uuid(3)), "{all}");
    assert!(all.contains(&id(1)) && all.contains(&uuid(4)) && all.contains(&id(6)), "{all}");
}
