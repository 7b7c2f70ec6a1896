//! `csi.v1.Node`, passed on to the agent.
//!
//! Every unary method goes through as it came, also those that CSI gets later. One answer
//! is completed on its way back: NodeGetInfo's `node_id` and topology, since the agent knows
//! nothing of Kubernetes and the shim knows nothing of the node's limits.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
use prost::bytes::Bytes;
use rds_csi_proto::csi::{NodeGetInfoResponse, Topology};
use rds_csi_proto::ids::NodeName;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tower::Service;

use crate::agent::Agent;
use crate::deadline::Deadline;
use crate::raw::RawCodec;

/// The one method whose answer is looked into.
pub const NODE_GET_INFO: &str = "/csi.v1.Node/NodeGetInfo";

/// A gRPC service that is served by somebody else.
#[derive(Debug, Clone)]
pub struct NodeForwarder {
    agent: Agent,
    place: Arc<Place>,
}

/// What Kubernetes is told of this node.
#[derive(Debug)]
pub struct Place {
    /// Its name.
    pub node: NodeName,
    /// Where it is, by label; empty if nobody said.
    pub topology: BTreeMap<String, String>,
}

impl NodeForwarder {
    /// Forwards to `agent`, from `place`.
    #[must_use]
    pub fn new(agent: Agent, place: Place) -> Self {
        Self { agent, place: Arc::new(place) }
    }

    async fn forward(self, method: PathAndQuery, request: Request<Bytes>) -> Result<Bytes, Status> {
        let started = Instant::now();
        let deadline = Deadline::of_call(request.metadata());
        let message = request.into_inner();
        let volume = volume_of(&message);
        let result = self.agent.call(method.clone(), message, deadline).await;
        let result = match result {
            Ok(answer) if method == NODE_GET_INFO => complete_node_info(&answer, &self.place),
            other => other,
        };
        let ms = started.elapsed().as_millis();
        match &result {
            Ok(_) => tracing::debug!(rpc = %method, volume, ms, "done"),
            Err(status) => tracing::warn!(
                rpc = %method, volume, ms, code = ?status.code(), "{}", status.message()
            ),
        }
        result
    }
}

impl NamedService for NodeForwarder {
    const NAME: &'static str = "csi.v1.Node";
}

impl Service<http::Request<Body>> for NodeForwarder {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let one = OneCall {
            forwarder: self.clone(),
            method: PathAndQuery::try_from(request.uri().path()).ok(),
        };
        Box::pin(async move { Ok(Grpc::new(RawCodec).unary(one, request).await) })
    }
}

/// One call under way: the method travels in the HTTP path, the rest in the gRPC message.
struct OneCall {
    forwarder: NodeForwarder,
    method: Option<PathAndQuery>,
}

impl UnaryService<Bytes> for OneCall {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let forwarder = self.forwarder.clone();
        let method = self.method.clone();
        Box::pin(async move {
            let method = method.ok_or_else(|| Status::unimplemented("malformed method name"))?;
            forwarder.forward(method, request).await.map(Response::new)
        })
    }
}

/// Puts this node's name and place into the agent's answer and leaves the limits as they are.
fn complete_node_info(answer: &[u8], place: &Place) -> Result<Bytes, Status> {
    let mut info = NodeGetInfoResponse::decode(answer).map_err(|e| {
        Status::internal(format!(
            "rds-node-agent's answer to NodeGetInfo cannot be read ({e}): are agent and shim of \
             the same release?"
        ))
    })?;
    info.node_id = place.node.to_string();
    if !place.topology.is_empty() {
        let segments = place.topology.clone().into_iter().collect();
        info.accessible_topology = Some(Topology { segments });
    }
    Ok(info.encode_to_vec().into())
}

/// The start of every Node request that is about a volume: CSI gives `volume_id` number 1
/// in all of them.
#[derive(Clone, PartialEq, Message)]
struct AboutVolume {
    #[prost(string, tag = "1")]
    volume_id: String,
}

/// The volume of a request, for the log only.
fn volume_of(message: &[u8]) -> String {
    AboutVolume::decode(message).map(|m| m.volume_id).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rds_csi_proto::csi::{NodePublishVolumeRequest, NodeUnstageVolumeRequest};

    #[test]
    fn the_agents_limits_are_kept_and_the_name_is_ours() {
        let from_agent = NodeGetInfoResponse {
            node_id: "what-the-agent-thinks".to_owned(),
            max_volumes_per_node: 64,
            accessible_topology: Some(Topology {
                segments: [("zone".to_owned(), "a".to_owned())].into(),
            }),
        };
        let place = Place { node: "node-1".parse().unwrap(), topology: BTreeMap::new() };
        let merged = complete_node_info(&from_agent.encode_to_vec(), &place).unwrap();
        let merged = NodeGetInfoResponse::decode(merged).unwrap();
        assert_eq!(merged, NodeGetInfoResponse { node_id: "node-1".to_owned(), ..from_agent });
    }

    #[test]
    fn the_volume_of_any_node_request_is_known_to_the_log() {
        let publish = NodePublishVolumeRequest {
            volume_id: "pvc-1".to_owned(),
            target_path: "/t".to_owned(),
            ..Default::default()
        };
        assert_eq!(volume_of(&publish.encode_to_vec()), "pvc-1");
        let unstage =
            NodeUnstageVolumeRequest { volume_id: "pvc-2".to_owned(), ..Default::default() };
        assert_eq!(volume_of(&unstage.encode_to_vec()), "pvc-2");
        assert_eq!(volume_of(b"\xff\xff"), "");
    }
}
