//! An agent as far as a shim needs one, a shim, and somebody who may do everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rds_csi_proto::agent::attachments_server::AttachmentsServer;
use rds_csi_proto::agent::notices_server::NoticesServer;
use rds_csi_shim::{config::Args, serve};
use rds_kube::manifests;
use rds_node_agent::metrics::Metrics;
use rds_node_agent::notices::Notices;
use rds_node_agent::session::SessionSpec;
use rds_node_agent::session::answerers::Answerers;
use rds_node_agent::session::machine::Attachment;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::{self, Method};
use tonic::transport::Server;

/// What anything in a test may take before the test is broken.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The shim's name in the manifests.
pub const PART: &str = "rds-csi-shim";
pub const STORAGE: &str = "/apis/storage.k8s.io/v1";

/// The agent, as far as this goes.
pub struct Agent {
    pub answerers: Answerers,
    pub notices: Notices,
    pub server: JoinHandle<()>,
}

impl Agent {
    pub fn start(socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let answerers = Answerers::new(Arc::new(Metrics::new().unwrap()));
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let notices = Notices::default();
        let server = Server::builder()
            .add_service(AttachmentsServer::new(answerers.clone()))
            .add_service(NoticesServer::new(notices.clone()));
        let server =
            tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        Self { answerers, notices, server }
    }

    pub async fn has_a_shim(&self) {
        let begun = Instant::now();
        while !self.answerers.is_anybody_there() {
            assert!(begun.elapsed() < LIMIT, "no shim has come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks until the answer is as wanted: rights take a moment to come into force.
    pub async fn hears(&self, spec: &SessionSpec, wanted: &str, word: &str) {
        let begun = Instant::now();
        loop {
            let answer = self.answerers.ask(spec).await;
            let (kind, why) = match &answer {
                Attachment::Exists => ("exists", ""),
                Attachment::Gone(why) => ("gone", why.as_str()),
                Attachment::Unknown(why) => ("unknown", why.as_str()),
            };
            if kind == wanted && why.contains(word) {
                return;
            }
            assert_ne!(kind, if wanted == "gone" { "exists" } else { "gone" }, "{answer:?}");
            assert!(begun.elapsed() < LIMIT, "{wanted} ({word}) was wanted, not {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Who may do everything in Kubernetes.
pub struct Admin(Client);

impl Admin {
    pub async fn new(kubeconfig: PathBuf) -> Self {
        let file = Kubeconfig::read_from(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(file, &options).await.unwrap();
        Self(Client::try_from(config).unwrap())
    }

    pub async fn does(&self, method: Method, path: &str, body: Value) -> Value {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(serde_json::to_vec(&body).unwrap())
            .unwrap();
        self.0.request::<Value>(request).await.unwrap()
    }

    /// By the chart's roles, and nothing else.
    pub async fn lets_the_shim_do_what_it_needs(&self) {
        let user = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "shim"});
        for role in manifests::roles(PART, "default", &user, "rds.csi.srvlab.io").unwrap() {
            let kind = role["kind"].as_str().unwrap().to_lowercase();
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{kind}s");
            self.does(Method::POST, &path, role).await;
        }
    }
}

pub fn start_shim(dir: &Path, kubeconfig: &Path) -> CancellationToken {
    let path = |name: &str| dir.join(name).display().to_string();
    let args = Args::try_parse_from([
        "rds-csi-shim",
        "--node-name=node-1",
        "--no-registration",
        "--endpoint",
        &path("csi.sock"),
        "--agent-socket",
        &path("agent.sock"),
        "--kubeconfig",
        &kubeconfig.display().to_string(),
    ])
    .unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve::run(args, stop.clone()));
    stop
}
