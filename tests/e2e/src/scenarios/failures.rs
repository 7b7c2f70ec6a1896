//! Things break in the middle.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{handle, name};
use crate::api::{ATTACHMENT, CLAIM, NAMESPACE, NODE, POD, VOLUME, eventually};
use crate::bench::{Bench, NODES};

/// The leading controller is killed while volumes are being made, one of them half done and its
/// answer lost: the other replica's sidecars take over, and each claim has exactly one volume.
pub(super) async fn leader_killed(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let claims = ["a", "b", "c"];
    bench.appliance.ctl(&["hang", "/disk/add", "--times", "1"])?;
    for claim in claims {
        bench.claim(ns, claim, "64Mi", None).await?;
    }
    // It was carried out, and nobody was told.
    eventually("the appliance has a volume", || async {
        Ok((!bench.appliance.disks()?.is_empty()).then_some(()))
    })
    .await?;
    ensure!(bench.kube.list(VOLUME, None).await?.len() < claims.len(), "nothing was under way");
    let leader = bench.leader().await?;
    let killed = leader.name.clone();
    leader.kill_controller();
    bench.appliance.ctl(&["clear"])?;
    let mut handles = Vec::new();
    for claim in claims {
        handles.push(handle(&bench.bound(ns, claim).await?)?);
    }
    let disks = bench.appliance.disks()?;
    let slots: Vec<_> = disks.iter().filter_map(|d| d["slot"].as_str()).collect();
    ensure!(slots.len() == claims.len(), "{slots:?} for {handles:?}");
    ensure!(handles.iter().all(|h| slots.contains(&h.as_str())), "{slots:?} for {handles:?}");
    ensure!(bench.kube.list(VOLUME, None).await?.len() == claims.len(), "too many PVs");
    let now = &bench.leader().await?.name;
    ensure!(*now != killed, "{killed} still leads: its death was not noticed");
    bench.remove(ns, &claims).await?;
    bench.nothing_left().await
}

/// A namespace with a volume in use is deleted while the appliance is away: it ends when that is
/// back, at the latest, and nothing is left anywhere.
pub(super) async fn namespace_deleted(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = name(&bench.bound(ns, "data").await?)?;
    bench.pod(ns, "user", "data", Some(NODES[0])).await?;
    bench.attached(&volume, NODES[0]).await?;
    bench.appliance.ctl(&["drop-connections", "refuse"])?;
    bench.kube.delete(NAMESPACE, None, ns).await?;
    let ends = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
    bench.kube.until(POD, Some(ns), "user", "told to end", ends).await?;
    // As kubelet does when it has ended.
    bench.kube.delete(POD, Some(ns), "user").await?;
    let waits = |attachment: &Value| attachment["status"]["detachError"]["message"].is_string();
    let attachment = bench.attachment(&volume, NODES[0]).await?.context("no attachment")?;
    let what = "told why it is not detached";
    bench.kube.until(ATTACHMENT, None, &name(&attachment)?, what, waits).await?;
    ensure!(bench.appliance.disks()?.len() == 1, "something was done while it was away");

    bench.appliance.ctl(&["clear"])?;
    bench.detached(&volume, NODES[0]).await?;
    bench.kube.until_gone(NAMESPACE, None, ns).await?;
    bench.kube.until_gone(VOLUME, None, &volume).await?;
    bench.nothing_left().await
}

/// A node dies and is tainted out of service: its pods are removed, its volume is taken from it
/// by the attach-detach controller, without a word from its kubelet, and goes to another node.
pub(super) async fn node_lost(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [other, lost] = NODES;
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = bench.bound(ns, "data").await?;
    let (pv, slot) = (name(&volume)?, handle(&volume)?);
    bench.pod(ns, "user", "data", Some(lost)).await?;
    bench.attached(&pv, lost).await?;
    let host = bench.appliance.disk(&slot)?.context("no disk")?["allow_host_name"].clone();
    // kubelet says what it has mounted, and says nothing more from now on.
    let used = json!([format!("kubernetes.io/csi/{}^{slot}", crate::cluster::DRIVER)]);
    bench
        .kube
        .set_status(&json!({"apiVersion": NODE.0, "kind": NODE.1, "metadata": {"name": lost},
            "status": {"volumesInUse": used}}))
        .await?;
    bench.cluster.kill_node(lost);
    out_of_service(bench, lost, &pv).await?;
    bench.kube.until_gone(POD, Some(ns), "user").await?;
    bench.detached(&pv, lost).await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["exported"] == false, "{lost} may still connect: {disk}");
    bench.pod(ns, "user", "data", Some(other)).await?;
    bench.attached(&pv, other).await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["exported"] == true && disk["allow_host_name"] != host, "{disk}");
    bench.kube.delete(POD, Some(ns), "user").await?;
    bench.remove(ns, &["data"]).await?;
    bench.kube.until_gone(CLAIM, Some(ns), "data").await?;
    bench.nothing_left().await
}

/// Waits until everybody knows that a node is silent, of which nobody knows more; then somebody
/// does, and says so.
pub(super) async fn out_of_service(bench: &Bench, lost: &str, volume: &str) -> anyhow::Result<()> {
    let silent = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
        ready.is_some_and(|c| c["status"] == "Unknown")
    };
    bench.kube.until(NODE, None, lost, "not ready", silent).await?;
    let attachment = bench.attachment(volume, lost).await?;
    ensure!(attachment.is_some(), "detached from a node of which nobody knows whether it is dead");

    let node = bench.kube.get(NODE, None, lost).await?.context("no node")?;
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.push(json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown",
        "effect": "NoExecute"}));
    bench.kube.patch(NODE, None, lost, json!({"spec": {"taints": taints}})).await
}
