//! A stand-in for the agent, and a shim in front of it.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use hyper_util::rt::TokioIo;
use rds_csi_proto::csi::node_client::NodeClient;
use rds_csi_proto::csi::node_server::{Node, NodeServer};
use rds_csi_proto::csi::*;
use rds_csi_shim::{ShimError, config::Args, serve};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Code, Request, Response, Status};

/// What anything in a test may take before the test is broken.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The volume ids that the stand-in treats specially.
pub const SLOW: &str = "slow";
pub const REFUSED: &str = "refused";
pub const FATAL: &str = "fatal";

/// The stand-in's answer for [`REFUSED`].
pub const REASON: &str = "volume is held by another attachment: naïve 100 % \"quoted\"\nline two";
pub const DETAILS: &[u8] = b"\x08\x09\x00binary";

#[derive(Clone, Default)]
pub struct FakeAgent {
    pub calls: Arc<AtomicUsize>,
    pub last_timeout: Arc<Mutex<Option<String>>>,
    pub staged: Arc<Mutex<Option<NodeStageVolumeRequest>>>,
    crash: CancellationToken,
}

/// An agent that is running; dropped, it dies like a process that is killed.
pub struct Running {
    crash: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.crash.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl FakeAgent {
    /// Serves on `socket`. In a runtime of its own, since a process that dies takes its
    /// connections with it, and a server future that is dropped does not.
    pub fn start(&self, socket: &Path) -> Running {
        let _ = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let crash = CancellationToken::new();
        let agent = Self { crash: crash.clone(), ..self.clone() };
        let ended = crash.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = UnixListenerStream::new(UnixListener::from_std(listener).unwrap());
                let server = Server::builder()
                    .add_service(NodeServer::new(agent))
                    .serve_with_incoming(incoming);
                tokio::select! { _ = server => {}, () = ended.cancelled() => {} }
            });
        });
        Running { crash, thread: Some(thread) }
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn note<T>(&self, request: &Request<T>) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        *self.last_timeout.lock().unwrap() = request
            .metadata()
            .get("grpc-timeout")
            .and_then(|v| v.to_str().ok())
            .map(ToOwned::to_owned);
    }

    /// A method of which only the volume's id matters.
    async fn about<T: Sync, R: Default>(
        &self,
        request: &Request<T>,
        volume: &str,
    ) -> Result<Response<R>, Status> {
        self.note(request);
        self.fate(volume).await?;
        Ok(Response::new(R::default()))
    }

    /// What happens to a volume of that id.
    async fn fate(&self, volume: &str) -> Result<(), Status> {
        match volume {
            SLOW => std::future::pending().await,
            REFUSED => Err(Status::with_details(Code::FailedPrecondition, REASON, DETAILS.into())),
            FATAL => {
                self.crash.cancel();
                std::future::pending().await
            }
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Node for FakeAgent {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        self.note(&request);
        self.fate(&request.get_ref().volume_id).await?;
        *self.staged.lock().unwrap() = Some(request.into_inner());
        Ok(Response::new(NodeStageVolumeResponse {}))
    }
    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        self.about(&request, &request.get_ref().volume_id).await
    }
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        self.about(&request, &request.get_ref().volume_id).await
    }
    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        self.about(&request, &request.get_ref().volume_id).await
    }
    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        self.about(&request, &request.get_ref().volume_id).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        self.note(&request);
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: 4096 }))
    }
    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(NodeGetCapabilitiesResponse::default()))
    }
    async fn node_get_info(
        &self,
        request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        self.note(&request);
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "not-this".to_owned(),
            max_volumes_per_node: 77,
            accessible_topology: None,
        }))
    }
}

/// A shim of its own directory, with or without an agent.
pub struct World {
    dir: TempDir,
    pub agent: FakeAgent,
    stop: CancellationToken,
    shim: Option<tokio::task::JoinHandle<Result<(), ShimError>>>,
}

impl World {
    pub async fn new(extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (endpoint, agent_socket, registration) =
            (path("csi.sock"), path("agent.sock"), dir.path().display().to_string());
        let base = [
            "rds-csi-shim",
            "--node-name=node-1",
            "--no-kubernetes",
            "--endpoint",
            &endpoint,
            "--agent-socket",
            &agent_socket,
            "--registration-dir",
            &registration,
        ];
        let args = Args::try_parse_from(base.iter().chain(extra)).unwrap();
        let stop = CancellationToken::new();
        let shim = Some(tokio::spawn(serve::run(args, stop.clone())));
        let world = Self { dir, agent: FakeAgent::default(), stop, shim };
        world.appears("csi.sock").await;
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn agent_socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    pub fn start_agent(&self) -> Running {
        self.agent.start(&self.agent_socket())
    }

    pub async fn appears(&self, name: &str) {
        let path = self.path(name);
        let wait = async {
            while UnixStream::connect(&path).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect(name);
    }

    /// A channel as kubelet makes it: a unix socket, `localhost` as authority.
    pub async fn dial(&self, name: &str) -> Channel {
        dial(&self.path(name)).await
    }

    pub async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.dial("csi.sock").await)
    }

    /// How the shim ends by itself.
    pub async fn outcome(&mut self) -> Result<(), ShimError> {
        let shim = self.shim.take().unwrap();
        tokio::time::timeout(LIMIT, shim).await.expect("the shim ends").unwrap()
    }

    /// Asks the shim to end.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// How it ends when it is asked to.
    pub async fn stop(&mut self) -> Result<(), ShimError> {
        self.cancel();
        self.outcome().await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The same, to any socket.
pub async fn dial(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// A request that is allowed `timeout`.
pub fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

pub fn unstage(volume: &str) -> NodeUnstageVolumeRequest {
    NodeUnstageVolumeRequest { volume_id: volume.to_owned(), ..Default::default() }
}
