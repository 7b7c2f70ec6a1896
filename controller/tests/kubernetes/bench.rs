//! Several controllers before one appliance and one API server.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rds_csi_proto::csi::controller_client::ControllerClient;
use rds_csi_proto::csi::identity_client::IdentityClient;
use rds_csi_proto::csi::*;
use rds_kube::Cluster;
use serde::de::DeserializeOwned;
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

use crate::lab::metrics::{number, scrape};
use crate::lab::*;

pub const CONTROLLER: &str = env!("CARGO_BIN_EXE_rds-csi-controller");
/// The controller's name in the manifests.
pub const PART: &str = "rds-csi-controller";

/// One that no test stops. It ends with this process.
pub fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start().unwrap()).as_ref()
}

pub async fn client(cluster: &Cluster) -> Client {
    let file = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The kubeconfig's user, in the namespace `default`.
pub async fn allow_the_controller(client: &Client, driver: &str) {
    let user =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "controller"});
    allow(client, "default", user, driver).await;
}

/// What the chart gives the controller, and nothing else.
pub async fn allow(client: &Client, namespace: &str, subject: serde_json::Value, driver: &str) {
    for role in rds_kube::manifests::roles(PART, namespace, &subject, driver).unwrap() {
        match role["kind"].as_str().unwrap() {
            "ClusterRole" => drop(put::<ClusterRole>(Api::all(client.clone()), role).await),
            "ClusterRoleBinding" => {
                drop(put::<ClusterRoleBinding>(Api::all(client.clone()), role).await);
            }
            "Role" => drop(put::<Role>(Api::namespaced(client.clone(), namespace), role).await),
            "RoleBinding" => {
                drop(put::<RoleBinding>(Api::namespaced(client.clone(), namespace), role).await);
            }
            other => panic!("a {other} among the roles"),
        }
    }
}

/// Makes an object, which another test may have made already.
pub async fn put<K>(api: Api<K>, object: serde_json::Value) -> Option<K>
where
    K: Clone + std::fmt::Debug + serde::Serialize + DeserializeOwned,
{
    match api.create(&Default::default(), &serde_json::from_value(object).unwrap()).await {
        Ok(made) => Some(made),
        Err(kube::Error::Api(status)) if status.code == 409 => None,
        Err(error) => panic!("{error}"),
    }
}

/// A Lease that nobody holds, so that the first to come need not wait.
pub async fn free_lease(client: &Client, driver: &str) -> Api<Lease> {
    allow_the_controller(client, driver).await;
    lease(client, "default", driver).await
}

pub async fn lease(client: &Client, namespace: &str, driver: &str) -> Api<Lease> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = serde_json::from_value(json!({"metadata": {"name": driver}})).unwrap();
    api.create(&Default::default(), &lease).await.unwrap();
    api
}

/// A controller beside others.
pub struct Replica {
    pub process: Process,
    channel: Channel,
    pub log: std::path::PathBuf,
}

impl Replica {
    /// As `--pod-name NAME`, with the kubeconfig of a user who may do as much as is documented.
    pub async fn start(lab: &Lab, cluster: &Cluster, driver: &str, name: &str) -> Self {
        Self::start_with(lab, cluster, driver, name, &[]).await
    }

    pub async fn start_with(
        lab: &Lab,
        cluster: &Cluster,
        driver: &str,
        name: &str,
        flags: &[&str],
    ) -> Self {
        let mut command = Self::command(cluster);
        command.args(flags);
        Self::spawn(lab, driver, name, command).await
    }

    /// What [`Self::spawn`] is to be given, as long as nothing is to be otherwise.
    pub fn command(cluster: &Cluster) -> Command {
        let mut command = Command::new(CONTROLLER);
        command.arg("--kubeconfig").arg(cluster.kubeconfig_of("controller"));
        command
    }

    /// With what the command has already.
    pub async fn spawn(lab: &Lab, driver: &str, name: &str, mut command: Command) -> Self {
        let socket = lab.path(&format!("{name}.sock"));
        let log = lab.path(&format!("{name}.log"));
        let mut args = lab.controller_args();
        args[1] = format!("unix://{}", socket.display());
        command
            .args(args)
            .args(["--driver-name", driver, "--pod-name", name, "--cluster-id", "lab"])
            .env("RUST_LOG", "debug,h2=info,hyper=info,hyper_util=info,rustls=info,tower=info")
            .stderr(std::fs::File::create(&log).unwrap());
        let process = Process::spawn(&mut command);
        Self { process, channel: connect(socket).await, log }
    }

    /// One of its numbers, from where it says that it serves them.
    pub async fn number(&self, name: &str) -> i64 {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let line =
            log.lines().find_map(|line| line.split_once("serving metrics address=")).unwrap();
        let text = scrape(line.1.trim().parse().unwrap()).await;
        number(&text, &format!("rds_csi_{name}")).unwrap_or_else(|| panic!("no {name}: {text}"))
    }

    pub fn volumes(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub async fn leads(&self) -> bool {
        self.identity()
            .probe(ProbeRequest {})
            .await
            .is_ok_and(|p| p.into_inner().ready == Some(true))
    }

    /// How long it took.
    pub async fn leads_within(&self, limit: Duration) -> Duration {
        let begun = std::time::Instant::now();
        while !self.leads().await {
            assert!(begun.elapsed() < limit, "does not lead after {limit:?}: {}", tail(&self.log));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        begun.elapsed()
    }

    pub async fn create(&self, name: &str) -> Result<Volume, Status> {
        let made = self.volumes().create_volume(create_request(name)).await?;
        Ok(made.into_inner().volume.unwrap())
    }

    pub async fn publish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = publish_request(volume, node, mount(Mode::SingleNodeWriter));
        self.volumes().controller_publish_volume(request).await.map(drop)
    }

    pub async fn unpublish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        self.volumes().controller_unpublish_volume(request).await.map(drop)
    }
}

pub fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<_> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
