//! A pod of the chart's Deployment, as processes: its containers with the flags, the environment
//! and the service account that deploy/manifests gives them. Only addresses are of this test.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use serde_json::Value;

use crate::appliance::Appliance;
use crate::cluster::Cluster;
use crate::process::{Process, ours, theirs};

/// kubelet starts what has ended again; it waits longer.
const RESTART: Duration = Duration::from_secs(1);
/// Of which no build can be had from the Go module proxy.
const NOT_HERE: &str = "health-monitor";

pub(crate) struct Replica {
    pub(crate) name: String,
    containers: Arc<Mutex<Vec<Container>>>,
    supervisor: tokio::task::JoinHandle<()>,
}

struct Container {
    name: String,
    command: Command,
    dir: PathBuf,
    process: Process,
}

impl Container {
    fn restart(&mut self) -> anyhow::Result<()> {
        self.process = Process::start(&mut self.command, &self.dir, &self.name)?;
        Ok(())
    }
}

impl Replica {
    /// What kubelet would do with this pod.
    pub(crate) async fn start(
        pod: &Value,
        cluster: &Cluster,
        appliance: &Appliance,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("not a text");
        let name = text(&pod["metadata"]["name"])?;
        let namespace = text(&pod["metadata"]["namespace"])?;
        let dir = dir.join(&name);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let account = text(&pod["spec"]["serviceAccountName"])?;
        let kubeconfig = kubeconfig_of(cluster, &namespace, &account, &dir).await?;
        let socket = dir.join("csi.sock");
        let mut containers = Vec::new();
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            let role = text(&container["name"])?;
            if role == NOT_HERE {
                continue;
            }
            let mut command = match role.as_str() {
                "controller" => Command::new(ours("rds-csi-controller")?),
                sidecar => Command::new(theirs(&format!("csi-{sidecar}"))?),
            };
            for arg in container["args"].as_array().into_iter().flatten() {
                command.arg(text(arg)?.replace("/csi/csi.sock", &socket.display().to_string()));
            }
            for variable in container["env"].as_array().into_iter().flatten() {
                let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some("metadata.name") => name.clone(),
                    Some("metadata.namespace") => namespace.clone(),
                    _ => text(&variable["value"])?,
                };
                command.env(text(&variable["name"])?, value);
            }
            if role == "controller" {
                command
                    .env("RDS_CSI_ENDPOINT", format!("unix://{}", socket.display()))
                    .env("RDS_CSI_RDS_URL", &appliance.url)
                    .env("RDS_CSI_RDS_CREDENTIALS", &appliance.credentials)
                    .env("RDS_CSI_NVME_ADDRESS", appliance.nvme_address)
                    .env("RDS_CSI_METRICS_ADDR", "127.0.0.1:0")
                    .env("RDS_CSI_KUBECONFIG", &kubeconfig)
                    .env("RDS_CSI_LEADER_ELECTION_NAMESPACE", &namespace);
            } else {
                command.arg(format!("--kubeconfig={}", kubeconfig.display()));
            }
            let process = Process::start(&mut command, &dir, &role)?;
            containers.push(Container { name: role, command, dir: dir.clone(), process });
        }
        let containers = Arc::new(Mutex::new(containers));
        let supervisor = tokio::spawn(supervise(containers.clone()));
        Ok(Self { name, containers, supervisor })
    }

    /// Kills the controller, and the whole pod with it for as long as this takes to return.
    pub(crate) fn kill_controller(&self) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        for container in containers.iter_mut().filter(|c| c.name == "controller") {
            container.process.kill();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.supervisor.abort();
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        for container in containers.iter_mut() {
            container.process.kill();
        }
    }
}

async fn supervise(containers: Arc<Mutex<Vec<Container>>>) {
    loop {
        tokio::time::sleep(RESTART).await;
        let mut containers = containers.lock().unwrap_or_else(PoisonError::into_inner);
        for container in containers.iter_mut() {
            if container.process.has_ended()
                && let Err(error) = container.restart()
            {
                eprintln!("{} does not start again: {error:#}", container.name);
            }
        }
    }
}

/// As the account of the pod, which is what it may do.
async fn kubeconfig_of(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    dir: &Path,
) -> anyhow::Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.kube.client(), namespace);
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..Default::default() };
    let made = accounts.create_token_request(account, &Default::default(), &request).await?;
    let token = made.status.context("no token")?.token;
    let mut config: Value = serde_json::from_slice(&std::fs::read(cluster.server.kubeconfig())?)?;
    config["users"][0]["user"]["token"] = token.into();
    let file = dir.join("kubeconfig");
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}
