//! Kubernetes without kubelet: etcd, API server, controller manager, scheduler, and Nodes whose
//! heartbeats are ours.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rds_kube::ServiceAccounts;
use serde_json::{Value, json};

use crate::api::{Kube, LEASE, NODE};
use crate::process::{Process, theirs, tools};

pub(crate) const DRIVER: &str = "rds.csi.srvlab.io";
/// What the driver needs of the controller manager: without kubelet the others have nothing to do.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,\
    persistentvolume-binder-controller,persistentvolume-attach-detach-controller,\
    persistentvolume-expander-controller,persistentvolumeclaim-protection-controller,\
    persistentvolume-protection-controller,node-lifecycle-controller,taint-eviction-controller,\
    pod-garbage-collector-controller,namespace-controller,garbage-collector-controller,\
    serviceaccount-controller";
/// This machine, as a guest sees it.
const HOST: &str = "10.0.2.2";
const HEARTBEAT: Duration = Duration::from_secs(3);

/// What makes pods of a DaemonSet has to have somebody who runs them.
const FOR_KUBELETS: &str = ",daemonset-controller,statefulset-controller,\
    root-ca-certificate-publisher-controller,endpointslice-controller";

/// Who says what a node has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// We do.
    Ours,
    /// Real kubelets, in guests.
    Kubelets,
}

pub(crate) struct Cluster {
    pub(crate) kube: Kube,
    /// Nodes that are alive.
    alive: Arc<Mutex<BTreeSet<String>>>,
    beat: tokio::task::JoinHandle<()>,
    // Before the server, so that they do not complain at the end.
    controllers: Vec<Process>,
    pub(crate) server: rds_kube::Cluster,
}

impl Cluster {
    pub(crate) async fn start(dir: &Path, nodes: Nodes) -> anyhow::Result<Self> {
        let accounts = match nodes {
            Nodes::Ours => ServiceAccounts::None,
            Nodes::Kubelets => ServiceAccounts::Kept,
        };
        let server = rds_kube::Cluster::start_with(accounts)?;
        let server = server.context("no API server: tests/kube/build.sh")?;
        let kube = Kube::new(&server.kubeconfig()).await?;
        for file in std::fs::read_dir(tools().join("crds"))? {
            let file = file?.path();
            if file.extension().is_some_and(|e| e == "yaml") {
                for definition in rds_kube::manifests::yaml(&file)? {
                    kube.apply(&definition).await?;
                }
            }
        }
        let kubeconfig = format!("--kubeconfig={}", server.kubeconfig().display());
        let start = |program: &str, name: &str, flags: &[&str]| {
            let mut command = Command::new(theirs(program)?);
            if program != name {
                command.arg(name);
            }
            command.env("RDS_KUBE_END_WITH_STDIN", "1").arg(&kubeconfig).args(flags);
            Process::start(&mut command, dir, name)
        };
        let mut controllers = format!("--controllers={CONTROLLERS}");
        if nodes == Nodes::Kubelets {
            controllers += FOR_KUBELETS;
        }
        // Long enough for a machine that is busy or emulated, short enough to wait for.
        let seconds = if nodes == Nodes::Ours { 20 } else { 50 };
        let grace = format!("--node-monitor-grace-period={seconds}s");
        let authority = format!("--root-ca-file={}", server.authority().display());
        let parts = vec![
            start(
                "rds-kube-controllers",
                "kube-controller-manager",
                &[
                    "--secure-port=0",
                    "--leader-elect=false",
                    "--node-monitor-period=2s",
                    &grace,
                    &controllers,
                    &authority,
                ],
            )?,
            start(
                "rds-kube-controllers",
                "kube-scheduler",
                &["--secure-port=0", "--leader-elect=false"],
            )?,
            start("snapshot-controller", "snapshot-controller", &[])?,
        ];
        let alive = Arc::new(Mutex::new(BTreeSet::new()));
        let beat = tokio::spawn(beat(kube.clone(), alive.clone()));
        Ok(Self { kube, alive, beat, controllers: parts, server })
    }

    /// What kubelet and the shim write of a node.
    pub(crate) async fn add_node(&self, name: &str) -> anyhow::Result<()> {
        let size = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name},
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
            "status": {"capacity": size, "allocatable": size,
                "conditions": [ready()]},
        });
        self.kube.apply(&node).await?;
        self.live(|alive| alive.insert(name.to_owned()));
        self.kube.set_status(&node).await?;
        self.kube
            .apply(&json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": name},
                "spec": {"drivers": [{"name": DRIVER, "nodeID": name, "topologyKeys": []}]},
            }))
            .await?;
        let untainted = |node: &Value| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty);
        self.kube.until(NODE, None, name, "without taints", untainted).await.map(drop)
    }

    /// A kubeconfig for the kubelet of a node, in a guest.
    pub(crate) fn kubelet_kubeconfig(&self, node: &str, dir: &Path) -> anyhow::Result<PathBuf> {
        let file = self.server.kubeconfig_of(&format!("system:node:{node}"));
        let mut config: Value = serde_json::from_slice(&std::fs::read(file)?)?;
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["server"] = format!("https://{HOST}:{}", self.server.port()).into();
        cluster["tls-server-name"] = "localhost".into();
        let file = dir.join("kubeconfig");
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// The node is silent from now on.
    pub(crate) fn kill_node(&self, name: &str) {
        self.live(|alive| alive.remove(name));
    }

    fn live(&self, change: impl FnOnce(&mut BTreeSet<String>) -> bool) {
        change(&mut self.alive.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether the parts of Kubernetes still run.
    pub(crate) fn all_run(&mut self) -> anyhow::Result<()> {
        let ended: Vec<_> = self.controllers.iter_mut().filter_map(Process::ended).collect();
        anyhow::ensure!(ended.is_empty(), "ended, see the end of {ended:?}");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.beat.abort();
    }
}

fn ready() -> Value {
    json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "as kubelet says"})
}

async fn beat(kube: Kube, alive: Arc<Mutex<BTreeSet<String>>>) {
    loop {
        let nodes = alive.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for node in nodes {
            let now = k8s_openapi::jiff::Timestamp::now();
            let lease = json!({
                "apiVersion": LEASE.0, "kind": LEASE.1,
                "metadata": {"name": node, "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": node, "leaseDurationSeconds": 40,
                    "renewTime": format!("{now:.6}")},
            });
            // With each report of a node the attach-detach controller notes what it has mounted;
            // without any it waits six minutes before it takes back what was never attached.
            let mut ready = ready();
            ready["lastHeartbeatTime"] = format!("{now:.0}").into();
            let report = json!({
                "apiVersion": NODE.0, "kind": NODE.1, "metadata": {"name": node},
                "status": {"conditions": [ready]},
            });
            if let Err(error) = kube.apply(&lease).await.and(kube.set_status(&report).await) {
                eprintln!("no heartbeat of {node}: {error:#}");
            }
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}
