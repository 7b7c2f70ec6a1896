//! A volume's life as everybody sees it.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::api::{ATTACHMENT, CLAIM, EVENT, POD, VOLUME, eventually};
use crate::bench::{Bench, NODES};

const MIB: u64 = 1 << 20;

pub(super) fn handle(volume: &Value) -> anyhow::Result<String> {
    let handle = volume["spec"]["csi"]["volumeHandle"].as_str();
    Ok(handle.context("no volumeHandle")?.to_owned())
}

pub(super) fn name(object: &Value) -> anyhow::Result<String> {
    Ok(object["metadata"]["name"].as_str().context("no name")?.to_owned())
}

/// A claim becomes a PersistentVolume and a file of that size, and both go with it.
pub(super) async fn provision(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "300M", None).await?;
    let volume = bench.bound(ns, "data").await?;
    // Decimal millions are rounded up to whole MiB, and that is what the PV says.
    let disk = bench.appliance.disk(&handle(&volume)?)?.context("no such disk")?;
    let size = disk["file_size"].as_u64().context("no size")?;
    ensure!((300_000_000..300_000_000 + MIB).contains(&size), "{size}");
    let capacity = volume["spec"]["capacity"]["storage"].as_str().unwrap_or_default();
    ensure!(bytes(capacity)? == size, "the PV says {capacity}, the appliance {size}");
    ensure!(disk["exported"] == false, "exported before it is attached: {disk}");
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}

/// Of a Kubernetes quantity.
pub(super) fn bytes(quantity: &str) -> anyhow::Result<u64> {
    let digits = quantity.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &quantity[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => MIB,
        "Gi" => 1 << 30,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        other => anyhow::bail!("unit {other} of {quantity}"),
    };
    Ok(digits.parse::<u64>()? * unit)
}

/// The scheduler places a pod, the attach-detach controller asks, the attacher calls; and back.
pub(super) async fn attach(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = bench.bound(ns, "data").await?;
    let (pv, slot) = (name(&volume)?, handle(&volume)?);
    bench.pod(ns, "user", "data", None).await?;
    let placed = |pod: &Value| pod["spec"]["nodeName"].is_string();
    let pod = bench.kube.until(POD, Some(ns), "user", "placed", placed).await?;
    let node = pod["spec"]["nodeName"].as_str().context("no node")?.to_owned();
    let attachment = bench.attached(&pv, &node).await?;
    let context = &attachment["status"]["attachmentMetadata"];
    ensure!(context.as_object().is_some_and(|c| !c.is_empty()), "no publish context: {attachment}");
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["exported"] == true, "attached, and not exported: {disk}");
    let host = disk["allow_host_name"].as_str().unwrap_or_default();
    ensure!(!host.is_empty(), "exported to everybody: {disk}");
    ensure!(context.to_string().contains(host), "{host} is not in {context}");
    let annotation = "rds.csi.srvlab.io/attached-node";
    let told = |volume: &Value| volume["metadata"]["annotations"][annotation] == node.as_str();
    bench.kube.until(VOLUME, None, &pv, "annotated", told).await?;
    event(bench, ns, "VolumeAttached").await?;

    bench.kube.delete(POD, Some(ns), "user").await?;
    bench.detached(&pv, &node).await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["exported"] == false, "detached, and exported: {disk}");
    event(bench, ns, "VolumeDetached").await?;
    let silent = |volume: &Value| volume["metadata"]["annotations"].get(annotation).is_none();
    bench.kube.until(VOLUME, None, &pv, "without annotations", silent).await?;
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}

pub(super) async fn event(bench: &Bench, ns: &str, reason: &str) -> anyhow::Result<Value> {
    eventually(&format!("an Event {reason} in {ns}"), || async {
        let all = bench.kube.list(EVENT, Some(ns)).await?;
        Ok(all.into_iter().find(|event| event["reason"] == reason))
    })
    .await
}

/// Neither the attach-detach controller nor ours lets two nodes have it.
pub(super) async fn second_node(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [first, second] = NODES;
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = bench.bound(ns, "data").await?;
    let (pv, slot) = (name(&volume)?, handle(&volume)?);
    bench.pod(ns, "first", "data", Some(first)).await?;
    bench.attached(&pv, first).await?;
    let host = bench.appliance.disk(&slot)?.context("no disk")?["allow_host_name"].clone();
    bench.pod(ns, "second", "data", Some(second)).await?;
    // Kubernetes' own guard, which rests on what it has in memory.
    event(bench, ns, "FailedAttachVolume").await?;
    // And ours, when somebody asks all the same.
    let forced = json!({
        "apiVersion": ATTACHMENT.0, "kind": ATTACHMENT.1, "metadata": {"name": format!("{ns}-forced")},
        "spec": {"attacher": crate::cluster::DRIVER, "nodeName": second,
            "source": {"persistentVolumeName": pv}},
    });
    bench.kube.apply(&forced).await?;
    let refused = |a: &Value| {
        let message = a["status"]["attachError"]["message"].as_str().unwrap_or_default();
        a["status"]["attached"] != true && message.contains(first)
    };
    let what = "refused with the name of the node that has it";
    bench.kube.until(ATTACHMENT, None, &format!("{ns}-forced"), what, refused).await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["allow_host_name"] == host, "{disk}");

    // The first goes: then the second gets it, without anybody's help.
    bench.kube.delete(ATTACHMENT, None, &format!("{ns}-forced")).await?;
    bench.kube.until_gone(ATTACHMENT, None, &format!("{ns}-forced")).await?;
    bench.kube.delete(POD, Some(ns), "first").await?;
    bench.attached(&pv, second).await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["allow_host_name"] != host, "the first still may: {disk}");
    bench.kube.delete(POD, Some(ns), "second").await?;
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}

/// A claim grows while a pod has it: so does the file; kubelet does the rest.
pub(super) async fn grow(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = bench.bound(ns, "data").await?;
    let (pv, slot) = (name(&volume)?, handle(&volume)?);
    bench.pod(ns, "user", "data", Some(NODES[0])).await?;
    bench.attached(&pv, NODES[0]).await?;
    bench.claim(ns, "data", "128Mi", None).await?;
    let grown = |volume: &Value| volume["spec"]["capacity"]["storage"] == "128Mi";
    bench.kube.until(VOLUME, None, &pv, "128Mi", grown).await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    ensure!(disk["file_size"] == 128 * MIB, "{disk}");
    // The node has to grow the file system before the claim may say so.
    let waits = |claim: &Value| {
        let status = &claim["status"];
        let pending = status["allocatedResourceStatuses"]["storage"] == "NodeResizePending";
        let told = status["conditions"].to_string().contains("FileSystemResizePending");
        (pending || told) && status["capacity"]["storage"] == "64Mi"
    };
    bench.kube.until(CLAIM, Some(ns), "data", "waiting for the node", waits).await?;
    bench.kube.delete(POD, Some(ns), "user").await?;
    bench.detached(&pv, NODES[0]).await?;
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}
