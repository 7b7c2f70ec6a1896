//! Snapshots by the real snapshot controller and its sidecar.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{handle, name};
use crate::api::{Kind, POD, eventually};
use crate::bench::{Bench, NODES};

const SNAPSHOT: Kind = ("snapshot.storage.k8s.io/v1", "VolumeSnapshot");
const CONTENT: Kind = ("snapshot.storage.k8s.io/v1", "VolumeSnapshotContent");

fn snapshot(ns: &str) -> Value {
    json!({
        "apiVersion": SNAPSHOT.0, "kind": SNAPSHOT.1, "metadata": {"name": "before", "namespace": ns},
        "spec": {"source": {"persistentVolumeClaimName": "data"}},
    })
}

/// Takes one of the claim `data`, and waits until it can be used.
pub(super) async fn take(bench: &Bench, ns: &str) -> anyhow::Result<Value> {
    bench.kube.apply(&snapshot(ns)).await?;
    let ready = |s: &Value| s["status"]["readyToUse"] == true;
    bench.kube.until(SNAPSHOT, Some(ns), "before", "ready", ready).await
}

/// Of a volume that is attached; a larger claim is made from it; then all of it goes.
pub(super) async fn restore(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = name(&bench.bound(ns, "data").await?)?;
    bench.pod(ns, "user", "data", Some(NODES[0])).await?;
    bench.attached(&volume, NODES[0]).await?;
    let made = take(bench, ns).await?;
    let size = &made["status"]["restoreSize"];
    ensure!(size == "64Mi", "restoreSize {size}");

    bench.claim(ns, "restored", "96Mi", Some("before")).await?;
    let restored = bench.bound(ns, "restored").await?;
    let disk = bench.appliance.disk(&handle(&restored)?)?.context("no disk")?;
    ensure!(disk["file_size"] == 96 << 20, "{disk}");
    delete(bench, ns).await?;
    bench.kube.delete(POD, Some(ns), "user").await?;
    bench.remove(ns, &["data", "restored"]).await?;
    bench.nothing_left().await
}

/// On a pool that can only copy: refused, and said so, while the volume is attached; made as soon
/// as it is not, without anybody's help.
pub(super) async fn full_copy(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = name(&bench.bound(ns, "data").await?)?;
    bench.pod(ns, "user", "data", Some(NODES[0])).await?;
    bench.attached(&volume, NODES[0]).await?;
    bench.kube.apply(&snapshot(ns)).await?;
    let refused = |s: &Value| {
        let message = s["status"]["error"]["message"].as_str().unwrap_or_default();
        message.contains("is attached")
            && message.contains("detach it first")
            && s["status"]["readyToUse"] != true
    };
    bench.kube.until(SNAPSHOT, Some(ns), "before", "refused", refused).await?;
    bench.kube.delete(POD, Some(ns), "user").await?;
    bench.detached(&volume, NODES[0]).await?;
    let ready = |s: &Value| s["status"]["readyToUse"] == true;
    bench.kube.until(SNAPSHOT, Some(ns), "before", "ready", ready).await?;
    bench.claim(ns, "restored", "64Mi", Some("before")).await?;
    bench.bound(ns, "restored").await?;
    delete(bench, ns).await?;
    bench.remove(ns, &["data", "restored"]).await?;
    bench.nothing_left().await
}

/// A snapshot goes, while what was made from it stays.
pub(super) async fn delete(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.kube.delete(SNAPSHOT, Some(ns), "before").await?;
    bench.kube.until_gone(SNAPSHOT, Some(ns), "before").await?;
    eventually("no VolumeSnapshotContent", || async {
        Ok(bench.kube.list(CONTENT, None).await?.is_empty().then_some(()))
    })
    .await
}
