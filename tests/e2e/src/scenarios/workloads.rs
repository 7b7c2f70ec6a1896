//! Pods that others make, and what happens when they move.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::life::{event, name};
use super::machines;
use crate::api::{CLAIM, Kind, NODE, POD, eventually};
use crate::bench::{Bench, NODES, SMALL};
use crate::pods::{self, Mode, Writer};

const STATEFUL_SET: Kind = ("apps/v1", "StatefulSet");
const DEPLOYMENT: Kind = ("apps/v1", "Deployment");
/// Where a test tells a pod something, on the node.
const GATE: &str = "/run/rds-e2e/gate";

fn template(claim: &str) -> Value {
    json!({"metadata": {"labels": {"app": "writer"}},
        "spec": pods::spec(claim, Mode::Filesystem, &["write"])})
}

/// Three pods with a volume each; one that is deleted comes again and finds what it had.
pub(super) async fn stateful_set(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let mut template = template("unused");
    template["spec"]["volumes"] = Value::Null;
    let set = json!({
        "apiVersion": STATEFUL_SET.0, "kind": STATEFUL_SET.1,
        "metadata": {"name": "set", "namespace": ns},
        "spec": {
            "replicas": 3, "serviceName": "set", "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "writer"}},
            "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": SMALL,
                    "resources": {"requests": {"storage": "64Mi"}}}}],
        },
    });
    bench.kube.apply(&set).await?;
    let writers = ["set-0", "set-1", "set-2"].map(|name| Writer::of(bench, ns, name));
    for writer in &writers {
        eventually(&format!("pod {}", writer.name), || async {
            Ok(bench.kube.get(POD, Some(ns), &writer.name).await?.map(drop))
        })
        .await?;
        writer.flows().await?;
    }
    let one = &writers[1];
    let (uid, before) = (one.object().await?["metadata"]["uid"].clone(), one.newest().await?);
    bench.kube.delete_softly(POD, ns, &one.name).await?;
    eventually("another pod of that name", || async {
        let pod = bench.kube.get(POD, Some(ns), &one.name).await?;
        Ok(pod.filter(|pod| pod["metadata"]["uid"] != uid).map(drop))
    })
    .await?;
    one.flows().await?;
    let found = one.found().await?;
    ensure!(found >= before, "{before} was acknowledged, and {found} was found");
    for writer in &writers {
        writer.undisturbed().await?;
    }
    bench.kube.patch(STATEFUL_SET, Some(ns), "set", json!({"spec": {"replicas": 0}})).await?;
    for writer in &writers {
        bench.kube.until_gone(POD, Some(ns), &writer.name).await?;
    }
    bench.kube.delete(STATEFUL_SET, Some(ns), "set").await?;
    bench.remove(ns, &["data-set-0", "data-set-1", "data-set-2"]).await?;
    bench.nothing_left().await
}

/// A Deployment's pod is evicted from its node: the next one, on the other node, finds everything.
pub(super) async fn rescheduled(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    bench.claim(ns, "data", "64Mi", None).await?;
    let deployment = json!({
        "apiVersion": DEPLOYMENT.0, "kind": DEPLOYMENT.1,
        "metadata": {"name": "one", "namespace": ns},
        "spec": {"replicas": 1, "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": "writer"}}, "template": template("data")},
    });
    bench.kube.apply(&deployment).await?;
    let writer = the_one(bench, ns, None).await?;
    writer.flows().await?;
    let (node, before) = (writer.node().await?, writer.newest().await?);
    bench.kube.patch(NODE, None, &node, json!({"spec": {"unschedulable": true}})).await?;
    bench.kube.delete_softly(POD, ns, &writer.name).await?;
    let moved = the_one(bench, ns, Some(&writer.name)).await?;
    moved.flows().await?;
    ensure!(moved.node().await? != node, "it is on {node} again, which is cordoned");
    let found = moved.found().await?;
    ensure!(found >= before, "{before} was acknowledged, and {found} was found");
    bench.kube.patch(NODE, None, &node, json!({"spec": {"unschedulable": false}})).await?;
    bench.kube.patch(DEPLOYMENT, Some(ns), "one", json!({"spec": {"replicas": 0}})).await?;
    bench.kube.until_gone(POD, Some(ns), &moved.name).await?;
    bench.kube.delete(DEPLOYMENT, Some(ns), "one").await?;
    bench.remove(ns, &["data"]).await?;
    bench.nothing_left().await
}

/// The pod of the Deployment that is not this one.
async fn the_one<'a>(bench: &'a Bench, ns: &str, not: Option<&str>) -> anyhow::Result<Writer<'a>> {
    let name = eventually("a pod of the Deployment", || async {
        let pods = bench.kube.list(POD, Some(ns)).await?;
        let names = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
        Ok(names.map(str::to_owned).find(|name| not != Some(name)))
    })
    .await?;
    Ok(Writer::of(bench, ns, &name))
}

/// A machine's launcher with its disk, as KubeVirt makes them, that acts when a file is there.
fn launcher(ns: &str, name: &str, node: &str, when: &str) -> Value {
    let mut spec = pods::spec("disk", Mode::Block, &["write", when, "/gate/go"]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "gate", "mountPath": "/gate"}]);
    let gate = json!({"name": "gate", "hostPath": {"path": GATE, "type": "DirectoryOrCreate"}});
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(gate);
    }
    machines::launcher(pods::pod(ns, name, &spec, Some(node)), "1")
}

/// A KubeVirt machine moves: the launcher on the target has the disk open while the source still
/// writes, goes on where that one stopped, and stays when that one has gone and sessions are lost.
pub(super) async fn machine_moves(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [source, target] = NODES;
    let claim = json!({
        "apiVersion": CLAIM.0, "kind": CLAIM.1, "metadata": {"name": "disk", "namespace": ns},
        "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": SMALL,
            "resources": {"requests": {"storage": "64Mi"}}},
    });
    bench.kube.apply(&claim).await?;
    let volume = name(&bench.bound(ns, "disk").await?)?;
    bench.kube.apply(&launcher(ns, "source", source, "until")).await?;
    let old = Writer::of(bench, ns, "source");
    old.flows().await?;
    bench.kube.apply(&launcher(ns, "target", target, "after")).await?;
    let new = Writer::of(bench, ns, "target");
    new.says("waits").await?;
    event(bench, ns, "MigrationStarted").await?;
    old.flows().await.context("the source, beside the target")?;

    bench.guests()?.run(source, &["touch", &format!("{GATE}/go")])?;
    let stopped = old.says("stopped ").await?;
    bench.guests()?.run(target, &["touch", &format!("{GATE}/go")])?;
    let found = new.found().await?;
    ensure!(
        found.to_string() == stopped,
        "the source stopped at {stopped}, the target found {found}"
    );
    new.flows().await?;
    old.end().await?;
    bench.detached(&volume, source).await?;
    event(bench, ns, "MigrationCompleted").await?;
    bench.appliance.ctl(&["drop-packets"])?;
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    bench.appliance.ctl(&["heal"])?;
    new.flows().await.context("after packets were dropped")?;
    new.undisturbed().await?;
    new.end().await?;
    pods::check(bench, ns, "disk", Mode::Block, Some(source)).await?;
    bench.remove(ns, &["disk"]).await?;
    bench.nothing_left().await
}
