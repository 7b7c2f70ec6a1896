//! The four volumes, and the calls that are made for them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rds_csi_proto::csi::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, VolumeCapability, volume_usage,
};
use tonic::Status;

use super::plan::{Call, Kind, Place, State, TARGETS};
use crate::csi::{Csi, Volume, filesystem, raw_block, request};
use crate::demo::status;

const MIB: i64 = 1 << 20;
const OTHER_NODE: &str = "node-2";

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) kind: Kind,
    pub(super) volume: Volume,
    /// As it should be.
    pub(super) state: State,
    /// Of the record on it; 0 before the first.
    pub(super) generation: u64,
}

impl Kind {
    fn capability(self) -> VolumeCapability {
        match self {
            Self::Ext4 | Self::ReadOnly => filesystem("ext4"),
            Self::Xfs => filesystem("xfs"),
            Self::Raw => raw_block(),
        }
    }

    /// mkfs.xfs refuses less than 300 MiB.
    fn size(self) -> i64 {
        if self == Self::Xfs { 320 * MIB } else { 64 * MIB }
    }
}

impl Member {
    pub(super) async fn create(csi: &mut Csi, kind: Kind) -> Result<Self> {
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let created = csi.create(&name, kind.size(), kind.capability(), HashMap::new()).await;
        let volume = created.map_err(status("create"))?;
        Ok(Self { kind, volume, state: State::default(), generation: 0 })
    }

    pub(super) fn fs_type(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Ext4 | Kind::ReadOnly => Some("ext4"),
            Kind::Xfs => Some("xfs"),
            Kind::Raw => None,
        }
    }

    /// The paths of two pods.
    pub(super) fn target(&self, n: usize) -> PathBuf {
        let path = self.volume.target.display().to_string();
        path.replacen("pod-1", &format!("pod-{}", n + 1), 1).into()
    }

    pub(super) fn published(&self) -> Vec<PathBuf> {
        (0..TARGETS).filter(|n| self.state.published[*n]).map(|n| self.target(n)).collect()
    }

    fn at(&self, n: usize) -> Volume {
        Volume { target: self.target(n), ..self.volume.clone() }
    }

    /// Makes a call. An attachment's context is kept, as Kubernetes does.
    pub(super) async fn make(&mut self, csi: &mut Csi, call: Call) -> Result<(), Status> {
        let read_only = self.kind == Kind::ReadOnly;
        match call {
            Call::Attach => csi.attach(&mut self.volume).await,
            Call::Stage => csi.stage(&self.volume).await,
            Call::Publish(n) => self.publish(csi, n, read_only).await,
            Call::PublishOtherwise(n) => self.publish(csi, n, !read_only).await,
            Call::Expand(n) => csi.expand(&self.at(n), self.kind.size()).await,
            Call::Stats(place) => self.stats(csi, place).await,
            Call::Unpublish(n) => csi.unpublish(&self.at(n)).await,
            Call::Unstage => csi.unstage(&self.volume).await,
            Call::Detach => {
                csi.detach(&self.volume).await?;
                self.volume.publish_context.clear();
                Ok(())
            }
            Call::AttachElsewhere => csi.attach_to(&self.volume, OTHER_NODE).await.map(drop),
            Call::StageElsewhere => {
                let staging = self.volume.staging.with_extension("elsewhere");
                csi.stage(&Volume { staging, ..self.volume.clone() }).await
            }
        }
    }

    async fn publish(&self, csi: &mut Csi, n: usize, readonly: bool) -> Result<(), Status> {
        let volume = self.at(n);
        let message = NodePublishVolumeRequest {
            volume_id: volume.id,
            publish_context: volume.publish_context,
            staging_target_path: volume.staging.display().to_string(),
            target_path: volume.target.display().to_string(),
            volume_capability: Some(volume.capability),
            volume_context: volume.volume_context,
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        if let Some(parent) = volume.target.parent() {
            fs::create_dir_all(parent).map_err(|e| Status::internal(e.to_string()))?;
        }
        csi.node.node_publish_volume(request(message)).await?;
        Ok(())
    }

    async fn stats(&self, csi: &mut Csi, place: Place) -> Result<(), Status> {
        let path = match place {
            Place::Staging => self.volume.staging.clone(),
            Place::Target(n) => self.target(n),
        };
        let message = NodeGetVolumeStatsRequest {
            volume_id: self.volume.id.clone(),
            volume_path: path.display().to_string(),
            ..NodeGetVolumeStatsRequest::default()
        };
        let answer = csi.node.node_get_volume_stats(request(message)).await?.into_inner();
        let abnormal = answer.volume_condition.is_some_and(|c| c.abnormal);
        let bytes = answer.usage.iter().find(|u| u.unit() == volume_usage::Unit::Bytes);
        let total = bytes.map_or(0, |u| u.total);
        // A file system keeps some of it for itself; a session that is lost says nothing.
        let fits = match self.kind {
            Kind::Raw => total == self.kind.size(),
            _ => total > self.kind.size() / 2 && total <= self.kind.size(),
        };
        if fits || abnormal {
            return Ok(());
        }
        Err(Status::data_loss(format!("of {} bytes {total} are told", self.kind.size())))
    }
}
