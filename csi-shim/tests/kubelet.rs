//! Registration, identity and the end, as kubelet and the container runtime see them.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use rds_csi_proto::csi::identity_client::IdentityClient;
use rds_csi_proto::csi::plugin_capability::{Service, Type, service};
use rds_csi_proto::csi::*;
use rds_csi_proto::registration::registration_client::RegistrationClient;
use rds_csi_proto::registration::{InfoRequest, RegistrationStatus};
use rds_csi_shim::ShimError;

const REG: &str = "rds.csi.srvlab.io-reg.sock";

#[tokio::test]
async fn identity_is_answered_with_and_without_an_agent() {
    let world = World::new(&["--no-registration", "--driver-name", "other.example"]).await;
    let mut identity = IdentityClient::new(world.dial("csi.sock").await);

    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "other.example");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));

    let capabilities = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner()
        .capabilities;
    let controller = Type::Service(Service { r#type: service::Type::ControllerService.into() });
    assert_eq!(capabilities.into_iter().map(|c| c.r#type).collect::<Vec<_>>(), [Some(controller)]);

    let started = Instant::now();
    let probe = identity.probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(false));
    assert!(started.elapsed() < Duration::from_secs(2), "a probe does not wait for a restart");

    let _agent = world.start_agent();
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
}

#[tokio::test]
async fn kubelet_registers_the_plugin_once_the_agent_answers() {
    let mut world =
        World::new(&["--kubelet-endpoint", "/var/lib/kubelet/plugins/x/csi.sock"]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!world.path(REG).exists(), "registration could only fail without an agent");
    let _agent = world.start_agent();
    world.appears(REG).await;

    // pkg/kubelet/pluginmanager: GetInfo, then NodeGetInfo on the CSI socket, then the result.
    let mut registration = RegistrationClient::new(world.dial(REG).await);
    let info = registration.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.r#type, "CSIPlugin");
    assert_eq!(info.name, "rds.csi.srvlab.io");
    assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/x/csi.sock");
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let node = world.node().await.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(node.node_id, "node-1");
    let registered = RegistrationStatus { plugin_registered: true, error: String::new() };
    registration.notify_registration_status(registered).await.unwrap();

    // It stays: kubelet asks again whenever kubelet itself restarts.
    registration.get_info(InfoRequest {}).await.unwrap();
    world.stop().await.unwrap();
    assert!(!world.path(REG).exists() && !world.path("csi.sock").exists());
}

#[tokio::test]
async fn a_refused_registration_is_answered_and_ends_the_shim_with_kubelets_words() {
    let mut world = World::new(&[]).await;
    let _agent = world.start_agent();
    world.appears(REG).await;
    let mut registration = RegistrationClient::new(world.dial(REG).await);
    let refused = RegistrationStatus { plugin_registered: false, error: "no such node".to_owned() };
    registration.notify_registration_status(refused).await.unwrap();
    let error = world.outcome().await.unwrap_err();
    assert!(
        matches!(&error, ShimError::RegistrationRefused { reason } if reason == "no such node")
    );
    assert!(!world.path(REG).exists());
}

#[tokio::test]
async fn a_call_in_progress_is_finished_at_shutdown() {
    let mut world = World::new(&["--no-registration"]).await;
    let mut node = world.node().await;
    // It waits for an agent that comes only after the shim was asked to end.
    let call =
        tokio::spawn(
            async move { node.node_unstage_volume(within(LIMIT, unstage("pvc-1"))).await },
        );
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _agent = world.start_agent();
    call.await.unwrap().unwrap();
    world.outcome().await.unwrap();
}

/// The binary, as the container runtime treats it.
#[test]
fn sigterm_ends_the_process_cleanly_and_a_bad_endpoint_ends_it_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("csi.sock");
    let shim = |endpoint: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_rds-csi-shim"))
            .env("RDS_CSI_ENDPOINT", endpoint)
            .env("RDS_CSI_AGENT_SOCKET", dir.path().join("agent.sock"))
            .env("RDS_CSI_NODE_NAME", "node-1")
            .env("RDS_CSI_NO_REGISTRATION", "true")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };

    let mut running = shim(&socket);
    let deadline = Instant::now() + LIMIT;
    while !socket.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = nix::unistd::Pid::from_raw(running.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());

    let failed = shim(dir.path()).wait_with_output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("not a socket"), "{said}");
}
