//! A device that is dead, or was cut off in the middle of writes.

use std::io::Write;
use std::time::Instant;

use rds_csi_proto::agent::NoticeKind;

use super::*;

/// What a dead device may cost a call that only looks.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A journal notices a dead device when it commits.
const NOTICED: Duration = Duration::from_secs(60);

/// Writes until the file system itself gives up, and not only a sync of one file fails.
fn write_until_it_gives_up(path: &str) {
    let began = Instant::now();
    for n in 0.. {
        match fs::File::create(format!("{path}/after-{n}")) {
            Err(_) => return,
            Ok(mut file) => drop(file.write_all(&[7; 4096]).and_then(|()| file.sync_all())),
        }
        assert!(began.elapsed() < NOTICED, "a file system on a dead device goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_of_a_dead_device_do_not_hang() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let host = Host::mapped(Mapping::linear());
        host.stage(fs(kind)).await.unwrap();
        host.publish("target", fs(kind), false).await.unwrap();
        host.sessions.suspend();
        host.sessions.state.lock().unwrap().state = State::Lost;
        // A pod that waits for it in the kernel.
        let mut pod = Command::new("sh")
            .args([
                "-c",
                "dd if=/dev/zero of=$0/data bs=1M count=4 conv=fsync",
                &host.path("target"),
            ])
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            let began = Instant::now();
            let stats = host.stats(&host.path("target")).await.unwrap();
            longest = longest.max(began.elapsed());
            let condition = stats.volume_condition.unwrap();
            assert!(condition.abnormal, "{kind}: {condition:?}");
            let is_told = condition.message.contains("LOST since 1970-01-01T00:00:00Z");
            assert!(is_told, "{kind}: {condition:?}");
        }
        assert!(pod.try_wait().unwrap().is_none(), "{kind}: the device is not dead");
        host.sessions.resume();
        assert!(longest < AT_ONCE, "{kind}: {longest:?}");
        assert!(pod.wait().unwrap().success(), "{kind}");
    }
}

/// A node that was cut off has left a log to be replayed. Mounting does that; a check before it
/// would only call the file system corrupt.
#[tokio::test(flavor = "multi_thread")]
async fn an_xfs_with_a_dirty_log_is_staged_elsewhere() {
    let first = Host::mapped(Mapping::linear());
    first.stage(fs("xfs")).await.unwrap();
    first.publish("target", fs("xfs"), false).await.unwrap();
    for n in 0..50 {
        let mut file = fs::File::create(first.path(&format!("target/{n}"))).unwrap();
        file.write_all(n.to_string().as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    first.sessions.cut_off();
    write_until_it_gives_up(&first.path("target"));
    expect_stopped(&first, &["target"], fs("xfs")).await;
    first.unpublish("target").await.unwrap();
    first.unstage().await.unwrap();

    let second = Host::after(&first);
    run("dmesg", &["--clear"]);
    second.stage(fs("xfs")).await.unwrap();
    let device = second.sessions.device().path;
    let name = device.file_name().unwrap().to_str().unwrap();
    let log = run("dmesg", &[]);
    let replayed = format!("XFS ({name}): Ending recovery");
    assert!(log.contains(&replayed), "there was nothing to replay: {log}");
    second.publish("target", fs("xfs"), false).await.unwrap();
    for n in 0..50 {
        let text = fs::read_to_string(second.path(&format!("target/{n}"))).unwrap();
        assert_eq!(text, n.to_string(), "what was synced is there");
    }
    second.unpublish("target").await.unwrap();
    second.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_stopped_is_told_and_not_published_again() {
    let host = Host::mapped(Mapping::linear());
    let capability = fs_with("ext4", &["errors=remount-ro"]);
    host.stage(capability.clone()).await.unwrap();
    host.publish("target", capability.clone(), false).await.unwrap();
    host.publish("reader", capability.clone(), true).await.unwrap();
    for path in ["target", "reader"] {
        let sound = host.stats(&host.path(path)).await.unwrap().volume_condition.unwrap();
        assert!(!sound.abnormal, "{sound:?}");
    }
    // What has to be read before a file can be made is read: only the journal fails.
    fs::write(host.path("target/before"), "x").unwrap();
    host.sessions.cut_off();
    write_until_it_gives_up(&host.path("target"));
    // The device is back; the file system is not.
    host.sessions.map(&format!("0 {} linear DEV 0", SIZE / 512));
    fs::write(host.path("target/after"), "x").unwrap_err();
    expect_stopped(&host, &["target", "reader"], capability.clone()).await;

    // What the message says to do does mend it.
    host.unpublish("target").await.unwrap();
    host.unpublish("reader").await.unwrap();
    host.unstage().await.unwrap();
    host.stage(capability.clone()).await.unwrap();
    host.publish("target", capability, false).await.unwrap();
    fs::write(host.path("target/data"), "x").unwrap();
    let sound = host.stats(&host.path("target")).await.unwrap().volume_condition.unwrap();
    assert!(!sound.abnormal, "{sound:?}");
}

/// It is told wherever it is published, and published nowhere else.
async fn expect_stopped(host: &Host, published: &[&str], capability: VolumeCapability) {
    let began = Instant::now();
    for path in published {
        loop {
            let condition = host.stats(&host.path(path)).await.unwrap().volume_condition.unwrap();
            if condition.abnormal && condition.message.contains("mounted anew") {
                break;
            }
            // A write may fail for a read that it needs, which is no reason for a file system to
            // stop; nor does it do that before its log has failed, which happens behind it.
            assert!(began.elapsed() < NOTICED, "{path}: {condition:?}, {}", host.mountinfo());
            let again = fs::File::create(host.path(&format!("{path}/again")));
            drop(
                again
                    .and_then(|mut file| file.write_all(&[7; 4096]).and_then(|()| file.sync_all())),
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let refused = host.publish("another", capability, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("mounted anew"), "{refused}");
    assert_eq!(host.layers("another"), 0);
    // Once, however often it is found.
    assert_eq!(host.sessions.told(), [NoticeKind::VolumeReadOnly]);
}

/// An error that ext4 was told to go on after, and that it remembers for ever, and a file
/// system that was mounted read-only because that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_past_and_read_only_volumes_are_no_fault() {
    let host = Host::new();
    let capability = fs_with("ext4", &["errors=continue"]);
    host.stage(capability.clone()).await.unwrap();
    host.publish("target", capability.clone(), false).await.unwrap();
    let name = host.sessions.device().path.file_name().unwrap().to_owned();
    let sysfs = Path::new("/sys/fs/ext4").join(name);
    fs::write(sysfs.join("trigger_fs_error"), "a test").unwrap();
    // The kernel counts it a moment later, in a work of its own.
    let counted = || fs::read_to_string(sysfs.join("errors_count")).unwrap().trim() != "0";
    for _ in 0..200 {
        if counted() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(counted());
    let sound = host.stats(&host.path("target")).await.unwrap().volume_condition.unwrap();
    assert!(!sound.abnormal, "{sound:?}");
    host.publish("another", capability, false).await.unwrap();
    host.unpublish("another").await.unwrap();
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();

    let read_only = fs_with("ext4", &["ro"]);
    host.stage(read_only.clone()).await.unwrap();
    host.publish("target", read_only, true).await.unwrap();
    // Nor without the record that says so: the mount itself does.
    let mut record = host.record().unwrap();
    record.read_only = false;
    host.journal.put(Table::Stages, VOLUME, &record).unwrap();
    let sound = host.stats(&host.path("target")).await.unwrap().volume_condition.unwrap();
    assert!(!sound.abnormal, "{sound:?}");
}
