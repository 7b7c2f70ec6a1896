//! A volume of which a part cannot be read: nothing is known of it, so nothing is written.

use super::*;
use crate::kernel::sysfs;

const SECTORS: u64 = SIZE / 512;

/// The volume, with one hole from which nothing can be read.
fn with_a_hole(at: u64, length: u64) -> String {
    let end = at + length;
    let mut table = String::new();
    if at > 0 {
        table += &format!("0 {at} linear DEV 0\n");
    }
    table += &format!("{at} {length} error\n");
    if end < SECTORS {
        table += &format!("{end} {} linear DEV {end}\n", SECTORS - end);
    }
    table
}

/// A volume that is blank, or was used as `before`; its hole, in sectors.
const CASES: [(Option<&str>, u64, u64); 8] = [
    (None, 0, 8),
    // Between all signatures, in what only the zeros would tell.
    (None, 1_544, 8),
    (None, SECTORS - 8, 8),
    (None, 0, SECTORS),
    // Where the superblock is, so that nothing is found beside the hole.
    (Some("ext4"), 0, 8),
    (Some("xfs"), 0, 8),
    (Some("btrfs"), 128, 8),
    (Some("ext4"), 0, 2_048),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_not_written_to() {
    for (before, at, length) in CASES {
        let case = format!("{before:?}, {length} sectors from {at}");
        let host = Host::mapped(Mapping::new(with_a_hole(at, length)));
        let file = host.sessions.file.to_str().unwrap().to_owned();
        if let Some(kind) = before {
            let uuid = if kind == "xfs" {
                "-m uuid=6f1ab6a7-62a7-4a0e-b1a4-6d29c4b0a001"
            } else {
                "-U 6f1ab6a7-62a7-4a0e-b1a4-6d29c4b0a001"
            };
            run("sh", &["-c", &format!("mkfs.{kind} -q {uuid} {file}")]);
        }
        let kind = before.unwrap_or("ext4");
        for _ in 0..2 {
            let refused = host.stage(fs(kind)).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{case}: {refused}");
            assert!(refused.message().contains("cannot be examined"), "{case}: {refused}");
            assert!(refused.message().contains("neither mounted nor formatted"), "{case}");
        }
        let number = host.sessions.device().number;
        assert_eq!(sysfs::bytes_written(number), Some(0), "{case}");
        assert_eq!(host.layers("staging"), 0, "{case}");
        // Once it can be read the same call succeeds: with what was there, if anything was.
        host.sessions.map(&format!("0 {SECTORS} linear DEV 0"));
        host.stage(fs(kind)).await.unwrap();
        let found = format!("{:?}", host.sessions.state.lock().unwrap().contents);
        assert_eq!(found.contains("6f1ab6a7-62a7-4a0e"), before.is_some(), "{case}: {found}");
        host.unstage().await.unwrap();
    }
}

/// Our own unfinished file system is formatted again, but not unseen.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_mkfs_is_not_repeated_on_what_cannot_be_read() {
    let host = Host::mapped(Mapping::new(with_a_hole(0, 8)));
    let record = StageRecord {
        boot_id: "an earlier boot".into(),
        host_nqn: host.context["hostNqn"].parse().unwrap(),
        staging: "/elsewhere".into(),
        access: Access::Filesystem { fs_type: "ext4".into(), flags: Vec::new() },
        read_only: false,
        step: Step::Formatting { uuid: "6f1ab6a7-62a7-4a0e-b1a4-6d29c4b0a001".into() },
        publishes: Vec::new(),
    };
    host.journal.put(Table::Stages, VOLUME, &record).unwrap();
    assert_eq!(code(host.stage(fs("ext4")).await), Code::Unavailable);
    assert_eq!(sysfs::bytes_written(host.sessions.device().number), Some(0));
}
