//! CSI Controller: each call reads its request, then runs as the one operation on its
//! volume. What is not announced is answered with UNIMPLEMENTED, by name. Ids go into the log
//! quoted: they are the caller's text and may hold line breaks.

use std::sync::Arc;

use rds_csi_proto::csi::controller_server::Controller;
use rds_csi_proto::csi::controller_service_capability::{Rpc, Type, rpc};
use rds_csi_proto::csi::*;
use rds_csi_proto::ids::{NodeName, VolumeId};
use tonic::{Request, Response, Status};
use tracing::{Instrument, info_span};

use super::{Service, patience};
use crate::error::Error;
use crate::rules::capability;
use crate::rules::size::{SizePlan, csi_bytes};
use crate::volumes::{CreatePlan, PublishRequest};

/// What is built, tested and true.
const CAPABILITIES: &[rpc::Type] = &[
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetCapacity,
    rpc::Type::ExpandVolume,
    rpc::Type::GetVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::CloneVolume,
];

fn required(name: &str, value: &str) -> Result<(), Error> {
    match value {
        "" => Err(Error::Invalid(format!("{name} is required"))),
        _ => Ok(()),
    }
}

impl Service {
    fn not_implemented<T>(&self, rpc: &'static str) -> Result<Response<T>, Status> {
        Err(Error::NotImplemented(rpc).into())
    }
}

#[tonic::async_trait]
impl Controller for Service {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        const RPC: &str = "CreateVolume";
        let wait = patience(request.metadata());
        let span = info_span!("rpc", rpc = RPC, volume = tracing::field::Empty);
        self.answer(RPC, async {
            let plan = CreatePlan::new(request.into_inner())?;
            let volume = plan.volume.clone();
            tracing::Span::current().record("volume", volume.as_str());
            let volumes = Arc::clone(&self.volumes);
            let made = self
                .operations
                .run(RPC, &volume, wait, async move { volumes.create(&plan).await })
                .await
                .map_err(|e| self.volumes.with_progress(&volume, e))?;
            Ok(CreateVolumeResponse { volume: Some(made) })
        })
        .instrument(span)
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        const RPC: &str = "DeleteVolume";
        let wait = patience(request.metadata());
        let id = request.into_inner().volume_id;
        let span = info_span!("rpc", rpc = RPC, volume = ?id);
        self.answer(RPC, async {
            required("volume_id", &id)?;
            // CSI wants success for a volume that does not exist. An id of another form than
            // ours never existed: nothing is looked up, let alone touched, for it.
            let Ok(volume) = id.parse::<VolumeId>() else {
                tracing::warn!("not an id of this driver: nothing to delete");
                return Ok(DeleteVolumeResponse {});
            };
            let volumes = Arc::clone(&self.volumes);
            let own = volume.clone();
            self.operations
                .run(RPC, &volume, wait, async move { volumes.delete(&own).await })
                .await?;
            Ok(DeleteVolumeResponse {})
        })
        .instrument(span)
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        const RPC: &str = "ControllerPublishVolume";
        let wait = patience(request.metadata());
        let request = request.into_inner();
        let span =
            info_span!("rpc", rpc = RPC, volume = ?request.volume_id, node = ?request.node_id);
        self.answer(RPC, async {
            let request = PublishRequest::new(request)?;
            let volume = request.volume.clone();
            let volumes = Arc::clone(&self.volumes);
            let publish_context = self
                .operations
                .run(RPC, &volume, wait, async move { volumes.publish(&request).await })
                .await?;
            Ok(ControllerPublishVolumeResponse { publish_context })
        })
        .instrument(span)
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        const RPC: &str = "ControllerUnpublishVolume";
        let wait = patience(request.metadata());
        let ControllerUnpublishVolumeRequest { volume_id, node_id, .. } = request.into_inner();
        let span = info_span!("rpc", rpc = RPC, volume = ?volume_id, node = ?node_id);
        self.answer(RPC, async {
            required("volume_id", &volume_id)?;
            let done = ControllerUnpublishVolumeResponse {};
            // Neither a volume nor a node of another form can ever have been attached.
            let Ok(volume) = volume_id.parse::<VolumeId>() else { return Ok(done) };
            let node = match node_id.as_str() {
                "" => None,
                name => match name.parse::<NodeName>() {
                    Ok(node) => Some(node),
                    Err(_) => return Ok(done),
                },
            };
            let volumes = Arc::clone(&self.volumes);
            let own = volume.clone();
            self.operations
                .run(
                    RPC,
                    &volume,
                    wait,
                    async move { volumes.unpublish(&own, node.as_ref()).await },
                )
                .await?;
            Ok(done)
        })
        .instrument(span)
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        const RPC: &str = "ValidateVolumeCapabilities";
        let request = request.into_inner();
        let span = info_span!("rpc", rpc = RPC, volume = ?request.volume_id);
        self.answer(RPC, async {
            required("volume_id", &request.volume_id)?;
            capability::check_all(&request.volume_capabilities)?;
            let missing = || Error::NotFound(request.volume_id.clone());
            let volume: VolumeId = request.volume_id.parse().map_err(|_| missing())?;
            self.volumes.must_exist(&volume).await?;
            let confirmed = validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            };
            Ok(ValidateVolumeCapabilitiesResponse {
                confirmed: Some(confirmed),
                message: String::new(),
            })
        })
        .instrument(span)
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let announce = |t: &rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: (*t).into() })),
        };
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: CAPABILITIES.iter().map(announce).collect(),
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        const RPC: &str = "ListVolumes";
        self.answer(RPC, self.volumes.list(&request.into_inner()))
            .instrument(info_span!("rpc", rpc = RPC))
            .await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        const RPC: &str = "GetCapacity";
        self.answer(RPC, self.volumes.capacity(&request.into_inner()))
            .instrument(info_span!("rpc", rpc = RPC))
            .await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        self.make_snapshot(request).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        self.end_snapshot(request).await
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        self.show_snapshots(request).await
    }

    async fn get_snapshot(
        &self,
        _: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        self.not_implemented("GetSnapshot")
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        const RPC: &str = "ControllerExpandVolume";
        let wait = patience(request.metadata());
        let request = request.into_inner();
        let span = info_span!("rpc", rpc = RPC, volume = ?request.volume_id);
        self.answer(RPC, async {
            required("volume_id", &request.volume_id)?;
            let range = request
                .capacity_range
                .ok_or_else(|| Error::Invalid("capacity_range is required".into()))?;
            let plan = SizePlan::new(Some((range.required_bytes, range.limit_bytes)))?;
            if let Some(capability) = &request.volume_capability {
                capability::check(capability)?;
            }
            let missing = || Error::NotFound(request.volume_id.clone());
            let volume: VolumeId = request.volume_id.parse().map_err(|_| missing())?;
            let volumes = Arc::clone(&self.volumes);
            let own = volume.clone();
            let size = self
                .operations
                .run(RPC, &volume, wait, async move { volumes.expand(&own, &plan).await })
                .await?;
            // The node has the shield, a raw volume's size too, and the file system to grow.
            Ok(ControllerExpandVolumeResponse {
                capacity_bytes: csi_bytes(size)?,
                node_expansion_required: true,
            })
        })
        .instrument(span)
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        const RPC: &str = "ControllerGetVolume";
        let id = request.into_inner().volume_id;
        let span = info_span!("rpc", rpc = RPC, volume = ?id);
        self.answer(RPC, async {
            required("volume_id", &id)?;
            let volume: VolumeId = id.parse().map_err(|_| Error::NotFound(id.clone()))?;
            self.volumes.get(&volume).await
        })
        .instrument(span)
        .await
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        self.not_implemented("ControllerModifyVolume")
    }
}
