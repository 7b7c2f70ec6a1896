//! Volumes that were made from others: the same UUID beside the original, and more room.

use super::*;

impl Host {
    async fn stage_restored(&self, capability: VolumeCapability) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: VOLUME.into(),
            publish_context: self.context.clone(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(capability),
            volume_context: HashMap::from([("madeFrom".into(), "snap-x".into())]),
            ..NodeStageVolumeRequest::default()
        };
        self.service.node_stage_volume(Request::new(request)).await.map(|_| ())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_volume_is_used_beside_its_original_and_filled() {
    for kind in ["ext4", "xfs"] {
        if kind == "ext4" && !has_sys_resource() {
            continue;
        }
        let original = Host::new();
        original.stage(fs(kind)).await.unwrap();
        fs::write(Path::new(&original.path("staging")).join("file"), "before").unwrap();
        run("sync", &["-f", &original.path("staging")]);
        let restored = Host::new();
        // As a snapshot of an attached volume: the log is not empty.
        fs::copy(&original.sessions.file, &restored.sessions.file).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&restored.sessions.file).unwrap();
        file.set_len(600 << 20).unwrap();
        if kind == "xfs" {
            assert!(restored.stage(fs(kind)).await.is_err(), "no need for nouuid?");
        }
        restored.stage_restored(fs(kind)).await.unwrap();
        restored.stage_restored(fs(kind)).await.unwrap();
        let there = Path::new(&restored.path("staging")).join("file");
        assert_eq!(fs::read_to_string(there).unwrap(), "before");
        restored.publish("target", fs(kind), false).await.unwrap();
        let size = restored.stats(&restored.path("target")).await.unwrap().usage[0].total;
        assert!(size > 520 << 20, "{kind}: {size} of 600 MiB");
        restored.unpublish("target").await.unwrap();
        restored.unstage().await.unwrap();
        original.unstage().await.unwrap();
    }
}
