//! The agent's question after an attachment, all the way: the agent's own service, a shim, and a
//! real API server in which each state that a VolumeAttachment can be in is made by hand.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rds_csi_proto::ids::{HostNqn, Portal};
use rds_csi_shim::verdict::Who;
use rds_node_agent::session::SessionSpec;
use rds_node_agent::session::machine::Attachment;
use serde_json::json;
use tonic::codegen::http::Method;

use crate::bench::*;
use crate::rights;

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e21";

fn spec(volume: &str) -> SessionSpec {
    SessionSpec {
        volume: volume.parse().unwrap(),
        nqn: "nqn.2000-02.com.mikrotik:x".parse().unwrap(),
        host_nqn: HostNqn::random(),
        portal: Portal::parse("10.0.0.2", "4420").unwrap(),
        ctrl_loss_tmo: -1,
        reconnect_delay: 1,
        keep_alive_tmo: 5,
        nr_io_queues: 1,
        shield: true,
        io_timeout_secs: 0,
        reattach_check_secs: 60,
        arrival: Some("first".parse().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_an_attachment_is_told_as_what_it_is() {
    let Some(cluster) = rds_kube::Cluster::start().unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let admin = Admin::new(cluster.kubeconfig()).await;
    // A copy, since the cluster takes its own with it.
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::copy(cluster.kubeconfig_of("shim"), &kubeconfig).unwrap();
    let stop = start_shim(dir.path(), &kubeconfig);
    let agent = Agent::start(&socket);
    agent.has_a_shim().await;
    let spec = spec(VOLUME);

    agent.hears(&spec, "unknown", "403 Forbidden").await;
    admin.lets_the_shim_do_what_it_needs().await;
    // No object of that name, but is that the right name?
    agent.hears(&spec, "unknown", "--node-name").await;
    let driver = json!({"name": "rds.csi.srvlab.io", "nodeID": "node-1", "topologyKeys": null});
    let node = json!({"metadata": {"name": "node-1"}, "spec": {"drivers": [driver]}});
    admin.does(Method::POST, &format!("{STORAGE}/csinodes"), node).await;
    agent.hears(&spec, "gone", "no VolumeAttachment").await;

    let who = Who { driver: "rds.csi.srvlab.io".into(), node: "node-1".parse().unwrap() };
    let name = who.attachment_name(VOLUME);
    let wish = json!({
        "metadata": {"name": name, "finalizers": ["external-attacher/rds-csi-srvlab-io"]},
        "spec": {"attacher": who.driver, "nodeName": "node-1",
                 "source": {"persistentVolumeName": "pv-1"}},
    });
    admin.does(Method::POST, &format!("{STORAGE}/volumeattachments"), wish).await;
    agent.hears(&spec, "unknown", "not attached yet").await;

    let object = format!("{STORAGE}/volumeattachments/{name}");
    let status = format!("{object}/status");
    let given = |arrival: &str| {
        json!({"status": {"attached": true, "attachmentMetadata": {
            "nqn": spec.nqn.as_str(), "hostNqn": spec.host_nqn.as_str(),
            "nvmeAddress": "10.0.0.2", "nvmePort": "4420", "arrival": arrival}}})
    };
    admin.does(Method::PATCH, &status, given("first")).await;
    agent.hears(&spec, "exists", "").await;
    // An appliance's outage ends for all volumes at once.
    let all = (0..32).map(|_| {
        let (answerers, spec) = (agent.answerers.clone(), spec.clone());
        tokio::spawn(async move { answerers.ask(&spec).await })
    });
    for asked in all.collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap(), Attachment::Exists);
    }
    admin.does(Method::PATCH, &status, given("second")).await;
    agent.hears(&spec, "gone", "anew").await;
    admin.does(Method::PATCH, &status, given("first")).await;
    agent.hears(&spec, "exists", "").await;

    // An API server that hangs is not one that says no, and costs a deadline.
    let server = Pid::from_raw(cluster.server_pid().try_into().unwrap());
    kill(server, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    agent.hears(&spec, "unknown", "Kubernetes API has not answered").await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    kill(server, Signal::SIGCONT).unwrap();
    agent.hears(&spec, "exists", "").await;

    // The agent is restarted.
    agent.answerers.close();
    agent.server.abort();
    let agent = Agent::start(&socket);
    agent.has_a_shim().await;
    agent.hears(&spec, "exists", "").await;

    // Deleted, and kept by its finalizer until the volume is detached; then no more.
    admin.does(Method::DELETE, &object, json!({})).await;
    agent.hears(&spec, "gone", "being deleted").await;
    admin.does(Method::PATCH, &object, json!({"metadata": {"finalizers": null}})).await;
    agent.hears(&spec, "gone", "no VolumeAttachment").await;

    rights::used(&cluster, rights::ANSWERS);

    // Nobody is there at all.
    drop(cluster);
    agent.hears(&spec, "unknown", "Kubernetes API").await;
    stop.cancel();
}

/// It serves kubelet all the same.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_the_shim_runs_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(&dir.path().join("agent.sock"));
    let stop = start_shim(dir.path(), &dir.path().join("there-is-no-such-kubeconfig"));
    agent.has_a_shim().await;
    agent.hears(&spec(VOLUME), "unknown", "there-is-no-such-kubeconfig").await;
    assert!(dir.path().join("csi.sock").exists());
    stop.cancel();
}
