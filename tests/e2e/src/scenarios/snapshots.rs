//! Snapshots by the real snapshot controller and its sidecar.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{handle, name};
use crate::api::{Kind, POD, eventually};
use crate::bench::{Bench, NODES};

const SNAPSHOT: Kind = ("snapshot.storage.k8s.io/v1", "VolumeSnapshot");
const CONTENT: Kind = ("snapshot.storage.k8s.io/v1", "VolumeSnapshotContent");

/// Of a volume that is attached; a larger claim is made from it; then all of it goes.
pub(super) async fn restore(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let volume = name(&bench.bound(ns, "data").await?)?;
    bench.pod(ns, "user", "data", Some(NODES[0])).await?;
    bench.attached(&volume, NODES[0]).await?;
    let snapshot = json!({
        "apiVersion": SNAPSHOT.0, "kind": SNAPSHOT.1, "metadata": {"name": "before", "namespace": ns},
        "spec": {"source": {"persistentVolumeClaimName": "data"}},
    });
    bench.kube.apply(&snapshot).await?;
    let ready = |s: &Value| s["status"]["readyToUse"] == true;
    let snapshot = bench.kube.until(SNAPSHOT, Some(ns), "before", "ready", ready).await?;
    let size = &snapshot["status"]["restoreSize"];
    ensure!(size == "64Mi", "restoreSize {size}");

    bench.claim(ns, "restored", "96Mi", Some("before")).await?;
    let restored = bench.bound(ns, "restored").await?;
    let disk = bench.appliance.disk(&handle(&restored)?)?.context("no disk")?;
    ensure!(disk["file_size"] == 96 << 20, "{disk}");
    // The sidecar lets nobody delete what is made from a snapshot, and the other way round.
    bench.kube.delete(SNAPSHOT, Some(ns), "before").await?;
    bench.kube.until_gone(SNAPSHOT, Some(ns), "before").await?;
    eventually("no VolumeSnapshotContent", || async {
        Ok(bench.kube.list(CONTENT, None).await?.is_empty().then_some(()))
    })
    .await?;
    bench.kube.delete(POD, Some(ns), "user").await?;
    bench.remove(ns, &["data", "restored"]).await?;
    bench.nothing_left().await
}
