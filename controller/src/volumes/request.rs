//! A ControllerPublish, checked: behind this file nothing can be malformed.

use std::time::Duration;

use rds_csi_proto::context::NVME_ADDRESS;
use rds_csi_proto::csi::ControllerPublishVolumeRequest;
use rds_csi_proto::ids::{NodeName, VolumeId};
use rds_csi_proto::params::{MigrationParams, VolumeParams};

use crate::error::Error;
use crate::rules::capability;
use crate::rules::owner::Sharing;

/// A ControllerPublish.
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeName,
    pub(super) sharing: Sharing,
    /// From the volume context: an address, or a name in those that older drivers wrote.
    pub(super) nvme_address: Option<String>,
    /// How long two nodes may have it.
    pub(super) migration_timeout: Duration,
    /// The StorageClass allows a second node without proof.
    pub(super) allow_shared_block: bool,
}

impl PublishRequest {
    pub(crate) fn new(request: ControllerPublishVolumeRequest) -> Result<Self, Error> {
        let required = |name: &str, value: &str| match value {
            "" => Err(Error::Invalid(format!("{name} is required"))),
            _ => Ok(()),
        };
        required("volume_id", &request.volume_id)?;
        required("node_id", &request.node_id)?;
        let capability = request
            .volume_capability
            .ok_or_else(|| Error::Invalid("volume_capability is required".into()))?;
        let sharing = capability::check(&capability)?;
        if request.readonly {
            return Err(Error::Invalid(
                "readonly: attaching read-only is not supported (PUBLISH_READONLY is not announced)"
                    .into(),
            ));
        }
        let node = request.node_id.parse().map_err(|e| Error::Invalid(format!("{e}")))?;
        // An id of another form was never given out.
        let volume =
            request.volume_id.parse().map_err(|_| Error::NotFound(request.volume_id.clone()))?;
        let context = &request.volume_context;
        let nvme_address = context.get(NVME_ADDRESS).filter(|a| !a.is_empty()).cloned();
        let MigrationParams { timeout, allow_shared_block } =
            VolumeParams::migration_of_context(context)?;
        let migration_timeout = timeout;
        Ok(Self { volume, node, sharing, nvme_address, migration_timeout, allow_shared_block })
    }
}
