//! What users get for wrong input, a wrong configuration, and an appliance that is away:
//! code and message of each are pinned here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::time::Duration;

use lab::*;
use rds_csi_proto::csi::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Request};

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

#[tokio::test]
async fn wrong_requests_never_reach_the_appliance() {
    let lab = Lab::start().await;
    let before = lab.requests();
    let mut request = create_request(ID);
    request.parameters.insert("ioTimeoutSecond".into(), "5".into());
    refused(lab.create_with(request).await, Code::InvalidArgument, "ioTimeoutSecond");

    let mut request = create_request(ID);
    request.parameters.insert("shield".into(), "maybe".into());
    refused(lab.create_with(request).await, Code::InvalidArgument, "shield");

    let mut request = create_request(ID);
    request.parameters.insert("volumePath".into(), "/raid10/elsewhere".into());
    refused(lab.create_with(request).await, Code::InvalidArgument, "--volume-path");

    let mut request = create_request(ID);
    request.parameters.insert("rdsAddress".into(), "192.0.2.1".into());
    refused(lab.create_with(request).await, Code::InvalidArgument, "rdsAddress");

    let sized = |required_bytes, limit_bytes| {
        let mut request = create_request(ID);
        request.capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
        request
    };
    refused(lab.create_with(sized(0, 0)).await, Code::InvalidArgument, "size 0");
    refused(lab.create_with(sized(-1, 0)).await, Code::InvalidArgument, "negative");
    refused(lab.create_with(sized(8192, 4096)).await, Code::InvalidArgument, "limit_bytes 4096");
    refused(lab.create_with(sized(4097, 5000)).await, Code::OutOfRange, "multiples of 4096");

    for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeReaderOnly] {
        let mut request = create_request(ID);
        request.volume_capabilities = vec![mount(mode)];
        refused(lab.create_with(request).await, Code::InvalidArgument, "volumeMode: Block");
        let publish = publish_request(ID, "node-1", mount(mode));
        refused(lab.publish_with(publish).await, Code::InvalidArgument, "volumeMode: Block");
    }
    let mut request = create_request("");
    request.name.clear();
    refused(lab.create_with(request).await, Code::InvalidArgument, "name is required");
    let mut request = create_request(ID);
    request.volume_capabilities.clear();
    refused(lab.create_with(request).await, Code::InvalidArgument, "volume_capabilities");

    refused(lab.publish("", "node-1").await, Code::InvalidArgument, "volume_id is required");
    refused(lab.publish(ID, "").await, Code::InvalidArgument, "node_id is required");
    refused(lab.publish(ID, "Node 1").await, Code::InvalidArgument, "node name");
    refused(lab.publish("raid10", "node-1").await, Code::NotFound, "raid10");
    let mut readonly = publish_request(ID, "node-1", mount(Mode::SingleNodeWriter));
    readonly.readonly = true;
    refused(lab.publish_with(readonly).await, Code::InvalidArgument, "readonly");
    let mut none = publish_request(ID, "node-1", mount(Mode::SingleNodeWriter));
    none.volume_capability = None;
    refused(lab.publish_with(none).await, Code::InvalidArgument, "volume_capability");

    refused(lab.delete("").await, Code::InvalidArgument, "volume_id is required");
    refused(lab.unpublish("", "node-1").await, Code::InvalidArgument, "volume_id is required");
    // Never ours, so never there; above all not the pool.
    for id in ["raid10", "../raid10", "reallyfakevolumeid", "pvc-1"] {
        lab.delete(id).await.unwrap();
        lab.unpublish(id, "node-1").await.unwrap();
    }
    assert_eq!(lab.requests(), before, "the appliance was bothered");
    refused(lab.publish(ID, "node-1").await, Code::NotFound, ID);
}

#[tokio::test]
async fn wrong_passwords_name_where_they_come_from_and_are_read_again() {
    let lab =
        Lab::start_with(&[], |dir| std::fs::write(dir.join("password"), "no-such-secret").unwrap())
            .await;
    refused(lab.create(ID).await, Code::Unauthenticated, "secrets");
    refused(lab.create(ID).await, Code::Unauthenticated, "\"admin\"");
    let probe = lab.identity().probe(ProbeRequest {}).await;
    refused(probe, Code::FailedPrecondition, "check username and password");
    std::fs::copy(lab.path("rds/password"), lab.path("secrets/password")).unwrap();
    lab.create(ID).await.unwrap();
    let log = lab.controller_log();
    let password = std::fs::read_to_string(lab.path("rds/password")).unwrap();
    assert!(!log.contains("no-such-secret") && !log.contains(password.trim()), "secret in the log");
}

#[tokio::test]
async fn an_appliance_that_is_away_is_unavailable_and_comes_back() {
    let mut lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    for mode in ["refuse", "reset", "close"] {
        lab.ctl(&["drop-connections", mode]);
        refused(
            lab.create("pvc-00000000-0000-0000-0000-000000000001").await,
            Code::Unavailable,
            "",
        );
        refused(lab.publish(ID, "node-1").await, Code::Unavailable, "");
        refused(lab.unpublish(ID, "node-1").await, Code::Unavailable, "");
        refused(lab.delete(ID).await, Code::Unavailable, "");
        let probe = lab.identity().probe(ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(false));
        lab.ctl(&["clear"]);
        lab.publish(ID, "node-1").await.unwrap();
    }
    lab.ctl(&["reboot", "--down", "0.3", "--wait"]);
    // Refused, reset, 401, nonsense, one after another: an error each, never an absence.
    let mut codes = Vec::new();
    loop {
        match lab.publish(ID, "node-1").await {
            Ok(_) => break,
            Err(e) => codes.push(e.code()),
        }
        assert!(codes.len() < 100, "{codes:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        codes.iter().all(|c| [Code::Unavailable, Code::Unauthenticated].contains(c)),
        "{codes:?}"
    );
    lab.sim.kill();
    refused(lab.delete(ID).await, Code::Unavailable, "not reachable");
}

#[tokio::test]
async fn an_appliance_that_hangs_holds_nobody_for_ever() {
    let lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.ctl(&["drop-connections", "half-open"]);
    let started = std::time::Instant::now();
    refused(lab.publish(ID, "node-1").await, Code::Unavailable, "not reachable");
    // An open connection may be waited on for 20 s, a new one for 5 s.
    assert!(started.elapsed() < Duration::from_secs(27), "{:?}", started.elapsed());
    lab.ctl(&["clear"]);
    lab.publish(ID, "node-1").await.unwrap();
}

#[tokio::test]
async fn an_old_router_os_is_refused() {
    let lab = Lab::start_with(&["--version", "7.20.8"], |_| {}).await;
    refused(lab.create(ID).await, Code::FailedPrecondition, "7.21 or later is needed");
}

#[tokio::test]
async fn another_clusters_controller_leaves_our_volumes_alone() {
    let mut lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    let before = lab.item(ID).await.unwrap();
    lab.restart_controller(&["--cluster-id", "other"]).await;
    refused(lab.delete(ID).await, Code::FailedPrecondition, "cluster \"lab\"");
    refused(lab.publish(ID, "node-1").await, Code::FailedPrecondition, "cluster \"lab\"");
    assert_eq!(lab.item(ID).await.unwrap(), before);
}

#[tokio::test]
async fn unknown_nodes_are_refused_where_nodes_are_known() {
    let mut lab = Lab::start().await;
    lab.create(ID).await.unwrap();
    lab.restart_controller(&["--nodes", "node-1,node-2"]).await;
    refused(lab.publish(ID, "node-3").await, Code::NotFound, "node node-3 does not exist");
    lab.publish(ID, "node-2").await.unwrap();
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_stop_the_work() {
    let lab = Lab::start().await;
    lab.ctl(&["delay", "1500", "--pattern", "disk/add"]);
    let mut request = Request::new(create_request(ID));
    request.set_timeout(Duration::from_millis(900));
    let gave_up = lab.volumes().create_volume(request).await.unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&gave_up.code()), "{gave_up:?}");
    refused(lab.delete(ID).await, Code::Aborted, "CreateVolume of pvc-");
    lab.ctl(&["clear"]);
    let mut created = lab.create(ID).await;
    for _ in 0..100 {
        if created.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        created = lab.create(ID).await;
    }
    created.unwrap();
}

#[tokio::test]
async fn it_stops_when_told_to() {
    let mut lab = Lab::start().await;
    // What runs is finished first.
    lab.ctl(&["delay", "1000", "--pattern", "disk/add"]);
    let mut client = lab.volumes();
    let call = tokio::spawn(async move { client.create_volume(create_request(ID)).await });
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(lab.controller.terminate().await, Some(0));
    call.await.unwrap().unwrap();
    assert!(lab.item(ID).await.is_some());
    assert!(!lab.path("csi.sock").exists());
}

#[tokio::test]
async fn numbers_are_served_without_asking_the_appliance() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut lab = Lab::start().await;
    lab.restart_controller(&["--metrics-addr", &free.to_string()]).await;
    lab.create(ID).await.unwrap();
    let before = lab.requests();
    for (path, want) in [
        ("/healthz", "ok"),
        ("/metrics", "rds_csi_controller_appliance_up{rds=\"default\"} 1"),
        ("/metrics", "rds_csi_controller_rpc_seconds_count{code=\"Ok\",rpc=\"CreateVolume\"} 1"),
        ("/metrics", "appliance_request_seconds_count{request=\"disk/add\"} 1"),
    ] {
        let mut tcp = tokio::net::TcpStream::connect(free).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(want), "{answer}");
    }
    assert_eq!(lab.requests(), before);
}
