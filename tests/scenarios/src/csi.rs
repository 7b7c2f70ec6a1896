//! The calls that kubelet and the sidecars make, with their paths and their patience.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use hyper_util::rt::TokioIo;
use rds_csi_proto::csi::controller_client::ControllerClient;
use rds_csi_proto::csi::identity_client::IdentityClient;
use rds_csi_proto::csi::node_client::NodeClient;
use rds_csi_proto::csi::volume_capability::access_mode::Mode;
use rds_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use rds_csi_proto::csi::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest,
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::stack::NODE_NAME;

/// kubelet waits 2 minutes for a call.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients of all services.
#[derive(Clone)]
pub(crate) struct Csi {
    pub(crate) identity: IdentityClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
    pub(crate) controller: ControllerClient<Channel>,
}

/// A volume on its way through its life.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) capability: VolumeCapability,
    pub(crate) volume_context: HashMap<String, String>,
    pub(crate) publish_context: HashMap<String, String>,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
}

pub(crate) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// The same over TCP, to another guest.
fn remote(address: (&'static str, u16)) -> Channel {
    let connector = tower::service_fn(move |_: Uri| async move {
        Ok::<_, std::io::Error>(TokioIo::new(tokio::net::TcpStream::connect(address).await?))
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

pub(crate) fn filesystem(fs_type: &str) -> VolumeCapability {
    capability(
        AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() }),
        Mode::SingleNodeWriter,
    )
}

pub(crate) fn raw_block() -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter)
}

pub(crate) fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

impl Csi {
    pub(crate) async fn connect(shim: &Path, controller: &Path) -> Result<Self> {
        Ok(Self {
            identity: IdentityClient::new(channel(shim)),
            node: NodeClient::new(channel(shim)),
            controller: ControllerClient::new(channel(controller)),
        })
    }

    /// With the node of another guest.
    pub(crate) fn with_node_at(&self, address: (&'static str, u16)) -> Self {
        let channel = remote(address);
        Self {
            identity: IdentityClient::new(channel.clone()),
            node: NodeClient::new(channel),
            controller: self.controller.clone(),
        }
    }

    /// CreateVolume, as the provisioner names and asks.
    pub(crate) async fn create(
        &mut self,
        name: &str,
        bytes: i64,
        capability: VolumeCapability,
        parameters: HashMap<String, String>,
    ) -> Result<Volume, Status> {
        self.create_as(CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability],
            parameters,
            ..CreateVolumeRequest::default()
        })
        .await
    }

    /// CreateVolume of any kind, with one capability and a size.
    pub(crate) async fn create_as(&mut self, asked: CreateVolumeRequest) -> Result<Volume, Status> {
        let bytes = asked.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
        let capability = asked.volume_capabilities.first().cloned().unwrap_or_default();
        let block = matches!(capability.access_type, Some(AccessType::Block(_)));
        let created = self.controller.create_volume(request(asked)).await?.into_inner();
        let volume = created.volume.ok_or_else(|| Status::internal("no volume in the answer"))?;
        if volume.capacity_bytes < bytes {
            return Err(Status::internal(format!(
                "got {} of {bytes} bytes",
                volume.capacity_bytes
            )));
        }
        let id = volume.volume_id;
        // kubelet's own paths (pkg/volume/csi/csi_mounter.go, csi_block.go).
        let plugins = Path::new("/var/lib/kubelet/plugins/kubernetes.io/csi");
        let (staging, target) = if block {
            let devices = plugins.join("volumeDevices");
            (devices.join("staging").join(&id), devices.join("publish").join(&id).join("pod-1"))
        } else {
            let driver = plugins.join(rds_csi_proto::DRIVER_NAME);
            let pod = Path::new("/var/lib/kubelet/pods/pod-1/volumes/kubernetes.io~csi");
            (driver.join(&id).join("globalmount"), pod.join(&id).join("mount"))
        };
        Ok(Volume {
            id,
            capability,
            volume_context: volume.volume_context,
            publish_context: HashMap::new(),
            staging,
            target,
        })
    }

    /// ControllerPublishVolume to the node of this guest.
    pub(crate) async fn attach(&mut self, volume: &mut Volume) -> Result<(), Status> {
        volume.publish_context = self.attach_to(volume, NODE_NAME).await?;
        Ok(())
    }

    /// ControllerPublishVolume to any node; gives its publish context.
    pub(crate) async fn attach_to(
        &mut self,
        volume: &Volume,
        node: &str,
    ) -> Result<HashMap<String, String>, Status> {
        let published = self
            .controller
            .controller_publish_volume(request(ControllerPublishVolumeRequest {
                volume_id: volume.id.clone(),
                node_id: node.into(),
                volume_capability: Some(volume.capability.clone()),
                volume_context: volume.volume_context.clone(),
                ..ControllerPublishVolumeRequest::default()
            }))
            .await?;
        Ok(published.into_inner().publish_context)
    }

    pub(crate) fn stage_request(volume: &Volume) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: volume.publish_context.clone(),
            staging_target_path: volume.staging.display().to_string(),
            volume_capability: Some(volume.capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        }
    }

    /// NodeStageVolume and NodePublishVolume, as kubelet does for a pod.
    pub(crate) async fn mount(&mut self, volume: &Volume) -> Result<(), Status> {
        self.stage(volume).await?;
        self.publish(volume).await
    }

    pub(crate) async fn stage(&mut self, volume: &Volume) -> Result<(), Status> {
        let local = |e: std::io::Error| Status::internal(e.to_string());
        fs::create_dir_all(&volume.staging).map_err(local)?;
        self.node.node_stage_volume(request(Self::stage_request(volume))).await?;
        Ok(())
    }

    pub(crate) async fn publish(&mut self, volume: &Volume) -> Result<(), Status> {
        self.publish_at(volume, &volume.target, false).await
    }

    /// NodePublishVolume for any pod.
    pub(crate) async fn publish_at(
        &mut self,
        volume: &Volume,
        target: &Path,
        readonly: bool,
    ) -> Result<(), Status> {
        let local = |e: std::io::Error| Status::internal(e.to_string());
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(local)?;
        }
        self.node
            .node_publish_volume(request(NodePublishVolumeRequest {
                volume_id: volume.id.clone(),
                publish_context: volume.publish_context.clone(),
                staging_target_path: volume.staging.display().to_string(),
                target_path: target.display().to_string(),
                volume_capability: Some(volume.capability.clone()),
                volume_context: volume.volume_context.clone(),
                readonly,
                ..NodePublishVolumeRequest::default()
            }))
            .await?;
        Ok(())
    }

    /// NodeUnpublishVolume and NodeUnstageVolume.
    pub(crate) async fn unmount(&mut self, volume: &Volume) -> Result<(), Status> {
        self.unpublish(volume).await?;
        self.unstage(volume).await
    }

    pub(crate) async fn expand(&mut self, volume: &Volume, bytes: i64) -> Result<(), Status> {
        self.node
            .node_expand_volume(request(NodeExpandVolumeRequest {
                volume_id: volume.id.clone(),
                volume_path: volume.target.display().to_string(),
                staging_target_path: volume.staging.display().to_string(),
                capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
                volume_capability: Some(volume.capability.clone()),
                ..NodeExpandVolumeRequest::default()
            }))
            .await?;
        Ok(())
    }

    /// ControllerExpandVolume: the file grows, and the export is toggled under whoever uses it.
    pub(crate) async fn grow(&mut self, volume: &Volume, bytes: i64) -> Result<(), Status> {
        let answer = self
            .controller
            .controller_expand_volume(request(ControllerExpandVolumeRequest {
                volume_id: volume.id.clone(),
                capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
                volume_capability: Some(volume.capability.clone()),
                ..ControllerExpandVolumeRequest::default()
            }))
            .await?
            .into_inner();
        if answer.capacity_bytes != bytes || !answer.node_expansion_required {
            return Err(Status::internal(format!("asked for {bytes} bytes, got {answer:?}")));
        }
        Ok(())
    }

    pub(crate) async fn unpublish(&mut self, volume: &Volume) -> Result<(), Status> {
        self.unpublish_at(volume, &volume.target).await
    }

    /// NodeUnpublishVolume for any pod.
    pub(crate) async fn unpublish_at(
        &mut self,
        volume: &Volume,
        target: &Path,
    ) -> Result<(), Status> {
        self.node
            .node_unpublish_volume(request(NodeUnpublishVolumeRequest {
                volume_id: volume.id.clone(),
                target_path: target.display().to_string(),
            }))
            .await?;
        Ok(())
    }

    pub(crate) async fn unstage(&mut self, volume: &Volume) -> Result<(), Status> {
        self.node
            .node_unstage_volume(request(NodeUnstageVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: volume.staging.display().to_string(),
            }))
            .await?;
        Ok(())
    }

    /// ControllerUnpublishVolume from the node of this guest.
    pub(crate) async fn detach(&mut self, volume: &Volume) -> Result<(), Status> {
        self.detach_from(volume, NODE_NAME).await
    }

    /// ControllerUnpublishVolume from any node.
    pub(crate) async fn detach_from(&mut self, volume: &Volume, node: &str) -> Result<(), Status> {
        self.controller
            .controller_unpublish_volume(request(ControllerUnpublishVolumeRequest {
                volume_id: volume.id.clone(),
                node_id: node.into(),
                ..ControllerUnpublishVolumeRequest::default()
            }))
            .await?;
        Ok(())
    }

    /// DeleteVolume.
    pub(crate) async fn delete(&mut self, volume: &Volume) -> Result<(), Status> {
        let volume_id = volume.id.clone();
        self.controller
            .delete_volume(request(DeleteVolumeRequest {
                volume_id,
                ..DeleteVolumeRequest::default()
            }))
            .await?;
        Ok(())
    }
}

/// Repeats a call while its answer says that a retry may help, as kubelet and the sidecars
/// do; with what it took in the log.
pub(crate) async fn with_retries<T, F: Future<Output = Result<T, Status>>>(
    what: &str,
    patience: Duration,
    mut call: impl FnMut() -> F,
) -> Result<T, Status> {
    let began = std::time::Instant::now();
    loop {
        match call().await {
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable
                        | Code::Aborted
                        | Code::DeadlineExceeded
                        | Code::FailedPrecondition
                ) && began.elapsed() < patience =>
            {
                println!("  {what}: {:?}: {}; again", status.code(), status.message());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => return other,
        }
    }
}
