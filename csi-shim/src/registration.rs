//! Making ourselves known to kubelet.
//!
//! kubelet watches its plugins_registry directory. When a socket appears there it asks it
//! who it is (`GetInfo`), then asks the CSI socket for NodeGetInfo, and says how that went
//! (`NotifyRegistrationStatus`). So our socket appears only once the agent answers: before
//! that, registration could but fail.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rds_csi_proto::registration::registration_server::{Registration, RegistrationServer};
use rds_csi_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::ShimError;
use crate::agent::Agent;
use crate::authority::mended;
use crate::config::Args;
use crate::identity::ask_agent;
use crate::socket::listen;

/// kubelet's name for what we are (k8s.io/kubelet/pkg/apis/pluginregistration/v1).
const CSI_PLUGIN: &str = "CSIPlugin";

/// The CSI version, of which kubelet compares the first number.
const SUPPORTED_VERSION: &str = "1.0.0";

/// While the agent is not there: how often to look, and how often to say so.
const LOOK_FOR_AGENT: Duration = Duration::from_millis(500);
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// For the answer to the call that told us to end. kubelet's calls here are instant.
const GRACE: Duration = Duration::from_secs(2);

struct RegistrationService {
    driver_name: String,
    endpoint: PathBuf,
    /// kubelet's refusal in its own words. Whoever sets it cancels `end`.
    refusal: Arc<OnceLock<String>>,
    end: CancellationToken,
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        tracing::info!(endpoint = %self.endpoint.display(), "kubelet asks who we are");
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: self.driver_name.clone(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![SUPPORTED_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            // One that came before says enough.
            let _ = self.refusal.set(status.error);
            self.end.cancel();
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Registers with kubelet and stays registered until `stop`.
///
/// # Errors
/// If the socket cannot be set up, or kubelet refuses us. kubelet does not ask a second
/// time by itself, so the process has to end and come back with a new socket.
pub async fn run(args: &Args, agent: &Agent, stop: &CancellationToken) -> Result<(), ShimError> {
    tokio::select! {
        () = wait_for_agent(agent) => {}
        () = stop.cancelled() => return Ok(()),
    }
    let (incoming, file) = listen(&args.registration_socket())?;
    let end = stop.child_token();
    let refusal = Arc::new(OnceLock::new());
    let service = RegistrationService {
        driver_name: args.driver_name.clone(),
        endpoint: args.kubelet_endpoint(),
        refusal: Arc::clone(&refusal),
        end: end.clone(),
    };
    tracing::info!(socket = %file.path().display(), "waiting for kubelet to find us");
    let incoming = incoming.map(|stream| stream.map(mended));
    let server = Server::builder()
        .add_service(RegistrationServer::new(service))
        .serve_with_incoming_shutdown(incoming, end.clone().cancelled_owned());
    let overdue = async {
        end.cancelled().await;
        sleep(GRACE).await;
    };
    tokio::select! {
        ended = server => ended
            .map_err(|source| ShimError::Serve { path: file.path().to_owned(), source })?,
        () = overdue => {}
    }
    match refusal.get() {
        Some(reason) => Err(ShimError::RegistrationRefused { reason: reason.clone() }),
        None => Ok(()),
    }
}

async fn wait_for_agent(agent: &Agent) {
    let agent = agent.with_patience(Duration::ZERO);
    let mut complain_at = Instant::now();
    while let Err(status) = ask_agent(&agent).await {
        if Instant::now() >= complain_at {
            tracing::warn!("not registering with kubelet yet: {}", status.message());
            complain_at = Instant::now() + COMPLAIN_EVERY;
        }
        sleep(LOOK_FOR_AGENT).await;
    }
}
