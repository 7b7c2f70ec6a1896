//! `csi.v1.Node` on the agent's socket.

use std::future::Future;
use std::sync::Arc;

use rds_csi_proto::csi::node_server::Node as NodeRpc;
use rds_csi_proto::csi::node_service_capability::{Rpc, Type, rpc};
use rds_csi_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
};
use tonic::{Request, Response, Status};
use tracing::{Instrument, info_span, warn};

use super::paths::GivenPath;
use super::record::Records;
use super::request::{PublishRequest, StageRequest, known_volume_id, present, volume_id};
use super::sessions::Sessions;
use super::{Node, expand, publish, stage, stats, unpublish, unstage};
use crate::error::{Error, Result, bounded};
use crate::journal::Journal;
use crate::session::keeper::Keeper;

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name in Kubernetes, which is its id in CSI.
    pub node_id: String,
    /// Most volumes at once; 0 leaves it to Kubernetes.
    pub max_volumes: i64,
}

impl NodeConfig {
    /// With the host's own name where none is configured.
    ///
    /// # Errors
    /// If the host has no name.
    pub fn new(node_name: Option<String>, max_volumes: i64) -> Result<Self> {
        const PATH: &str = "/proc/sys/kernel/hostname";
        let node_id = match node_name.filter(|n| !n.is_empty()) {
            Some(name) => name,
            None => {
                let name = std::fs::read_to_string(PATH).map_err(Error::kernel("read", PATH))?;
                name.trim().to_owned()
            }
        };
        Ok(Self { node_id, max_volumes: max_volumes.max(0) })
    }
}

/// The service. Cheap to clone.
pub struct NodeService<S = Keeper> {
    node: Arc<Node<S>>,
}

impl<S> Clone for NodeService<S> {
    fn clone(&self) -> Self {
        Self { node: Arc::clone(&self.node) }
    }
}

impl<S: Sessions> NodeService<S> {
    /// A service over the sessions that this agent keeps.
    ///
    /// # Errors
    /// If the kernel does not tell which boot this is.
    pub fn new(sessions: S, journal: Journal, config: NodeConfig) -> Result<Self> {
        let node = Node {
            sessions,
            records: Records::new(journal)?,
            locks: super::locks::Locks::default(),
            measuring: super::turns::Turns::default(),
            examining: super::turns::Turns::default(),
            config,
        };
        Ok(Self { node: Arc::new(node) })
    }

    /// Runs a call in a task of its own: a caller that goes away must not leave it half
    /// done, and dropping the future of a call would.
    async fn run<T, F>(
        &self,
        rpc: &'static str,
        volume: &str,
        call: impl FnOnce(Arc<Node<S>>) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        // Not checked yet, so it may be of any length.
        let span = info_span!("csi", rpc, volume = bounded(volume.to_owned()));
        let call = call(Arc::clone(&self.node)).instrument(span.clone());
        match tokio::spawn(call).await {
            Ok(Ok(response)) => Ok(Response::new(response)),
            Ok(Err(error)) => {
                let status = Status::from(error);
                let error = status.message();
                span.in_scope(|| warn!(code = ?status.code(), error, "failed"));
                Err(status)
            }
            Err(panic) => {
                span.in_scope(|| tracing::error!(%panic, "the call panicked"));
                Err(Status::internal(format!("{rpc} panicked; the agent's log tells where")))
            }
        }
    }
}

#[tonic::async_trait]
impl<S: Sessions> NodeRpc for NodeService<S> {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.run("NodeStageVolume", &volume, |node| async move {
            let request = StageRequest::parse(&request)?;
            stage::stage(&node, request).await?;
            Ok(NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.run("NodeUnstageVolume", &volume, |node| async move {
            present("volume_id", &request.volume_id)?;
            let path = GivenPath::parse("staging_target_path", &request.staging_target_path)?;
            unstage::unstage(&node, volume_id(&request.volume_id)?, path).await?;
            Ok(NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.run("NodePublishVolume", &volume, |node| async move {
            let request = PublishRequest::parse(&request)?;
            publish::publish(&node, request).await?;
            Ok(NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.run("NodeUnpublishVolume", &volume, |node| async move {
            present("volume_id", &request.volume_id)?;
            let path = GivenPath::parse("target_path", &request.target_path)?;
            unpublish::unpublish(&node, volume_id(&request.volume_id)?, path).await?;
            Ok(NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.run("NodeGetVolumeStats", &volume, |node| async move {
            present("volume_id", &request.volume_id)?;
            present("volume_path", &request.volume_path)?;
            let volume = known_volume_id(&request.volume_id)?;
            stats::stats(&node, volume, &request.volume_path).await
        })
        .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.run("NodeExpandVolume", &volume, |node| async move {
            present("volume_id", &request.volume_id)?;
            let size = expand::expand(&node, &request).await?;
            Ok(NodeExpandVolumeResponse { capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX) })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |of: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: of.into() })),
        };
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::VolumeMountGroup,
        ];
        let capabilities = capabilities.map(capability).to_vec();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let config = &self.node.config;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: config.node_id.clone(),
            max_volumes_per_node: config.max_volumes,
            accessible_topology: None,
        }))
    }
}
