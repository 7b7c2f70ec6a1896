//! `csi.v1.Identity`: who we are. Answered here, so that it works while the agent is down.

use std::time::Duration;

use prost::bytes::Bytes;
use rds_csi_proto::csi::identity_server::Identity;
use rds_csi_proto::csi::plugin_capability::{self, Service, service};
use rds_csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Response, Status};

use crate::agent::Agent;
use crate::deadline::Deadline;

/// A probe wants to know about now: an agent that needs longer than this is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Cheap for the agent, and answered by the service that real calls go to.
const PROBED_METHOD: &str = "/csi.v1.Node/NodeGetCapabilities";

/// The plugin's identity on a node.
#[derive(Debug)]
pub struct IdentityService {
    driver_name: String,
    agent: Agent,
    /// Whether NodeGetInfo tells where the node is.
    has_topology: bool,
}

impl IdentityService {
    /// The identity of the driver `driver_name`, as ready as `agent` is.
    #[must_use]
    pub fn new(driver_name: String, agent: &Agent, has_topology: bool) -> Self {
        Self { driver_name, agent: agent.with_patience(Duration::ZERO), has_topology }
    }
}

/// Whether the agent answers, and how it does not.
pub(crate) async fn ask_agent(agent: &Agent) -> Result<(), Status> {
    let method = PathAndQuery::from_static(PROBED_METHOD);
    agent.call(method, Bytes::new(), Deadline::after(PROBE_TIMEOUT)).await.map(drop)
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // A plugin that tells a topology must announce that it does (spec, NodeGetInfo). Without
        // one, every node reaches the appliance alike.
        let topology = service::Type::VolumeAccessibilityConstraints;
        let announced = [service::Type::ControllerService]
            .into_iter()
            .chain(self.has_topology.then_some(topology));
        let capability = |of: service::Type| PluginCapability {
            r#type: Some(plugin_capability::Type::Service(Service { r#type: of.into() })),
        };
        let capabilities = announced.map(capability).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Not ready is an answer, not an error (spec, Probe): there is nothing wrong with the
    /// shim, and ending it would not bring the agent back.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = match ask_agent(&self.agent).await {
            Ok(()) => true,
            Err(status) => {
                tracing::warn!(code = ?status.code(), "not ready: {}", status.message());
                false
            }
        };
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}
