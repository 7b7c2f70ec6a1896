//! The driver's own parts end, come again and are replaced under pods that write.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::api::{POD, eventually};
use crate::bench::{Bench, HOME, NODES};
use crate::pods::{Mode, Writer};

const DAEMON_SET: (&str, &str) = ("apps/v1", "DaemonSet");
const SHIM: &str = "rds-csi-shim";

/// The shim's pod on a node, if it is there and serves.
async fn shim(bench: &Bench, node: &str) -> anyhow::Result<Option<Value>> {
    let pods = bench.kube.list(POD, Some(HOME)).await?;
    Ok(pods.into_iter().find(|pod| {
        pod["metadata"]["labels"]["app.kubernetes.io/component"] == "shim"
            && pod["spec"]["nodeName"] == node
            && pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["containerStatuses"][0]["ready"] == true
    }))
}

/// Until a node has another shim than this one.
async fn another_shim(bench: &Bench, node: &str, before: &Value) -> anyhow::Result<()> {
    let uid = &before["metadata"]["uid"];
    eventually(&format!("another shim on {node}"), || async {
        Ok(shim(bench, node).await?.filter(|pod| pod["metadata"]["uid"] != *uid).map(drop))
    })
    .await
}

/// The shim's pod is deleted, the agent is killed during an outage, it is stopped as at an upgrade,
/// the DaemonSet is changed: nobody's I/O notices, and afterwards a new pod gets its volume.
pub(super) async fn restarted(bench: &Bench, ns: &str) -> anyhow::Result<()> {
    let [node, _] = NODES;
    bench.claim(ns, "data", "64Mi", None).await?;
    let writer = Writer::start(bench, ns, "user", "data", Mode::Filesystem, Some(node)).await?;
    let before = shim(bench, node).await?.context("no shim")?;
    let shims_name = before["metadata"]["name"].as_str().context("no name")?;
    bench.kube.delete_softly(POD, HOME, shims_name).await?;
    another_shim(bench, node, &before).await?;
    writer.flows().await.context("the shim's pod deleted")?;

    bench.appliance.ctl(&["drop-packets"])?;
    tokio::time::sleep(Duration::from_secs(9)).await;
    bench.guests()?.run(node, &["pkill", "-KILL", "-x", "rds-node-agent"])?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.appliance.ctl(&["heal"])?;
    writer.flows().await.context("the agent killed during an outage")?;

    bench.guests()?.run(node, &["pkill", "-TERM", "-x", "rds-node-agent"])?;
    writer.flows().await.context("the agent stopped and started")?;

    let before = shim(bench, node).await?.context("no shim")?;
    let newer = json!({"spec": {"template": {"metadata": {"annotations": {"e2e": "newer"}}}}});
    bench.kube.patch(DAEMON_SET, Some(HOME), SHIM, newer).await?;
    another_shim(bench, node, &before).await?;
    let done = |set: &Value| {
        let status = &set["status"];
        status["updatedNumberScheduled"] == 2 && status["numberAvailable"] == 2
    };
    bench.kube.until(DAEMON_SET, Some(HOME), SHIM, "rolled out", done).await?;
    writer.flows().await.context("the DaemonSet rolled out")?;

    bench.claim(ns, "late", "64Mi", None).await?;
    let late = Writer::start(bench, ns, "late", "late", Mode::Filesystem, Some(node)).await?;
    let longest = writer.undisturbed().await?;
    println!("   longest write: {:.1} s", longest.as_secs_f32());
    late.end().await?;
    writer.end().await?;
    bench.remove(ns, &["data", "late"]).await?;
    bench.nothing_left().await
}
