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

/// Unknown is never absent: neither "not here", nor "not staged yet".
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_not_looked_yet_says_so() {
    for capability in [fs("ext4"), block()] {
        let host = Host::new();
        host.stage(capability.clone()).await.unwrap();
        host.publish("target", capability.clone(), false).await.unwrap();
        let forget = || host.sessions.state.lock().unwrap().device_known = false;
        forget();
        let stats = host.stats(&host.path("target")).await.unwrap_err();
        assert_eq!(stats.code(), Code::Unavailable);
        let again = host.publish("target", capability.clone(), false).await;
        assert_eq!(code(again), Code::Unavailable);
        let request = NodeExpandVolumeRequest {
            volume_id: VOLUME.into(),
            volume_path: host.path("target"),
            ..NodeExpandVolumeRequest::default()
        };
        let expanded = host.service.node_expand_volume(Request::new(request)).await;
        assert_eq!(expanded.unwrap_err().code(), Code::Unavailable);
        let elsewhere = NodeStageVolumeRequest {
            volume_id: VOLUME.into(),
            publish_context: host.context.clone(),
            staging_target_path: host.path("elsewhere"),
            volume_capability: Some(capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        let elsewhere = host.service.node_stage_volume(Request::new(elsewhere)).await;
        assert_eq!(elsewhere.unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(host.layers("elsewhere"), 0);
        forget();
        host.stage(capability.clone()).await.unwrap();
        host.publish("target", capability.clone(), false).await.unwrap();
        host.unpublish("target").await.unwrap();
        host.unstage().await.unwrap();
    }
}
