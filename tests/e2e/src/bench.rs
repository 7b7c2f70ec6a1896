//! Everything that runs, and what the scenarios do with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};

use crate::api::{ATTACHMENT, CLAIM, Kind, Kube, LEASE, NAMESPACE, NODE, POD, VOLUME, eventually};
use crate::appliance::Appliance;
use crate::cluster::{Cluster, DRIVER, Nodes};
use crate::guests::Guests;
use crate::process::target;
use crate::replica::Replica;
use crate::scenarios::capacity::late_class;

/// The example that has snapshots.
const MANIFESTS: &str = "kubevirt";
/// The one whose agent is a pod.
const AGENT_PODS: &str = "agent-daemonset";
pub(crate) const HOME: &str = "rds-csi";
pub(crate) const CLASS: &str = "rds";
pub(crate) const SMALL: &str = "rds-small";
pub(crate) const POD_IMAGE: &str = "docker.io/rds-e2e/pod:1";
/// The node of the controllers, where there are kubelets on the others.
const CONTROLS: &str = "control-1";
const ACCOUNT: Kind = ("v1", "ServiceAccount");
const CSI_NODE: Kind = ("storage.k8s.io/v1", "CSINode");
pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];

pub(crate) struct Bench {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) appliance: Appliance,
    pub(crate) cluster: Cluster,
    pub(crate) kube: Kube,
    /// Where the nodes are real.
    guests: Option<Arc<Guests>>,
    /// Of the claims.
    class: &'static str,
}

/// Where the agent of a real node is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agent {
    OnHost,
    InPod,
}

/// Says where the pods of an object go, if it makes any: the controllers to a node of their own,
/// all others to nodes with a kubelet, for which it gives the images and our files of them.
fn place(object: &mut Value) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let kind = object["kind"].clone();
    let Some(pod) = object.pointer_mut("/spec/template/spec") else { return Ok(Vec::new()) };
    if kind != "DaemonSet" {
        pod["nodeSelector"] = json!({"kubernetes.io/hostname": CONTROLS});
        pod["tolerations"] = json!([{"operator": "Exists"}]);
        return Ok(Vec::new());
    }
    let others =
        json!({"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [CONTROLS]});
    pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({"nodeSelectorTerms": [{"matchExpressions": [others]}]});
    let mut images = Vec::new();
    for container in pod["containers"].as_array().into_iter().flatten() {
        let file = match container["name"].as_str() {
            Some("shim") => "rds-csi-shim.tar",
            Some("agent") => "rds-node-agent.tar",
            other => anyhow::bail!("what runs in container {other:?}?"),
        };
        let image = container["image"].as_str().context("no image")?.to_owned();
        images.push((image, target().join("images-dev").join(file)));
    }
    Ok(images)
}

/// The chart's class, for volumes that are too small for XFS.
fn small_class() -> anyhow::Result<Value> {
    let classes = rds_kube::manifests::objects(MANIFESTS)?;
    let class =
        classes.into_iter().find(|o| o["kind"] == "StorageClass" && o["metadata"]["name"] == CLASS);
    let mut class = class.with_context(|| format!("no class {CLASS}"))?;
    class["metadata"] = json!({"name": SMALL});
    class["parameters"]["csi.storage.k8s.io/fstype"] = "ext4".into();
    Ok(class)
}

impl Bench {
    pub(crate) async fn start(dir: &Path, pool: &str) -> anyhow::Result<Self> {
        let (appliance, cluster) = Self::begin(dir, pool).await?;
        let kube = cluster.kube.clone();
        let objects = rds_kube::manifests::objects(MANIFESTS)?;
        // A node's own pods are kubelet's to start; the definitions of these kinds are not here.
        let ours = objects.iter().filter(|o| o["kind"] != "DaemonSet");
        for object in ours {
            kube.apply(object).await?;
        }
        kube.apply(&late_class()).await?;
        Self::run_pods(dir, appliance, cluster).await
    }

    /// The same with nodes that are guests: everything that is installed, and on each node what
    /// kubelet makes of it. The Deployment's pods still are ours to run, as those of a third node.
    pub(crate) async fn start_with_kubelets(dir: &Path, agent: Agent) -> anyhow::Result<Self> {
        let cluster = Cluster::start(dir, Nodes::Kubelets).await?;
        let kube = cluster.kube.clone();
        let mut objects = rds_kube::manifests::objects(match agent {
            Agent::OnHost => MANIFESTS,
            Agent::InPod => AGENT_PODS,
        })?;
        let mut images = vec![(POD_IMAGE.to_owned(), target().join("e2e/pod.tar"))];
        for object in &mut objects {
            images.extend(place(object)?);
        }
        let guests = Arc::new(Guests::start(dir, &cluster, &images, agent).await?);
        cluster.add_node(CONTROLS).await?;
        let taint =
            json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
        kube.patch(NODE, None, CONTROLS, json!({"spec": {"taints": taint}})).await?;
        for object in &objects {
            kube.apply(object).await?;
        }
        kube.apply(&small_class()?).await?;
        for node in NODES {
            let registered = |node: &Value| {
                let drivers = node["spec"]["drivers"].as_array();
                drivers.is_some_and(|all| all.iter().any(|d| d["name"] == DRIVER))
            };
            kube.until(CSI_NODE, None, node, "with our driver", registered).await?;
        }
        let appliance = Appliance::in_guest(dir, guests.clone())?;
        let mut bench = Self::run_pods(dir, appliance, cluster).await?;
        (bench.guests, bench.class) = (Some(guests), SMALL);
        Ok(bench)
    }

    /// Where pods really run.
    pub(crate) fn guests(&self) -> anyhow::Result<&Guests> {
        self.guests.as_deref().context("no guests")
    }

    /// Whether what is installed makes snapshots.
    pub(crate) async fn has_snapshots(&self) -> anyhow::Result<bool> {
        let pods = self.controller_pods().await?;
        let mut containers = pods.iter().flat_map(|pod| pod["spec"]["containers"].as_array());
        Ok(containers.any(|all| all.iter().any(|c| c["name"] == "snapshotter")))
    }

    /// Everything but what is installed.
    pub(crate) async fn begin(dir: &Path, pool: &str) -> anyhow::Result<(Appliance, Cluster)> {
        let appliance = Appliance::start(dir, pool).await?;
        let cluster = Cluster::start(dir, Nodes::Ours).await?;
        for node in NODES {
            cluster.add_node(node).await?;
        }
        Ok((appliance, cluster))
    }

    /// Runs the pods of the Deployment that is installed.
    pub(crate) async fn run_pods(
        dir: &Path,
        appliance: Appliance,
        cluster: Cluster,
    ) -> anyhow::Result<Self> {
        let kube = cluster.kube.clone();
        let mut bench =
            Self { replicas: Vec::new(), appliance, cluster, kube, guests: None, class: CLASS };
        for pod in bench.controller_pods().await? {
            let replica = Replica::start(&pod, &bench.cluster, &bench.appliance, dir).await?;
            bench.replicas.push(replica);
        }
        bench.leader().await?;
        Ok(bench)
    }

    /// The Deployment's pods, once each has a node.
    async fn controller_pods(&self) -> anyhow::Result<Vec<Value>> {
        eventually("two pods of the Deployment have a node", || async {
            let mut pods = self.kube.list(POD, Some(HOME)).await?;
            pods.retain(|pod| {
                pod["metadata"]["labels"]["app.kubernetes.io/component"] == "controller"
            });
            let placed = pods.iter().all(|pod| pod["spec"]["nodeName"].is_string());
            Ok((pods.len() == 2 && placed).then_some(pods))
        })
        .await
    }

    /// The replica that holds the Lease.
    pub(crate) async fn leader(&self) -> anyhow::Result<&Replica> {
        let name = eventually("a controller leads", || async {
            let lease = self.kube.get(LEASE, Some(HOME), DRIVER).await?.unwrap_or_default();
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            let found = self.replicas.iter().find(|r| holder.starts_with(&r.name));
            Ok(found.map(|r| r.name.clone()))
        })
        .await?;
        self.replicas.iter().find(|r| r.name == name).context("no such replica")
    }

    pub(crate) async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "v1", "kind": NAMESPACE.1, "metadata": {"name": name}});
        self.kube.apply(&object).await?;
        if self.guests.is_some() {
            // Pods are refused before it is there.
            self.kube.until(ACCOUNT, Some(name), "default", "there", |_| true).await?;
        }
        Ok(())
    }

    /// A claim of some class.
    pub(crate) async fn claim_of(
        &self,
        namespace: &str,
        name: &str,
        size: &str,
        class: &str,
    ) -> anyhow::Result<()> {
        let claim = json!({
            "apiVersion": "v1", "kind": CLAIM.1, "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": size}}},
        });
        self.kube.apply(&claim).await
    }

    /// A claim of the usual class, of a snapshot if there is one.
    pub(crate) async fn claim(
        &self,
        namespace: &str,
        name: &str,
        size: &str,
        snapshot: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut claim = json!({
            "apiVersion": "v1", "kind": CLAIM.1, "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": self.class,
                "resources": {"requests": {"storage": size}}},
        });
        if let Some(snapshot) = snapshot {
            claim["spec"]["dataSource"] = json!({"apiGroup": "snapshot.storage.k8s.io",
                "kind": "VolumeSnapshot", "name": snapshot});
        }
        self.kube.apply(&claim).await
    }

    /// The PersistentVolume that a claim was bound to.
    pub(crate) async fn bound(&self, namespace: &str, claim: &str) -> anyhow::Result<Value> {
        let bound = |claim: &Value| claim["status"]["phase"] == "Bound";
        let claim = self.kube.until(CLAIM, Some(namespace), claim, "bound", bound).await?;
        let name = claim["spec"]["volumeName"].as_str().context("no volumeName")?;
        self.kube.get(VOLUME, None, name).await?.context("no PersistentVolume")
    }

    /// A pod with the claim: on this node, or where the scheduler wants it.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        name: &str,
        claim: &str,
        node: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "example.org/none",
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
            },
        });
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        self.kube.apply(&pod).await
    }

    /// The VolumeAttachment of a volume to a node.
    pub(crate) async fn attachment(
        &self,
        volume: &str,
        node: &str,
    ) -> anyhow::Result<Option<Value>> {
        let all = self.kube.list(ATTACHMENT, None).await?;
        Ok(all.into_iter().find(|a| {
            a["spec"]["nodeName"] == node && a["spec"]["source"]["persistentVolumeName"] == volume
        }))
    }

    pub(crate) async fn attached(&self, volume: &str, node: &str) -> anyhow::Result<Value> {
        eventually(&format!("{volume} is attached to {node}"), || async {
            let found = self.attachment(volume, node).await?;
            Ok(found.filter(|a| a["status"]["attached"] == true))
        })
        .await
    }

    pub(crate) async fn detached(&self, volume: &str, node: &str) -> anyhow::Result<()> {
        eventually(&format!("{volume} is detached from {node}"), || async {
            Ok(self.attachment(volume, node).await?.is_none().then_some(()))
        })
        .await
    }

    /// Nothing of a volume, nor any file, is on the appliance any more.
    pub(crate) async fn nothing_left(&self) -> anyhow::Result<()> {
        let empty = eventually("the appliance is empty", || async {
            Ok(self.left()?.is_empty().then_some(()))
        })
        .await;
        match empty {
            Ok(()) => Ok(()),
            Err(error) => Err(error).context(format!("left: {:?}", self.left()?)),
        }
    }

    fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left: Vec<String> =
            self.appliance.disks()?.iter().map(|disk| disk["slot"].to_string()).collect();
        left.extend(self.appliance.files()?.iter().map(|f| f.display().to_string()));
        Ok(left)
    }

    /// Removes a claim, and waits until its volume is gone from cluster and appliance.
    pub(crate) async fn remove(&self, namespace: &str, claims: &[&str]) -> anyhow::Result<()> {
        let mut volumes = Vec::new();
        for claim in claims {
            let found = self.kube.get(CLAIM, Some(namespace), claim).await?.unwrap_or_default();
            volumes.extend(found["spec"]["volumeName"].as_str().map(str::to_owned));
            self.kube.delete(CLAIM, Some(namespace), claim).await?;
        }
        for claim in claims {
            self.kube.until_gone(CLAIM, Some(namespace), claim).await?;
        }
        for volume in volumes {
            self.kube.until_gone(VOLUME, None, &volume).await?;
        }
        Ok(())
    }
}
