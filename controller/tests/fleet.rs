//! Several appliances behind one controller.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::time::{Duration, Instant};

use lab::snapshots::*;
use lab::*;
use rds_csi_proto::csi::*;
use serde_json::json;
use tonic::Code;

const A: &str = "pvc-00000000-0000-4000-8000-00000000000a";
const B: &str = "pvc-00000000-0000-4000-8000-00000000000b";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The lab's own appliance is `default`, in zone a; `cellar` is in zone b.
struct Two {
    lab: Lab,
    cellar: Process,
}

async fn two() -> Two {
    let mut lab = Lab::start().await;
    let (cellar, endpoints) = start_sim(lab.dir.path(), "cellar", "cellar-secrets", &[]);
    let config = json!({"appliances": [{
        "name": "cellar",
        "url": url_of(VIA, &endpoints).replace("127.0.0.1", "localhost"),
        "credentials": lab.path("cellar-secrets"),
        "volumePaths": [DIRECTORY],
        "nvmeAddress": "127.0.0.2",
        "topology": {ZONE: "b"},
    }]});
    std::fs::write(lab.path("rds.json"), config.to_string()).unwrap();
    restart(&mut lab).await;
    Two { lab, cellar }
}

async fn restart(lab: &mut Lab) {
    let config = format!("--rds-config={}", lab.path("rds.json").display());
    lab.restart_controller(&[&config, "--rds-topology", &format!("{ZONE}=a")]).await;
}

fn on(name: &str, rds: &str) -> CreateVolumeRequest {
    let mut request = create_request(name);
    request.parameters.insert("rds".into(), rds.into());
    request
}

fn place(zone: &str) -> Topology {
    Topology { segments: [(ZONE.to_owned(), zone.to_owned())].into() }
}

fn items(two: &Two, name: &str) -> String {
    ctl_of(&two.lab.path(name), &["list"]).to_string()
}

#[tokio::test]
async fn a_volume_lives_where_its_class_says() {
    let mut two = two().await;
    let a = two.lab.create(A).await.unwrap();
    let b = two.lab.create_with(on(B, "cellar")).await.unwrap();
    assert_eq!(
        (a.volume_context["rds"].as_str(), a.accessible_topology),
        ("default", vec![place("a")])
    );
    assert_eq!(
        (b.volume_context["rds"].as_str(), b.accessible_topology),
        ("cellar", vec![place("b")])
    );
    assert_eq!(b.volume_context["nvmeAddress"], "127.0.0.2");
    assert!(items(&two, "rds").contains(A) && !items(&two, "rds").contains(B));
    assert!(items(&two, "cellar").contains(B) && !items(&two, "cellar").contains(A));
    refused(two.lab.create_with(on(B, "default")).await, Code::AlreadyExists, "appliance cellar");
    refused(two.lab.create_with(on(B, "attic")).await, Code::InvalidArgument, "default or cellar");
    // A controller that has just started knows of neither.
    restart(&mut two.lab).await;
    let context = two.lab.publish(B, "node-1").await.unwrap();
    assert_eq!(context["nvmeAddress"], "127.0.0.2");
    two.lab.unpublish(B, "node-1").await.unwrap();
    restart(&mut two.lab).await;
    two.lab.delete(B).await.unwrap();
    two.lab.delete(A).await.unwrap();
    two.lab.delete(A).await.unwrap();
    assert!(!items(&two, "cellar").contains(B) && !items(&two, "rds").contains(A));
}

#[tokio::test]
async fn an_address_of_an_older_class_chooses_too() {
    let two = two().await;
    let mut request = create_request(B);
    request.parameters.insert("rdsAddress".into(), "localhost".into());
    assert_eq!(two.lab.create_with(request).await.unwrap().volume_context["rds"], "cellar");
}

#[tokio::test]
async fn where_a_volume_is_wanted_chooses_and_binds() {
    let two = two().await;
    let wanted = |zones: &[&str]| {
        Some(TopologyRequirement {
            requisite: zones.iter().map(|z| place(z)).collect(),
            preferred: Vec::new(),
        })
    };
    let mut request = create_request(B);
    request.accessibility_requirements = wanted(&["b"]);
    let made = two.lab.create_with(request.clone()).await.unwrap();
    assert_eq!(made.volume_context["rds"], "cellar");
    assert_eq!(two.lab.create_with(request).await.unwrap(), made);
    let mut request = on(A, "cellar");
    request.accessibility_requirements = wanted(&["a", "c"]);
    refused(two.lab.create_with(request).await, Code::ResourceExhausted, "zone=b");
    let mut identity = two.lab.identity();
    let answer = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await;
    let text = format!("{:?}", answer.unwrap().into_inner());
    assert!(text.contains("VolumeAccessibilityConstraints"), "{text}");
}

#[tokio::test]
async fn one_that_is_down_does_not_slow_the_other_and_hides_nothing() {
    let mut two = two().await;
    two.lab.create(A).await.unwrap();
    two.lab.create_with(on(B, "cellar")).await.unwrap();
    restart(&mut two.lab).await;
    ctl_of(&two.lab.path("cellar"), &["drop-connections", "half-open"]);
    // Many calls for the one that hangs, so that its queue is full.
    let mut stuck = Vec::new();
    for n in 0..8 {
        let mut client = two.lab.volumes();
        let request = on(&format!("pvc-00000000-0000-4000-8000-0000000000c{n}"), "cellar");
        stuck.push(tokio::spawn(async move { client.create_volume(request).await }));
    }
    let started = Instant::now();
    two.lab.publish(A, "node-1").await.unwrap();
    two.lab.unpublish(A, "node-1").await.unwrap();
    two.lab.delete(A).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let ready = two.lab.identity().probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(ready.ready, Some(true));
    for call in stuck {
        call.abort();
    }
    two.cellar.kill();
    // Not "deleted already", not "never attached", not "does not exist".
    refused(two.lab.delete(B).await, Code::Unavailable, "cellar");
    refused(two.lab.unpublish(B, "node-1").await, Code::Unavailable, "cellar");
    refused(two.lab.publish(B, "node-1").await, Code::Unavailable, "cellar");
}

const NAME: &str = "snapshot-11111111-2222-4333-8444-555555555555";
const SNAP: &str = "snap-11111111-2222-4333-8444-555555555555";
const RECORD: &str = "snp-11111111-2222-4333-8444-555555555555";

/// A snapshot is where its volume is, and so is all that is made from either.
#[tokio::test]
async fn what_is_made_from_something_is_made_beside_it() {
    let mut two = two().await;
    two.lab.create(A).await.unwrap();
    two.lab.create_with(on(B, "cellar")).await.unwrap();
    restart(&mut two.lab).await;
    let made = snapshot(&two.lab, NAME, B).await.unwrap();
    assert!(items(&two, "cellar").contains(RECORD) && !items(&two, "rds").contains(RECORD));
    // One name for two volumes would be one id for two snapshots.
    refused(snapshot(&two.lab, NAME, A).await, Code::AlreadyExists, B);
    restart(&mut two.lab).await;
    assert_eq!(list(&two.lab).await, std::slice::from_ref(&made));
    assert_eq!(list_one(&two.lab, SNAP).await, std::slice::from_ref(&made));
    assert_eq!(list_one(&two.lab, RECORD).await, []);

    for (n, source) in [from_snapshot("s", SNAP), from_volume("v", B)].into_iter().enumerate() {
        for rds in ["default", "cellar", ""] {
            let mut request = source.clone();
            request.name = format!("pvc-00000000-0000-4000-8000-0000000000{n}{}", rds.len());
            if !rds.is_empty() {
                request.parameters.insert("rds".into(), rds.into());
            }
            let answer = two.lab.create_with(request.clone()).await;
            if rds == "default" {
                refused(answer, Code::InvalidArgument, "is on appliance cellar");
                continue;
            }
            let volume = answer.unwrap();
            assert_eq!(volume.volume_context["rds"], "cellar", "{rds:?}");
            restart(&mut two.lab).await;
            assert_eq!(two.lab.create_with(request.clone()).await.unwrap(), volume);
            assert!(!items(&two, "rds").contains(&request.name));
            two.lab.delete(&request.name).await.unwrap();
        }
        let mut request = source;
        request.accessibility_requirements =
            Some(TopologyRequirement { requisite: vec![place("a")], preferred: Vec::new() });
        refused(two.lab.create_with(request).await, Code::ResourceExhausted, "zone=b");
    }
    // Repeated after its source is gone: what was made is there all the same.
    let restored = two.lab.create_with(from_snapshot("s", SNAP)).await.unwrap();
    delete_snapshot(&two.lab, SNAP).await.unwrap();
    delete_snapshot(&two.lab, SNAP).await.unwrap();
    restart(&mut two.lab).await;
    assert_eq!(two.lab.create_with(from_snapshot("s", SNAP)).await.unwrap(), restored);
    refused(two.lab.create_with(from_snapshot("t", SNAP)).await, Code::NotFound, SNAP);
    assert!(!items(&two, "cellar").contains(RECORD));
}

#[tokio::test]
async fn a_snapshot_on_one_that_is_down_is_not_gone() {
    let mut two = two().await;
    two.lab.create(A).await.unwrap();
    two.lab.create_with(on(B, "cellar")).await.unwrap();
    snapshot(&two.lab, NAME, B).await.unwrap();
    restart(&mut two.lab).await;
    two.cellar.kill();
    refused(delete_snapshot(&two.lab, SNAP).await, Code::Unavailable, "cellar");
    refused(two.lab.create_with(from_snapshot("s", SNAP)).await, Code::Unavailable, "cellar");
    refused(two.lab.create_with(from_volume("v", B)).await, Code::Unavailable, "cellar");
    refused(snapshot(&two.lab, NAME, B).await, Code::Unavailable, "cellar");
    let all = two.lab.volumes().list_snapshots(ListSnapshotsRequest::default()).await;
    refused(all, Code::Unavailable, "cellar");
    // The other one's are not held up.
    let other = "snapshot-99999999-2222-4333-8444-555555555555";
    let made = snapshot(&two.lab, other, A).await.unwrap();
    assert_eq!(list_one(&two.lab, &made.snapshot_id).await, std::slice::from_ref(&made));
    let restored = two.lab.create_with(from_snapshot("s", &made.snapshot_id)).await.unwrap();
    assert_eq!(restored.volume_context["rds"], "default");
    delete_snapshot(&two.lab, &made.snapshot_id).await.unwrap();
}
