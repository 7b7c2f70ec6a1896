//! Volumes that are made where their pod goes.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{event, name};
use crate::api::{CLAIM, Kind, POD};
use crate::bench::{Bench, HOME};
use crate::cluster::DRIVER;

const CLASS: Kind = ("storage.k8s.io/v1", "StorageClass");
const CAPACITY: Kind = ("storage.k8s.io/v1", "CSIStorageCapacity");
const DRIVER_OBJECT: Kind = ("storage.k8s.io/v1", "CSIDriver");
const LATE: &str = "rds-late";

/// Of such volumes.
pub(crate) fn late_class() -> Value {
    json!({
        "apiVersion": CLASS.0, "kind": CLASS.1, "metadata": {"name": LATE}, "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// Where no node has a topology no capacity is announced (the provisioner would publish none, and
/// such pods would wait for ever): a pod whose volume fits gets both, one whose volume does not
/// is told why.
pub(super) async fn late_binding(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let driver = bench.kube.get(DRIVER_OBJECT, None, DRIVER).await?.context("no CSIDriver")?;
    ensure!(driver["spec"]["storageCapacity"] == false, "{driver}");
    bench.claim_of(ns, "large", "100Gi", LATE).await?;
    bench.pod(ns, "large", "large", None).await?;
    let failed = event(bench, ns, "ProvisioningFailed").await?;
    let why = failed["message"].as_str().unwrap_or_default();
    ensure!(why.contains("ResourceExhausted"), "{why}");
    bench.claim_of(ns, "small", "64Mi", LATE).await?;
    bench.pod(ns, "small", "small", None).await?;
    let volume = name(&bench.bound(ns, "small").await?)?;
    let placed = |pod: &Value| pod["spec"]["nodeName"].is_string();
    let pod = bench.kube.until(POD, Some(ns), "small", "placed", placed).await?;
    let node = pod["spec"]["nodeName"].as_str().context("no node")?;
    bench.attached(&volume, node).await?;
    let published = bench.kube.list(CAPACITY, Some(HOME)).await?;
    ensure!(published.is_empty(), "{published:?}");
    for pod in ["large", "small"] {
        bench.kube.delete(POD, Some(ns), pod).await?;
    }
    bench.remove(ns, &["large", "small"]).await?;
    bench.kube.until_gone(CLAIM, Some(ns), "large").await?;
    bench.nothing_left().await
}
