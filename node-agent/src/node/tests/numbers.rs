//! Device numbers and boots: what is left of another time is not taken for this volume.

use super::*;

/// A loop device of somebody else's.
struct Stranger {
    _file: tempfile::NamedTempFile,
    device: String,
}

impl Stranger {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let device = run("losetup", &["-f", "--show", file.path().to_str().unwrap()]);
        Self { _file: file, device }
    }

    fn number(&self) -> DeviceNumber {
        DeviceNumber::of_path(Path::new(&self.device)).unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// As drivers that use mknod leave them behind: after a reboot it is another device's.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_node_at_the_target_is_refused_and_left_alone() {
    let (host, stranger) = (Host::new(), Stranger::new());
    host.stage(block()).await.unwrap();
    let (target, number) = (host.path("target"), stranger.number());
    let (major, minor) = (number.major.to_string(), number.minor.to_string());
    run("mknod", &[&target, "b", &major, &minor]);
    for _ in 0..2 {
        let refused = host.publish("target", block(), false).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(&target), "{refused}");
    }
    assert_eq!(host.layers("target"), 0);
    let found = DeviceNumber::from_raw(fs::metadata(&target).unwrap().rdev());
    assert_eq!(found, number, "it is nobody's but its owner's to remove");
    fs::remove_file(&target).unwrap();
    host.publish("target", block(), false).await.unwrap();
    let found = DeviceNumber::from_raw(fs::metadata(&target).unwrap().rdev());
    assert_eq!(found, host.sessions.device().number);
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();
}

/// A bind mount of another device's node is no better than the node.
#[tokio::test(flavor = "multi_thread")]
async fn another_devices_mount_at_the_target_is_refused() {
    let (host, stranger) = (Host::new(), Stranger::new());
    host.stage(block()).await.unwrap();
    fs::File::create(host.path("target")).unwrap();
    run("mount", &["--bind", &stranger.device, &host.path("target")]);
    let refused = host.publish("target", block(), false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(host.layers("target"), 1);
    run("umount", &[&host.path("target")]);
    host.publish("target", block(), false).await.unwrap();
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_number_changed_is_not_published() {
    for capability in [fs("ext4"), block()] {
        let (host, stranger) = (Host::new(), Stranger::new());
        host.stage(capability.clone()).await.unwrap();
        let set = |number| {
            let mut state = host.sessions.state.lock().unwrap();
            std::mem::replace(&mut state.session.as_mut().unwrap().1.number, number)
        };
        let own = set(stranger.number());
        let refused = host.publish("target", capability.clone(), false).await.unwrap_err();
        let retryable = matches!(refused.code(), Code::Unavailable | Code::FailedPrecondition);
        assert!(retryable, "{capability:?}: {refused}");
        assert_eq!(host.layers("target"), 0, "{capability:?}");
        set(own);
        host.publish("target", capability.clone(), false).await.unwrap();
        host.unpublish("target").await.unwrap();
        host.unstage().await.unwrap();
    }
}

/// After a reboot nothing is mounted, whatever the journal says: it is staged from the beginning,
/// and what was published is no obstacle to unstaging.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_earlier_boot_says_nothing_of_mounts() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    host.publish("target", fs("ext4"), false).await.unwrap();
    fs::write(host.path("target/data"), "x").unwrap();
    // The reboot.
    for path in ["target", "staging"] {
        run("umount", &[&host.path(path)]);
    }
    let mut record = host.record().unwrap();
    assert_eq!((&record.step, record.publishes.len()), (&Step::Staged, 1));
    record.boot_id = "an earlier boot".into();
    host.journal.put(Table::Stages, VOLUME, &record).unwrap();

    let early = host.publish("target", fs("ext4"), false).await;
    assert_eq!(code(early), Code::FailedPrecondition, "it is not staged in this boot");
    // Otherwise than in the earlier boot: that is no conflict with what is not there any more.
    let capability = fs_with("ext4", &["noatime"]);
    host.stage(capability.clone()).await.unwrap();
    let record = host.record().unwrap();
    assert!(record.publishes.is_empty() && record.boot_id != "an earlier boot", "{record:?}");
    host.publish("target", capability, false).await.unwrap();
    assert_eq!(fs::read_to_string(host.path("target/data")).unwrap(), "x");
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();
}
