//! The calls against a real kernel: loop devices in place of sessions. They need root, so
//! they are built with the feature `kernel-tests` only, and run in a guest by `make guest`.
#![allow(clippy::unwrap_used)]

mod busy;
mod conflicts;
mod damaged;
mod dead;
mod group;
mod host;
mod modes;
mod numbers;
mod restored;
mod selinux;
mod unreadable;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rds_csi_proto::agent::State;
use rds_csi_proto::context::PublishContext;
use rds_csi_proto::csi::node_server::Node as _;
use rds_csi_proto::csi::volume_capability::access_mode::Mode;
use rds_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use rds_csi_proto::csi::*;
use rds_csi_proto::ids::{HostNqn, Portal, VolumeId};
use tonic::{Code, Request, Status};

use super::record::{Access, StageRecord, Step};
use super::{NodeConfig, NodeService, Sessions};
use crate::error::{Error, Result};
use crate::journal::{Journal, Table};
use crate::kernel::DeviceNumber;
use crate::kernel::mounts::{self, MountTable};
use crate::session::{Attached, Content, SessionSpec, SessionView};

use host::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_file_system_lives_through_every_call_twice() {
    for kind in ["ext4", "ext3", "xfs", "btrfs"] {
        let host = Host::new();
        for _ in 0..2 {
            host.stage(fs(kind)).await.unwrap();
            assert_eq!(host.layers("staging"), 1, "{kind}");
        }
        assert!(matches!(
            host.sessions.state.lock().unwrap().contents[..],
            [Content::Filesystem { ref fs_type, ref uuid }] if fs_type == kind && uuid.len() == 36
        ));
        for _ in 0..2 {
            host.publish("target", fs(kind), false).await.unwrap();
            assert_eq!(host.layers("target"), 1, "{kind}");
        }
        fs::write(host.path("target/data"), kind).unwrap();
        assert_eq!(host.stats("some/path").await.unwrap_err().code(), Code::NotFound);
        let stats = host.stats(&host.path("target")).await.unwrap();
        assert!(stats.usage[0].total > 100 << 20, "{kind}: {stats:?}");
        assert!(!stats.volume_condition.unwrap().abnormal);
        // In use: refused, and the reason is told.
        let refused = host.unstage().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(&host.path("target")), "{refused}");
        for _ in 0..2 {
            host.unpublish("target").await.unwrap();
            assert!(!Path::new(&host.path("target")).exists());
        }
        for _ in 0..2 {
            host.unstage().await.unwrap();
        }
        assert!(host.sessions.views().is_empty() && host.record().is_none());
        // The same volume again: its data is still there.
        host.stage(fs(kind)).await.unwrap();
        host.publish("target", fs(kind), true).await.unwrap();
        assert_eq!(fs::read_to_string(host.path("target/data")).unwrap(), kind);
        let write = fs::write(host.path("target/data"), "x").unwrap_err();
        assert_eq!(write.raw_os_error(), Some(nix::libc::EROFS));
        assert_eq!(code(host.publish("target", fs(kind), false).await), Code::AlreadyExists);
        host.unpublish("target").await.unwrap();
        host.unstage().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_is_its_device_at_the_target() {
    let host = Host::new();
    host.stage(block()).await.unwrap();
    host.stage(block()).await.unwrap();
    host.publish("target", block(), false).await.unwrap();
    host.publish("target", block(), false).await.unwrap();
    let number = host.sessions.views()[0].device.clone().unwrap().number;
    let meta = fs::metadata(host.path("target")).unwrap();
    assert!(meta.file_type().is_block_device());
    assert_eq!(DeviceNumber::from_raw(meta.rdev()), number);
    assert_eq!(host.stats(&host.path("target")).await.unwrap().usage[0].total, 400 << 20);
    assert_eq!(code(host.publish("other", block(), true).await), Code::FailedPrecondition);
    assert_eq!(code(host.publish("other", fs("ext4"), false).await), Code::InvalidArgument);
    assert_eq!(code(host.unstage().await), Code::FailedPrecondition);
    host.unpublish("target").await.unwrap();
    assert!(!Path::new(&host.path("target")).exists());
    host.publish("target", block(), true).await.unwrap();
    // Opening is allowed, writing is not (blkdev_write_iter).
    assert!(scribble(&host.path("target")).is_err());
    host.unpublish("target").await.unwrap();
    host.publish("target", block(), false).await.unwrap();
    scribble(&host.path("target")).unwrap();
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();
    assert!(matches!(host.sessions.state.lock().unwrap().contents[..], [Content::Raw, ..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_not_blank_is_formatted() {
    let fillings: [(&str, &str); 7] = [
        ("mkfs.xfs -q -f $F", "xfs"),
        // One Linux partition in an MBR, and nothing else.
        (
            "printf '\\000\\040\\041\\000\\203\\000\\000\\000\\000\\010\\000\\000\\000\\000\\002\\000' \
             | dd of=$F bs=1 seek=446 conv=notrunc status=none; \
             printf '\\125\\252' | dd of=$F bs=1 seek=510 conv=notrunc status=none",
            "partition table (dos)",
        ),
        ("printf 'LUKS\\272\\276\\000\\001' | dd of=$F conv=notrunc status=none", "crypto_LUKS"),
        ("mkswap $F", "swap"),
        (
            "mkfs.ext4 -q $F; dd if=/dev/zero of=$F bs=1024 seek=1 count=1 conv=notrunc status=none",
            "no known file system",
        ),
        ("echo text | dd of=$F conv=notrunc status=none", "no known file system"),
        (
            "echo text | dd of=$F bs=1 seek=419430000 conv=notrunc status=none",
            "no known file system",
        ),
    ];
    for (filling, told) in fillings {
        let host = Host::new();
        let file = host.sessions.file.clone();
        let script = filling.replace("$F", file.to_str().unwrap());
        run("sh", &["-c", &script]);
        let before = run("sha256sum", &[file.to_str().unwrap()]);
        let refused = host.stage(fs("ext4")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{filling}: {refused}");
        assert!(refused.message().contains(told), "{filling}: {refused}");
        assert_eq!(run("sha256sum", &[file.to_str().unwrap()]), before, "{filling}");
        assert_eq!(host.sessions.views().len(), 1, "a failed stage disconnects nothing");
        host.unstage().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_mkfs_of_ours_is_repeated_and_another_attachments_is_not() {
    for (same_epoch, finished) in [(true, false), (true, true), (false, false)] {
        let host = Host::new();
        let uuid = "6f1ab6a7-62a7-4a0e-b1a4-6d29c4b0a001";
        let file = host.sessions.file.to_str().unwrap();
        if finished {
            run("mkfs.ext4", &["-q", "-U", uuid, file]);
        } else {
            run(
                "sh",
                &[
                    "-c",
                    &format!("head -c 4096 /dev/urandom | dd of={file} conv=notrunc status=none"),
                ],
            );
        }
        let mine: HostNqn = host.context["hostNqn"].parse().unwrap();
        let record = StageRecord {
            boot_id: "an earlier boot".into(),
            host_nqn: if same_epoch { mine } else { HostNqn::random() },
            staging: "/elsewhere".into(),
            access: Access::Filesystem { fs_type: "ext4".into(), flags: Vec::new() },
            read_only: false,
            step: Step::Formatting { uuid: uuid.into() },
            publishes: Vec::new(),
        };
        host.journal.put(Table::Stages, VOLUME, &record).unwrap();
        let result = host.stage(fs("ext4")).await;
        if same_epoch {
            result.unwrap();
            assert!(!format!("{:?}", host.sessions.state.lock().unwrap().contents).contains(uuid));
        } else {
            assert_eq!(code(result), Code::FailedPrecondition);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_found_and_named() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    let mut user =
        Command::new("sleep").arg("100").current_dir(host.path("staging")).spawn().unwrap();
    let refused = host.unstage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let who = format!("pid {} (sleep): working directory", user.id());
    assert!(refused.message().contains(&who), "{refused}");
    user.kill().unwrap();
    user.wait().unwrap();
    // A copy of the mount in another namespace, cut off from propagation.
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "100"])
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let refused = host.unstage().await.unwrap_err();
    assert!(refused.message().contains("in its namespace"), "{refused}");
    assert_eq!(host.layers("staging"), 1, "nothing is unmounted while it is used elsewhere");
    other.kill().unwrap();
    other.wait().unwrap();
    // One that follows ours is no obstacle.
    run("mount", &["--make-rshared", "/"]);
    let mut slave = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sleep", "100"])
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let result = host.unstage().await;
    slave.kill().unwrap();
    slave.wait().unwrap();
    result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn incompatible_requests_are_told_apart() {
    let host = Host::new();
    assert_eq!(code(host.publish("target", fs("ext4"), false).await), Code::FailedPrecondition);
    host.stage(fs_with("ext4", &["noatime"])).await.unwrap();
    assert_eq!(code(host.stage(fs("ext4")).await), Code::AlreadyExists);
    assert_eq!(code(host.stage(block()).await), Code::AlreadyExists);
    let table = MountTable::read().unwrap();
    let staged = table.at(Path::new(&host.path("staging")))[0].clone();
    assert!(staged.options.contains(&"noatime".to_owned()), "{staged:?}");
    // Something that is no volume lies at the target.
    fs::create_dir(host.path("target")).unwrap();
    run("mount", &["-t", "tmpfs", "none", &host.path("target")]);
    let capability = fs_with("ext4", &["noatime"]);
    let foreign = host.publish("target", capability.clone(), false).await;
    assert_eq!(code(foreign), Code::FailedPrecondition);
    // Unpublish removes every layer, and keeps files that are found under it.
    fs::write(host.path("target/x"), "").unwrap();
    run("umount", &[&host.path("target")]);
    fs::write(host.path("target/precious"), "").unwrap();
    assert_eq!(code(host.unpublish("target").await), Code::FailedPrecondition);
    assert!(Path::new(&host.path("target/precious")).exists());
    fs::remove_file(host.path("target/precious")).unwrap();
    // Stacked by somebody else: two layers, both go.
    host.publish("target", capability.clone(), false).await.unwrap();
    run("mount", &["--bind", &host.path("staging"), &host.path("target")]);
    assert_eq!(code(host.publish("target", capability, false).await), Code::FailedPrecondition);
    host.unpublish("target").await.unwrap();
    assert!(!Path::new(&host.path("target")).exists());
    // ReadWriteOncePod.
    host.unstage().await.unwrap();
    let mount = MountVolume { fs_type: "ext4".into(), ..MountVolume::default() };
    let single = with(AccessType::Mount(mount), Mode::SingleNodeSingleWriter);
    host.stage(single.clone()).await.unwrap();
    host.publish("a", single.clone(), false).await.unwrap();
    assert_eq!(code(host.publish("b", single, false).await), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_does_not_stop_a_staged_volume() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    host.publish("target", fs("ext4"), false).await.unwrap();
    host.journal.remove(Table::Stages, VOLUME).unwrap();
    host.stage(fs("ext4")).await.unwrap();
    host.publish("target", fs("ext4"), false).await.unwrap();
    assert_eq!((host.layers("staging"), host.layers("target")), (1, 1));
    host.journal.remove(Table::Stages, VOLUME).unwrap();
    assert_eq!(code(host.unstage().await), Code::FailedPrecondition);
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grown_device_grows_its_file_system() {
    for kind in ["ext4", "xfs", "btrfs"] {
        if kind == "ext4" && !has_sys_resource() {
            continue;
        }
        let host = Host::new();
        host.stage(fs(kind)).await.unwrap();
        host.publish("target", fs(kind), false).await.unwrap();
        let before = host.stats(&host.path("target")).await.unwrap().usage[0].total;
        let file = fs::OpenOptions::new().write(true).open(&host.sessions.file).unwrap();
        file.set_len(600 << 20).unwrap();
        {
            let mut state = host.sessions.state.lock().unwrap();
            let (_, attached) = state.session.as_mut().unwrap();
            run("losetup", &["-c", attached.path.to_str().unwrap()]);
            attached.size_bytes = 600 << 20;
        }
        let request = NodeExpandVolumeRequest {
            volume_id: VOLUME.into(),
            volume_path: host.path("target"),
            capacity_range: Some(CapacityRange { required_bytes: 600 << 20, limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        let answer = host.service.node_expand_volume(Request::new(request)).await.unwrap();
        assert_eq!(answer.into_inner().capacity_bytes, 600 << 20);
        let after = host.stats(&host.path("target")).await.unwrap().usage[0].total;
        assert!(after > before + (150 << 20), "{kind}: {before} {after}");
        host.unpublish("target").await.unwrap();
        host.unstage().await.unwrap();
    }
}
