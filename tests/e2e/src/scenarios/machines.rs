//! A KubeVirt machine moves: its launcher pods are ours, everything that attaches is not.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{event, handle, name};
use crate::api::{ATTACHMENT, CLAIM, POD, eventually};
use crate::bench::{Bench, CLASS, NODES};

/// Its launcher of that name, or a pod that merely has the disk.
fn pod(ns: &str, name: &str, node: &str, machine: Option<&str>) -> Value {
    let pod = json!({
        "apiVersion": POD.0, "kind": POD.1, "metadata": {"name": name, "namespace": ns},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "example.org/none",
                "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}]}],
            "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}],
        },
    });
    match machine {
        Some(uid) => launcher(pod, uid),
        None => pod,
    }
}

/// A pod as KubeVirt marks those of a machine.
pub(super) fn launcher(mut pod: Value, machine: &str) -> Value {
    pod["metadata"]["labels"] = json!({"vm.kubevirt.io/name": "db"});
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance", "name": "db", "uid": machine, "controller": true}]);
    pod
}

/// A pod of nobody's is refused beside it; a second launcher of the machine is let in; when the
/// first has gone its node is shut out, and the second one stays.
pub(super) async fn migration(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [source, target] = NODES;
    let claim = json!({
        "apiVersion": CLAIM.0, "kind": CLAIM.1, "metadata": {"name": "disk", "namespace": ns},
        "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": CLASS,
            "resources": {"requests": {"storage": "64Mi"}}},
    });
    bench.kube.apply(&claim).await?;
    let volume = bench.bound(ns, "disk").await?;
    let (pv, slot) = (name(&volume)?, handle(&volume)?);
    bench.kube.apply(&pod(ns, "source", source, Some("1"))).await?;
    bench.attached(&pv, source).await?;

    bench.kube.apply(&pod(ns, "backup", target, None)).await?;
    let attachment = eventually("an attachment for the pod of nobody's", || async {
        bench.attachment(&pv, target).await
    })
    .await?;
    let refused = |a: &Value| {
        let message = a["status"]["attachError"]["message"].as_str().unwrap_or_default();
        message.contains("pod backup belongs to no machine") && a["status"]["attached"] != true
    };
    bench.kube.until(ATTACHMENT, None, &name(&attachment)?, "refused", refused).await?;
    bench.kube.delete(POD, Some(ns), "backup").await?;
    bench.detached(&pv, target).await?;

    bench.kube.apply(&pod(ns, "target", target, Some("1"))).await?;
    bench.attached(&pv, target).await?;
    ensure!(bench.attached(&pv, source).await.is_ok(), "the source lost it");
    event(bench, ns, "MigrationStarted").await?;
    bench.kube.delete(POD, Some(ns), "source").await?;
    bench.detached(&pv, source).await?;
    event(bench, ns, "MigrationCompleted").await?;
    let disk = bench.appliance.disk(&slot)?.context("no disk")?;
    let comment = disk["comment"].as_str().unwrap_or_default();
    ensure!(disk["exported"] == true, "the target lost it: {disk}");
    ensure!(comment.contains(target) && !comment.contains(source), "on record: {comment}");
    bench.kube.delete(POD, Some(ns), "target").await?;
    bench.detached(&pv, target).await?;
    bench.remove(ns, &["disk"]).await?;
    bench.nothing_left().await
}
