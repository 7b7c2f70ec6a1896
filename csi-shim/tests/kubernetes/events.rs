//! What happens to volumes, from the agent's own notices to Events of a real API server.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rds_csi_proto::agent::NoticeKind;
use rds_csi_proto::ids::VolumeId;
use rds_csi_shim::verdict::Who;
use serde_json::{Value, json};
use tonic::codegen::http::Method;

use crate::bench::*;
use crate::rights;

/// Events of a namespace, oldest first: reason, note, how often, about what.
async fn events(admin: &Admin, namespace: &str) -> Vec<(String, String, u64, String)> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let mut all = admin.does(Method::GET, &path, json!({})).await["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["reportingController"] == "rds.csi.srvlab.io")
        .cloned()
        .collect::<Vec<Value>>();
    all.sort_by_key(|e| e["eventTime"].as_str().unwrap().to_owned());
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let about =
        |e: &Value| format!("{} {}", text(&e["regarding"]["kind"]), text(&e["regarding"]["name"]));
    let times = |e: &Value| e["series"]["count"].as_u64().unwrap_or(1);
    all.iter().map(|e| (text(&e["reason"]), text(&e["note"]), times(e), about(e))).collect()
}

/// Waits until there are so many.
async fn come(admin: &Admin, namespace: &str, count: usize) -> Vec<(String, String, u64, String)> {
    let begun = Instant::now();
    loop {
        let all = events(admin, namespace).await;
        if all.len() >= count {
            return all;
        }
        assert!(begun.elapsed() < LIMIT, "{count} Events were wanted, not {all:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_volume_is_told_on_its_claim_once() {
    let Some(cluster) = rds_kube::Cluster::start().unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::new(cluster.kubeconfig()).await;
    let volume = VolumeId::from_request_name("data");
    let who = Who { driver: "rds.csi.srvlab.io".into(), node: "node-1".parse().unwrap() };
    admin.does(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "shop"}})).await;
    let pv = json!({
        "metadata": {"name": "pv-1"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": who.driver, "volumeHandle": volume.as_str()},
            "claimRef": {"namespace": "shop", "name": "data", "uid": "some-uid"},
        },
    });
    admin.does(Method::POST, "/api/v1/persistentvolumes", pv).await;
    let attachment = who.attachment_name(volume.as_str());
    let wish = json!({
        "metadata": {"name": attachment},
        "spec": {"attacher": who.driver, "nodeName": "node-1",
                 "source": {"persistentVolumeName": "pv-1"}},
    });
    admin.does(Method::POST, &format!("{STORAGE}/volumeattachments"), wish).await;

    // Before there is a shim, and before it may do anything.
    let agent = Agent::start(&dir.path().join("agent.sock"));
    let happens = |kind, text: &str| agent.notices.happened(&volume, kind, text.to_owned());
    happens(NoticeKind::SessionLost, "the cable is out");
    let stop = start_shim(dir.path(), &cluster.kubeconfig_of("shim"));
    agent.has_a_shim().await;
    admin.lets_the_shim_do_what_it_needs().await;
    let told = come(&admin, "shop", 1).await;
    let is = |reason: &str, note: &str, times: u64| {
        (
            reason.to_owned(),
            format!("node node-1: {note}"),
            times,
            "PersistentVolumeClaim data".to_owned(),
        )
    };
    assert_eq!(told, [is("SessionLost", "the cable is out", 1)]);
    happens(NoticeKind::SessionRestored, "back after 3.1 s");
    // Times are in milliseconds, and the order is looked at.
    let later = || tokio::time::sleep(std::time::Duration::from_millis(2));
    later().await;
    happens(NoticeKind::UnstageBusy, "pid 1");
    happens(NoticeKind::UnstageBusy, "pid 1");
    happens(NoticeKind::UnstageBusy, "pid 1");
    later().await;
    happens(NoticeKind::UnstageBusy, "pid 2");
    let told = come(&admin, "shop", 4).await;
    let wanted = [
        is("SessionRestored", "back after 3.1 s", 1),
        is("UnstageBusy", "pid 1", 3),
        is("UnstageBusy", "pid 2", 1),
    ];
    assert_eq!(told[1..], wanted);

    // The API server hangs for longer than an attempt: nothing is lost, nothing told twice.
    let server = Pid::from_raw(cluster.server_pid().try_into().unwrap());
    kill(server, Signal::SIGSTOP).unwrap();
    for n in 0..20 {
        happens(NoticeKind::VolumeBlocked, &format!("reason {n}"));
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    kill(server, Signal::SIGCONT).unwrap();
    let told = come(&admin, "shop", 24).await;
    let notes: Vec<_> = told[4..].iter().map(|e| e.1.clone()).collect();
    let wanted: Vec<_> = (0..20).map(|n| format!("node node-1: reason {n}")).collect();
    assert_eq!(notes, wanted);

    // Detached in Kubernetes, and still in use here.
    let object = format!("{STORAGE}/volumeattachments/{attachment}");
    admin.does(Method::DELETE, &object, json!({})).await;
    happens(NoticeKind::VolumeFenced, "another node has it");
    // One of which nothing is known.
    let stranger = VolumeId::from_request_name("stranger");
    agent.notices.found(&stranger, NoticeKind::VolumeReadOnly, "it stopped".into());
    let told = come(&admin, "shop", 25).await;
    assert_eq!(told[24], is("VolumeFenced", "another node has it", 1));
    let told = come(&admin, "default", 1).await;
    let note = format!("volume {stranger}: it stopped");
    assert_eq!(told, [("VolumeReadOnly".into(), note, 1, "Node node-1".into())]);
    rights::used(&cluster, rights::EVENTS);
    stop.cancel();
}
