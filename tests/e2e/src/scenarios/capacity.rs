//! What the provisioner publishes of the pool, and the scheduler reads before it places a pod.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{bytes, name};
use crate::api::{CLAIM, Kind, POD, eventually};
use crate::bench::{Bench, HOME};
use crate::cluster::DRIVER;

const CLASS: Kind = ("storage.k8s.io/v1", "StorageClass");
const CAPACITY: Kind = ("storage.k8s.io/v1", "CSIStorageCapacity");
const LATE: &str = "rds-late";

/// A class whose volumes are made where their pod goes: its capacity is published, and owned by
/// the Deployment, so that it goes with it; a pod that fits is placed, one that does not is not.
pub(super) async fn late_binding(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let class = json!({
        "apiVersion": CLASS.0, "kind": CLASS.1, "metadata": {"name": LATE}, "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    bench.kube.apply(&class).await?;
    let found = eventually("a CSIStorageCapacity of the class", || async {
        let all = bench.kube.list(CAPACITY, Some(HOME)).await?;
        Ok(all.into_iter().find(|c| c["storageClassName"] == LATE && c["capacity"].is_string()))
    })
    .await?;
    let free = bytes(found["capacity"].as_str().context("no capacity")?)?;
    ensure!(free > 1 << 30 && free <= 64 << 30, "{found}");
    let owner = &found["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "Deployment", "owned by {owner}");

    bench.claim_of(ns, "large", "100Gi", LATE).await?;
    bench.pod(ns, "large", "large", None).await?;
    let refused = |pod: &Value| {
        let conditions = pod["status"]["conditions"].to_string();
        conditions.contains("did not have enough free storage")
    };
    bench.kube.until(POD, Some(ns), "large", "refused for want of storage", refused).await?;
    bench.claim_of(ns, "small", "64Mi", LATE).await?;
    bench.pod(ns, "small", "small", None).await?;
    let volume = name(&bench.bound(ns, "small").await?)?;
    let placed = |pod: &Value| pod["spec"]["nodeName"].is_string();
    let pod = bench.kube.until(POD, Some(ns), "small", "placed", placed).await?;
    let node = pod["spec"]["nodeName"].as_str().context("no node")?;
    bench.attached(&volume, node).await?;
    for pod in ["large", "small"] {
        bench.kube.delete(POD, Some(ns), pod).await?;
    }
    bench.remove(ns, &["large", "small"]).await?;
    bench.kube.until_gone(CLAIM, Some(ns), "large").await?;
    bench.nothing_left().await
}
