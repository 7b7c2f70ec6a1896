//! Starts the servers, and ends them in order.

use std::pin::pin;
use std::time::Duration;

use rds_csi_proto::csi::identity_server::IdentityServer;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::ShimError;
use crate::agent::Agent;
use crate::api::Source;
use crate::attachments;
use crate::config::Args;
use crate::forward::{NodeForwarder, Place};
use crate::identity::IdentityService;
use crate::kubernetes::Kubernetes;
use crate::notices;
use crate::registration;
use crate::socket::listen;
use crate::topology;
use crate::verdict::Who;

/// What a call in progress gets at shutdown: less than the 30 s after which Kubernetes
/// kills a container. A call that is cut off is repeated by kubelet.
const GRACE: Duration = Duration::from_secs(20);

/// Serves until `stop`, or until something fails.
///
/// # Errors
/// See [`ShimError`].
pub async fn run(args: Args, stop: CancellationToken) -> Result<(), ShimError> {
    let topology = topology::together(&args.topology).map_err(ShimError::Topology)?;
    let agent = Agent::new(args.agent_socket.clone());
    let (incoming, file) = listen(&args.endpoint)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), driver = args.driver_name, node = %args.node_name,
        endpoint = %args.endpoint.display(), agent = %args.agent_socket.display(), "serving CSI"
    );
    // Ends with this call.
    let mut answering = JoinSet::new();
    if !args.no_kubernetes {
        let source = args.kubeconfig.clone().map_or(Source::ServiceAccount, Source::Kubeconfig);
        let who = Who { driver: args.driver_name.clone(), node: args.node_name.clone() };
        let kubernetes = Kubernetes(source);
        answering.spawn(notices::run(agent.clone(), kubernetes.clone(), who.clone()));
        answering.spawn(attachments::run(agent.clone(), kubernetes, who));
    }

    let identity = IdentityService::new(args.driver_name.clone(), &agent, !topology.is_empty());
    let place = Place { node: args.node_name.clone(), topology };
    let serving = Server::builder()
        .add_service(IdentityServer::new(identity))
        .add_service(NodeForwarder::new(agent.clone(), place))
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let mut serving = pin!(async {
        serving.await.map_err(|source| ShimError::Serve { path: file.path().to_owned(), source })
    });

    let registered = async {
        if args.no_registration {
            stop.cancelled().await;
            Ok(())
        } else {
            registration::run(&args, &agent, &stop).await
        }
    };
    let outcome = tokio::select! {
        outcome = registered => outcome,
        ended = &mut serving => return ended,
    };
    stop.cancel();
    match timeout(GRACE, serving).await {
        Ok(ended) => outcome.and(ended),
        Err(_) => {
            tracing::warn!("calls still in progress are cut off; kubelet repeats them");
            outcome
        }
    }
}
