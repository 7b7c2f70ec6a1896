//! What a caller of `csi.v1.Node` sees through the shim.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use rds_csi_proto::csi::*;
use tonic::Code;

#[tokio::test]
async fn requests_and_answers_arrive_unchanged() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let mut node = world.node().await;
    let request = NodeStageVolumeRequest {
        volume_id: "pvc-1".to_owned(),
        staging_target_path: "/var/lib/kubelet/ü".to_owned(),
        publish_context: [("nqn".to_owned(), "nqn.x:y".to_owned())].into(),
        ..Default::default()
    };
    node.node_stage_volume(within(LIMIT, request.clone())).await.unwrap();
    assert_eq!(world.agent.staged.lock().unwrap().take(), Some(request));

    let expand = NodeExpandVolumeRequest { volume_id: "pvc-1".to_owned(), ..Default::default() };
    let answer = node.node_expand_volume(within(LIMIT, expand)).await.unwrap();
    assert_eq!(answer.into_inner().capacity_bytes, 4096);
}

#[tokio::test]
async fn the_node_id_is_the_node_name_and_the_limits_are_the_agents() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let info = world.node().await.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "node-1");
    assert_eq!(info.max_volumes_per_node, 77);
}

#[tokio::test]
async fn topology_is_told_only_where_it_is_given() {
    let announced = |world: &World| {
        let path = world.path("csi.sock");
        async move {
            let channel = dial(&path).await;
            let mut identity = identity_client::IdentityClient::new(channel);
            let answer = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await;
            answer.unwrap().into_inner().capabilities.len()
        }
    };
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let info = world.node().await.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.accessible_topology, None);
    assert_eq!(announced(&world).await, 1);

    let flags = ["--no-registration", "--topology", "zone=a", "--topology", "example.org/rack=7"];
    let world = World::new(&flags).await;
    let _agent = world.start_agent();
    let info = world.node().await.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    let segments = info.accessible_topology.unwrap().segments;
    assert_eq!(segments.len(), 2);
    assert_eq!((segments["zone"].as_str(), segments["example.org/rack"].as_str()), ("a", "7"));
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 77));
    assert_eq!(announced(&world).await, 2, "with VOLUME_ACCESSIBILITY_CONSTRAINTS");
}

#[tokio::test]
async fn code_message_and_details_of_an_error_are_the_agents() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let status =
        world.node().await.node_unstage_volume(within(LIMIT, unstage(REFUSED))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), REASON);
    assert_eq!(status.details(), DETAILS);
}

#[tokio::test]
async fn the_agent_is_told_the_callers_deadline_or_a_default() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let mut node = world.node().await;
    let told = || {
        let text = world.agent.last_timeout.lock().unwrap().take().unwrap();
        let (digits, unit) = text.split_at(text.len() - 1);
        let n: f64 = digits.parse().unwrap();
        n * match unit {
            "S" => 1.0,
            "m" => 1e-3,
            "u" => 1e-6,
            "n" => 1e-9,
            other => panic!("{other}"),
        }
    };

    node.node_unstage_volume(within(Duration::from_secs(9), unstage("pvc-1"))).await.unwrap();
    let seconds = told();
    assert!(seconds > 7.0 && seconds <= 9.0, "{seconds}");

    node.node_unstage_volume(unstage("pvc-1")).await.unwrap();
    let seconds = told();
    assert!(seconds > 110.0 && seconds <= 120.0, "{seconds}");
}

#[tokio::test]
async fn an_agent_that_takes_too_long_is_named_at_the_deadline() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let started = Instant::now();
    let status = world
        .node()
        .await
        .node_unstage_volume(within(Duration::from_secs(3), unstage(SLOW)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("rds-node-agent status"), "{status:?}");
    assert!(started.elapsed() < Duration::from_secs(6));
}

#[tokio::test]
async fn without_an_agent_calls_fail_before_their_deadline_and_say_what_to_do() {
    let world = World::new(&["--no-registration"]).await;
    let mut node = world.node().await;
    let call = within(Duration::from_secs(2), unstage("pvc-1"));
    let status = node.node_unstage_volume(call).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("there is no socket"), "{status:?}");
    assert!(status.message().contains(&world.agent_socket().display().to_string()), "{status:?}");
    assert!(status.message().contains("systemctl status rds-node-agent"), "{status:?}");

    // A process that was killed leaves its socket file behind.
    drop(world.start_agent());
    let call = within(Duration::from_secs(2), unstage("pvc-1"));
    let status = node.node_unstage_volume(call).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("nothing listens"), "{status:?}");
}

#[tokio::test]
async fn without_an_agent_even_a_patient_caller_hears_of_it_soon() {
    let world = World::new(&["--no-registration"]).await;
    let started = Instant::now();
    let call = within(Duration::from_secs(120), unstage("pvc-1"));
    let status = world.node().await.node_unstage_volume(call).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_restart_of_the_agent_is_not_seen() {
    let world = World::new(&["--no-registration"]).await;
    let mut node = world.node().await;

    let agent = world.start_agent();
    node.node_unstage_volume(within(LIMIT, unstage("pvc-1"))).await.unwrap();
    drop(agent);

    // Between two calls.
    let agent = world.start_agent();
    node.node_unstage_volume(within(LIMIT, unstage("pvc-1"))).await.unwrap();
    drop(agent);

    // While a call is waiting.
    let restart = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        world.start_agent()
    };
    let call = node.node_unstage_volume(within(LIMIT, unstage("pvc-1")));
    let (answer, _agent) = tokio::join!(call, restart);
    answer.unwrap();
    assert_eq!(world.agent.calls(), 3);
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let world = World::new(&["--no-registration"]).await;
    let mut node = world.node().await;
    let agent = world.start_agent();
    let revive = async {
        // Dies of the call, and is back while the caller still has time.
        while world.agent.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(agent);
        world.start_agent()
    };
    let call = node.node_unstage_volume(within(LIMIT, unstage(FATAL)));
    let (answer, _agent) = tokio::join!(call, revive);
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("unknown whether"), "{status:?}");
    assert_eq!(world.agent.calls(), 1);
}

#[tokio::test]
async fn one_call_that_hangs_does_not_hold_up_another() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let (mut a, mut b) = (world.node().await, world.node().await);
    let hanging = a.node_unstage_volume(within(LIMIT, unstage(SLOW)));
    let other = async {
        while world.agent.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        b.node_unstage_volume(within(Duration::from_secs(5), unstage("pvc-2"))).await
    };
    tokio::select! {
        answer = hanging => panic!("{answer:?}"),
        answer = other => { answer.unwrap(); }
    }
}

#[tokio::test]
async fn a_method_that_csi_gets_later_reaches_the_agent() {
    let world = World::new(&["--no-registration"]).await;
    let _agent = world.start_agent();
    let mut grpc = tonic::client::Grpc::new(world.dial("csi.sock").await);
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/csi.v1.Node/NodeOfTomorrow");
    let request = tonic::Request::new(prost::bytes::Bytes::new());
    let status = grpc.unary(request, path, rds_csi_shim::raw::RawCodec).await.unwrap_err();
    // The agent's own answer, not UNAVAILABLE or one of the shim's.
    assert_eq!(status.code(), Code::Unimplemented);
}
