//! CSI Identity: who we are, and whether we can work.

use std::collections::HashMap;

use rds_csi_proto::csi::identity_server::Identity;
use rds_csi_proto::csi::plugin_capability::{
    Service as PluginService, Type, VolumeExpansion, service, volume_expansion,
};
use rds_csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::{Code, Request, Response, Status};

use super::Service;
use crate::error::Error;

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver_name.to_string(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let mut services = vec![service::Type::ControllerService];
        if self.volumes.has_topology() {
            services.push(service::Type::VolumeAccessibilityConstraints);
        }
        let capability = |service: service::Type| PluginCapability {
            r#type: Some(Type::Service(PluginService { r#type: service.into() })),
        };
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let expansion = PluginCapability { r#type: Some(Type::VolumeExpansion(online)) };
        let capabilities = services.into_iter().map(capability).chain([expansion]).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Ready when an appliance answers. One that is merely away is "not ready", which the
    /// sidecars wait out; something that a person has to mend is an error that says what.
    ///
    /// One that stands by is not ready either: the sidecars wait for that as long as it takes
    /// (csi-lib-utils, ProbeForever), while they end after 30 s without a socket (Connect).
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        if !self.leads() {
            return Ok(Response::new(ProbeResponse { ready: Some(false) }));
        }
        self.answer("Probe", async {
            match self.volumes.probe().await {
                Ok(()) => Ok(ProbeResponse { ready: Some(true) }),
                Err(error) if error.code() == Code::Unavailable => {
                    tracing::warn!("not ready: {error}");
                    Ok(ProbeResponse { ready: Some(false) })
                }
                // The only error code that CSI has for Probe.
                Err(error) => Err(Error::Refused(error.to_string())),
            }
        })
        .await
    }
}
