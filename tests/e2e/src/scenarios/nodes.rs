//! What only real nodes show: pods that write while things happen.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{event, name};
use super::{failures, snapshots};
use crate::api::{CLAIM, Kind, NAMESPACE, POD, VOLUME, eventually};
use crate::bench::{Bench, CLASS, NODES, SMALL};
use crate::pods::{self, Mode, Writer};

const STORAGE_CLASS: Kind = ("storage.k8s.io/v1", "StorageClass");

/// A volume without a file system, for one node.
async fn block_claim(bench: &Bench, ns: &str, name: &str) -> anyhow::Result<()> {
    let claim = json!({
        "apiVersion": CLAIM.0, "kind": CLAIM.1, "metadata": {"name": name, "namespace": ns},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": SMALL,
            "resources": {"requests": {"storage": "64Mi"}}},
    });
    bench.kube.apply(&claim).await
}

/// The appliance is cut off, its controllers are deleted on the nodes, it reboots: three pods on
/// two nodes go on, and none of them sees an error.
pub(super) async fn outages(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [first, second] = NODES;
    let claims = ["files", "disk", "far"];
    // XFS, if the class is there that has it.
    match bench.kube.get(STORAGE_CLASS, None, CLASS).await? {
        Some(_) => bench.claim_of(ns, "files", "320Mi", CLASS).await?,
        None => bench.claim(ns, "files", "64Mi", None).await?,
    }
    block_claim(bench, ns, "disk").await?;
    bench.claim(ns, "far", "64Mi", None).await?;
    let mut writers = Vec::new();
    for (claim, mode, node) in [
        ("files", Mode::Filesystem, first),
        ("disk", Mode::Block, first),
        ("far", Mode::Filesystem, second),
    ] {
        writers.push(Writer::start(bench, ns, claim, claim, mode, Some(node)).await?);
    }
    for fault in ["packets dropped, 15 s", "controllers deleted", "appliance reboots"] {
        match fault {
            "packets dropped, 15 s" => {
                bench.appliance.ctl(&["drop-packets"])?;
                tokio::time::sleep(Duration::from_secs(15)).await;
                bench.appliance.ctl(&["heal"])?;
            }
            "controllers deleted" => {
                for node in NODES {
                    let delete =
                        "for c in /sys/class/nvme/*/delete_controller; do echo 1 >$c; done";
                    bench.guests()?.shell(node, delete)?;
                }
            }
            _ => {
                let how =
                    "reboot --wait --down 10 --export-delay 4 --stagger 2 --portal-first true";
                bench.appliance.ctl(&how.split(' ').collect::<Vec<_>>())?;
            }
        }
        let mut stalls = Vec::new();
        for writer in &writers {
            writer.flows().await.with_context(|| fault.to_owned())?;
            let longest = writer.undisturbed().await.with_context(|| fault.to_owned())?;
            stalls.push(format!("{} {:.1} s", writer.name, longest.as_secs_f32()));
        }
        println!("   {fault}: no pod noticed; longest write until now: {}", stalls.join(", "));
    }
    for reason in ["SessionLost", "SessionRestored"] {
        event(bench, ns, reason).await?;
    }
    for writer in &writers {
        writer.end().await?;
    }
    pods::check(bench, ns, "far", Mode::Filesystem, Some(first)).await?;
    pods::check(bench, ns, "disk", Mode::Block, Some(second)).await?;
    bench.remove(ns, &claims).await?;
    bench.nothing_left().await
}

/// A claim grows while a pod writes: the pod sees the larger file system, and nothing else.
pub(super) async fn grow(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let writer = Writer::start(bench, ns, "user", "data", Mode::Filesystem, None).await?;
    let size = async || -> anyhow::Result<u64> {
        let uid = writer.object().await?["metadata"]["uid"].as_str().map(str::to_owned);
        let uid = uid.context("no uid")?;
        let script = format!(
            "df --output=size -B1 /var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/*/mount | tail -n 1"
        );
        let answer = bench.guests()?.shell(&writer.node().await?, &script)?;
        answer.trim().parse().with_context(|| format!("what is {answer:?}?"))
    };
    let before = size().await?;
    bench.claim(ns, "data", "128Mi", None).await?;
    let grown = |claim: &Value| claim["status"]["capacity"]["storage"] == "128Mi";
    bench.kube.until(CLAIM, Some(ns), "data", "128Mi for its user", grown).await?;
    let after = size().await?;
    ensure!(after > before + (50 << 20), "the file system had {before} bytes and has {after}");
    writer.flows().await?;
    writer.undisturbed().await?;
    writer.end().await?;
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}

/// A snapshot of a volume that is written to, and a pod that finds in a volume made from it all
/// records that were acknowledged before.
pub(super) async fn snapshot(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let writer = Writer::start(bench, ns, "user", "data", Mode::Filesystem, None).await?;
    let before = writer.newest().await?;
    snapshots::take(bench, ns).await?;
    bench.claim(ns, "restored", "96Mi", Some("before")).await?;
    let found = pods::check(bench, ns, "restored", Mode::Filesystem, None).await?;
    ensure!(found >= before, "{before} was acknowledged before the snapshot, which has {found}");
    writer.flows().await?;
    writer.undisturbed().await?;
    snapshots::delete(bench, ns).await?;
    writer.end().await?;
    bench.remove(ns, &["data", "restored"]).await?;
    bench.nothing_left().await
}

/// A namespace with a pod that writes is deleted while the appliance is away: it ends, at the
/// latest when that is back, and nothing is left on the node, in the cluster, or on the appliance.
pub(super) async fn namespace_deleted(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let writer = Writer::start(bench, ns, "user", "data", Mode::Filesystem, None).await?;
    let (node, volume) = (writer.node().await?, name(&bench.bound(ns, "data").await?)?);
    bench.appliance.ctl(&["reboot", "--down", "40"])?;
    bench.kube.delete(NAMESPACE, None, ns).await?;
    let ends = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
    bench.kube.until(POD, Some(ns), "user", "told to end", ends).await?;
    bench.kube.until_gone(NAMESPACE, None, ns).await?;
    bench.kube.until_gone(VOLUME, None, &volume).await?;
    bench.nothing_left().await?;
    nothing_on(bench, &node).await
}

/// No controller, no device, no mount of ours.
async fn nothing_on(bench: &Bench, node: &str) -> anyhow::Result<()> {
    let script = "ls -A /sys/class/nvme; cat /sys/block/*/dm/name 2>/dev/null; grep ' /var/lib/kubelet.*csi' /proc/mounts; true";
    eventually(&format!("nothing is left on {node}"), || async {
        Ok(bench.guests()?.shell(node, script)?.trim().is_empty().then_some(()))
    })
    .await
}

/// A node loses power under a pod that writes, and is tainted out of service: the pod's successor
/// finds, on the other node, everything that was acknowledged.
pub(super) async fn killed(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [other, lost] = NODES;
    bench.claim(ns, "data", "64Mi", None).await?;
    let writer = Writer::start(bench, ns, "user", "data", Mode::Filesystem, Some(lost)).await?;
    let volume = name(&bench.bound(ns, "data").await?)?;
    let before = writer.newest().await?;
    // Nobody will tell how this ended.
    bench.guests()?.shell(lost, "echo b >/proc/sysrq-trigger").err();
    failures::out_of_service(bench, lost, &volume).await?;
    bench.kube.until_gone(POD, Some(ns), "user").await?;
    bench.detached(&volume, lost).await?;
    let successor = Writer::start(bench, ns, "user", "data", Mode::Filesystem, Some(other)).await?;
    let found = successor.found().await?;
    ensure!(found >= before, "{before} was acknowledged, and {found} was found");
    successor.end().await?;
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}
