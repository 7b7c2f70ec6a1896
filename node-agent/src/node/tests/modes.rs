//! Access modes, as the specification's table of publish calls wants them.

use super::*;

fn mount(mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: "ext4".into(), ..MountVolume::default() };
    with(AccessType::Mount(mount), mode)
}

fn raw(mode: Mode) -> VolumeCapability {
    with(AccessType::Block(BlockVolume {}), mode)
}

/// ReadWriteOncePod: one target path, also for readers, and the same one again at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_writer_has_one_target() {
    for of in [mount, raw] {
        let host = Host::new();
        let capability = of(Mode::SingleNodeSingleWriter);
        host.stage(capability.clone()).await.unwrap();
        for _ in 0..2 {
            host.publish("a", capability.clone(), false).await.unwrap();
            for read_only in [false, true] {
                let second = host.publish("b", capability.clone(), read_only).await.unwrap_err();
                assert_eq!(second.code(), Code::FailedPrecondition, "{capability:?}");
                assert!(second.message().contains(&host.path("a")), "{second}");
                assert_eq!(host.layers("b"), 0);
            }
        }
        host.unpublish("a").await.unwrap();
        host.publish("b", capability.clone(), false).await.unwrap();
        host.unpublish("b").await.unwrap();
        host.unstage().await.unwrap();
    }
}

/// ReadWriteOnce of today: several pods of the node may write.
#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_node_share_it() {
    for mode in [Mode::SingleNodeMultiWriter, Mode::SingleNodeWriter] {
        let host = Host::new();
        host.stage(mount(mode)).await.unwrap();
        host.publish("a", mount(mode), false).await.unwrap();
        host.publish("b", mount(mode), false).await.unwrap();
        host.publish("reader", mount(mode), true).await.unwrap();
        fs::write(host.path("a/data"), "x").unwrap();
        assert_eq!(fs::read_to_string(host.path("b/data")).unwrap(), "x");
        assert_eq!(fs::read_to_string(host.path("reader/data")).unwrap(), "x");
        let refused = fs::write(host.path("reader/data"), "y").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
        for target in ["a", "b", "reader"] {
            assert_eq!(code(host.unstage().await), Code::FailedPrecondition);
            host.unpublish(target).await.unwrap();
        }
        host.unstage().await.unwrap();

        let host = Host::new();
        host.stage(raw(mode)).await.unwrap();
        host.publish("a", raw(mode), false).await.unwrap();
        host.publish("b", raw(mode), false).await.unwrap();
        scribble(&host.path("b")).unwrap();
        host.unpublish("a").await.unwrap();
        host.unpublish("b").await.unwrap();
        host.unstage().await.unwrap();
    }
}

/// Readers only: the kernel refuses to write, whatever the publish says, and nothing is
/// formatted for them.
#[tokio::test(flavor = "multi_thread")]
async fn readers_cannot_write() {
    let host = Host::new();
    let blank = host.stage(mount(Mode::SingleNodeReaderOnly)).await.unwrap_err();
    assert_eq!(blank.code(), Code::FailedPrecondition);
    assert!(blank.message().contains("no file system yet"), "{blank}");
    host.unstage().await.unwrap();
    host.stage(mount(Mode::SingleNodeWriter)).await.unwrap();
    fs::write(host.path("staging/data"), "x").unwrap();
    host.unstage().await.unwrap();

    let reader = mount(Mode::SingleNodeReaderOnly);
    host.stage(reader.clone()).await.unwrap();
    assert_eq!(code(host.stage(mount(Mode::SingleNodeWriter)).await), Code::AlreadyExists);
    host.publish("a", reader.clone(), false).await.unwrap();
    host.publish("b", reader.clone(), true).await.unwrap();
    for target in ["a", "b"] {
        assert_eq!(fs::read_to_string(host.path(&format!("{target}/data"))).unwrap(), "x");
        assert!(fs::write(host.path(&format!("{target}/data")), "y").is_err());
        host.unpublish(target).await.unwrap();
    }
    host.unstage().await.unwrap();

    for mode in [Mode::SingleNodeReaderOnly, Mode::MultiNodeReaderOnly] {
        let host = Host::new();
        host.stage(raw(mode)).await.unwrap();
        host.publish("a", raw(mode), false).await.unwrap();
        host.publish("b", raw(mode), true).await.unwrap();
        assert!(scribble(&host.path("a")).is_err(), "{mode:?}");
        host.unpublish("a").await.unwrap();
        host.unpublish("b").await.unwrap();
        host.unstage().await.unwrap();
    }
}

/// A file system that two nodes write to is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_is_for_one_node() {
    let host = Host::new();
    for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter]
    {
        assert_eq!(code(host.stage(mount(mode)).await), Code::InvalidArgument, "{mode:?}");
    }
    assert!(host.sessions.views().is_empty(), "nothing was connected for it");
}
