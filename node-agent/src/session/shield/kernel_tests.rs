//! A real shield, over a loop device in place of a namespace.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use super::*;

const SIZE: u64 = 16 << 20;

struct Loop {
    _file: tempfile::NamedTempFile,
    namespace: Namespace,
}

impl Loop {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE).unwrap();
        let output =
            Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        let namespace = Namespace {
            name: path.file_name().unwrap().to_str().unwrap().into(),
            number: DeviceNumber::of_path(&path).unwrap(),
            size_bytes: SIZE,
            wwid: String::new(),
        };
        Self { _file: file, namespace }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let device = format!("/dev/{}", self.namespace.name);
        let _ = Command::new("losetup").args(["-d", &device]).status();
    }
}

/// udev opens what has just appeared, for a moment.
fn settle() {
    let _ = Command::new("udevadm").arg("settle").status();
}

#[test]
fn a_shield_that_is_open_is_not_removed() {
    let below = Loop::new();
    let dm = DeviceMapper::open().unwrap();
    let volume: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e12".parse().unwrap();
    let terms = Terms { until: Instant::now() + Duration::from_secs(20), while_active: false };
    let seen = map(&dm, &volume, &below.namespace, terms).unwrap();
    assert!(seen.queueing && seen.path_active, "{seen:?}");
    let node = node_of(seen.number);
    settle();
    let mut user = File::options().read(true).write(true).open(&node).unwrap();
    for _ in 0..3 {
        let refused = remove(&dm, &volume).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.to_string().contains("still open"), "{refused}");
    }
    // Nothing has happened to it: it is there, has its path, and works.
    assert_eq!(look(&dm, &volume).unwrap().unwrap(), seen);
    user.write_all(&[7; 4096]).unwrap();
    user.sync_all().unwrap();
    drop(user);
    settle();
    let mut first = [0; 4096];
    File::open(&node).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, [7; 4096]);
    remove(&dm, &volume).unwrap();
    assert_eq!(look(&dm, &volume).unwrap(), None);
    remove(&dm, &volume).unwrap();
}

/// The name alone does not make a device ours.
#[test]
fn a_device_of_our_name_that_is_not_ours_is_left_alone() {
    let below = Loop::new();
    let dm = DeviceMapper::open().unwrap();
    let volume: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e13".parse().unwrap();
    let name = name_of(&volume);
    dm.create(&name, "LVM-somebody-elses").unwrap();
    let terms = Terms { until: Instant::now() + Duration::from_secs(20), while_active: false };
    for refused in [
        look(&dm, &volume).unwrap_err(),
        map(&dm, &volume, &below.namespace, terms).unwrap_err(),
        remove(&dm, &volume).unwrap_err(),
    ] {
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    }
    assert!(dm.status(&name).unwrap().is_some());
    dm.remove(&name).unwrap();
}
