//! Requests that do not fit what is there.

use super::*;

/// kubelet repeats whatever was refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_refused_again_and_changes_nothing() {
    for capability in [fs("ext4"), block()] {
        let host = Host::new();
        host.stage(capability.clone()).await.unwrap();
        for read_only in [false, true] {
            host.publish("target", capability.clone(), read_only).await.unwrap();
            let noted = host.record().unwrap().publishes;
            for _ in 0..3 {
                let otherwise = host.publish("target", capability.clone(), !read_only).await;
                assert_eq!(code(otherwise), Code::AlreadyExists, "{capability:?}");
            }
            assert_eq!(host.record().unwrap().publishes, noted);
            let write = match capability.access_type {
                Some(AccessType::Block(_)) => scribble(&host.path("target")),
                _ => fs::write(host.path("target/data"), "x"),
            };
            assert_eq!(write.is_err(), read_only, "{capability:?}");
            host.publish("target", capability.clone(), read_only).await.unwrap();
            host.unpublish("target").await.unwrap();
        }
        host.unstage().await.unwrap();
    }
}
