//! The report of orphans, and their sweep.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::process::{Command, Output};

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
    let line = text.lines().find(|l| l.contains(volume)).expect(volume);
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
