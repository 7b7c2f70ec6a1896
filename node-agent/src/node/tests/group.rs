//! A pod's fsGroup on a real file system.

use super::*;

fn fs_for(group: &str) -> VolumeCapability {
    let mut capability = fs("ext4");
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.volume_mount_group = group.into();
    }
    capability
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_group_may_write_and_a_read_only_publish_changes_nothing() {
    let host = Host::new();
    host.stage(fs("ext4")).await.unwrap();
    host.publish("target", fs("ext4"), false).await.unwrap();
    fs::write(host.path("target/data"), "x").unwrap();
    host.unpublish("target").await.unwrap();

    host.publish("target", fs_for("4242"), true).await.unwrap();
    assert_eq!(fs::metadata(host.path("target/data")).unwrap().gid(), 0);
    host.unpublish("target").await.unwrap();

    host.publish("target", fs_for("4242"), false).await.unwrap();
    let (root, data) = (host.path("target"), host.path("target/data"));
    assert_eq!(fs::metadata(&root).unwrap().gid(), 4242);
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o2770, 0o2770);
    assert_eq!(fs::metadata(&data).unwrap().gid(), 4242);
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o660, 0o660);
    // What is made later belongs to the group, too.
    fs::write(host.path("target/later"), "x").unwrap();
    assert_eq!(fs::metadata(host.path("target/later")).unwrap().gid(), 4242);

    let malformed = host.publish("other", fs_for("disk"), false).await;
    assert_eq!(code(malformed), Code::InvalidArgument);
    host.unpublish("target").await.unwrap();
    host.unstage().await.unwrap();
}
