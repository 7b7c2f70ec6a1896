//! Bad input and missing parts, end to end: each is refused with the code that kubelet or a
//! sidecar needs, and a message that says what was wrong and what would be right.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rds_csi_proto::csi::volume_capability::access_mode::Mode;
use rds_csi_proto::csi::volume_capability::{AccessType, MountVolume};
use rds_csi_proto::csi::{
    GetPluginInfoRequest, NodeGetInfoRequest, NodeStageVolumeRequest, NodeUnstageVolumeRequest,
    ProbeRequest, VolumeCapability,
};
use tonic::{Code, Status};

use crate::csi::{Csi, capability, channel, filesystem, request};
use crate::process::{Daemon, run as command, sibling, socket_up, tail};
use crate::report::Report;
use crate::stack::{NODE_NAME, Stack, agent_socket};
use crate::switch_over;

const MIB: i64 = 1 << 20;
const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

/// Runs all of them; true if each was refused as it should be.
pub(crate) async fn run() -> bool {
    let mut report = Report::new("refused");
    let result = tell(&mut report).await;
    if result.is_err() {
        report.case("the refusals run to their end", result);
    }
    report.finish()
}

/// The code must be this one, and the message must contain each of these.
pub(crate) fn refused<T>(answer: Result<T, Status>, code: Code, says: &[&str]) -> Result<()> {
    let Err(status) = answer else { bail!("it was accepted") };
    let message = status.message();
    ensure!(status.code() == code, "{:?} instead of {code:?}: {message}", status.code());
    for part in says {
        ensure!(message.contains(part), "the message lacks {part:?}: {message}");
    }
    println!("  {code:?}: {message}");
    Ok(())
}

async fn tell(report: &mut Report) -> Result<()> {
    let mut stack = Stack::start().await?;
    let mut csi = stack.csi().await?;
    identity(report, &mut csi).await;
    creation(report, &mut csi).await;
    staging(report, &mut csi).await;
    switch_over::run_on(report, &mut csi).await;
    agent_absent(report, &mut stack, &mut csi).await?;
    wrong_user(report, &stack);
    credentials(report, &stack).await?;
    report.case("everything ends when told to", stack.stop());
    Ok(())
}

async fn identity(report: &mut Report, csi: &mut Csi) {
    let info = csi.identity.get_plugin_info(request(GetPluginInfoRequest {})).await;
    report.case(
        "Identity names the driver",
        match info {
            Ok(info) if info.get_ref().name == rds_csi_proto::DRIVER_NAME => Ok(()),
            other => Err(anyhow::anyhow!("{other:?}")),
        },
    );
    let probe = csi.identity.probe(request(ProbeRequest {})).await;
    report.case(
        "Identity is ready",
        match probe {
            Ok(p) if p.get_ref().ready == Some(true) => Ok(()),
            other => Err(anyhow::anyhow!("{other:?}")),
        },
    );
}

async fn creation(report: &mut Report, csi: &mut Csi) {
    let none = HashMap::new;
    let parameters = |k: &str, v: &str| HashMap::from([(k.to_owned(), v.to_owned())]);

    let answer =
        csi.create(VOLUME, MIB, filesystem("ext4"), parameters("ioTimeoutSecond", "5")).await;
    let says = ["ioTimeoutSecond", "ioTimeoutSeconds"];
    report.case("an unknown StorageClass key", refused(answer, Code::InvalidArgument, &says));

    let answer =
        csi.create(VOLUME, MIB, filesystem("ext4"), parameters("keepAliveTmo", "soon")).await;
    let says = ["keepAliveTmo", "soon", "accepted is"];
    report.case("a malformed StorageClass value", refused(answer, Code::InvalidArgument, &says));

    let answer = csi.create(VOLUME, 0, filesystem("ext4"), none()).await;
    report.case("size 0", refused(answer, Code::InvalidArgument, &["required_bytes"]));

    let rwx: VolumeCapability =
        capability(AccessType::Mount(MountVolume::default()), Mode::MultiNodeMultiWriter);
    let answer = csi.create(VOLUME, MIB, rwx, none()).await;
    report.case("a file system on several nodes", refused(answer, Code::InvalidArgument, &["ock"]));

    let answer = csi.create(VOLUME, MIB, filesystem("ntfs"), none()).await;
    report
        .case("an unknown file system", refused(answer, Code::InvalidArgument, &["ntfs", "ext4"]));
}

fn stage(volume: &str, publish_context: HashMap<String, String>) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: volume.into(),
        publish_context,
        staging_target_path: "/var/lib/kubelet/staging".into(),
        volume_capability: Some(filesystem("ext4")),
        ..NodeStageVolumeRequest::default()
    }
}

async fn staging(report: &mut Report, csi: &mut Csi) {
    let answer = csi.node.node_stage_volume(request(stage("raid10", HashMap::new()))).await;
    report.case("a wrong volume id", refused(answer, Code::InvalidArgument, &["raid10", "pvc-"]));

    let answer = csi.node.node_stage_volume(request(stage(VOLUME, HashMap::new()))).await;
    let says = ["publish context", "ControllerPublishVolume"];
    report.case("no publish context", refused(answer, Code::InvalidArgument, &says));
}

async fn agent_absent(report: &mut Report, stack: &mut Stack, csi: &mut Csi) -> Result<()> {
    // A shim whose agent was never installed.
    let absent = Path::new("/run/nowhere/agent.sock");
    let mut lonely =
        Daemon::start("shim", Stack::shim_command(&stack.dir, absent, "lonely.sock", NODE_NAME)?)?;
    let socket = stack.dir.join("lonely.sock");
    socket_up(&mut lonely, &socket, Duration::from_secs(60)).await?;
    let mut node = rds_csi_proto::csi::node_client::NodeClient::new(channel(&socket));
    let unstage = NodeUnstageVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/staging".into(),
    };
    let answer = node.node_unstage_volume(request(unstage.clone())).await;
    let says = ["/run/nowhere/agent.sock", "rds-node-agent"];
    report.case("the agent's socket is absent", refused(answer, Code::Unavailable, &says));

    // An agent that has died, and comes back.
    stack.kill_agent()?;
    let answer = csi.node.node_unstage_volume(request(unstage.clone())).await;
    report.case("the agent is dead", refused(answer, Code::Unavailable, &["rds-node-agent"]));
    stack.restart_agent().await?;
    let answer = csi.node.node_get_info(request(NodeGetInfoRequest {})).await;
    report.case(
        "the agent is back",
        match answer {
            Ok(info) if info.get_ref().node_id == NODE_NAME => Ok(()),
            other => Err(anyhow::anyhow!("{other:?}")),
        },
    );
    Ok(())
}

/// Another user's process on the agent's socket.
fn wrong_user(report: &mut Report, stack: &Stack) {
    let ask = || -> Result<()> {
        let socket = agent_socket(&stack.dir);
        // The mode of the socket alone would keep it out; the agent must, too.
        command(&["chmod", "0666", socket.to_str().unwrap_or_default()])?;
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(sibling("rds-node-agent")?)
            .args(["status", "--socket"])
            .arg(&socket)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "exit {:?}: {said}", output.status.code());
        ensure!(said.contains("65534") && said.contains("--allow-uid"), "it said {said:?}");
        println!("  {}", said.trim());
        Ok(())
    };
    report.case("another user on the agent's socket", ask());
}

async fn credentials(report: &mut Report, stack: &Stack) -> Result<()> {
    let bad = stack.dir.join("bad");
    for (name, file, says, code) in [
        ("a wrong password", "password", ["admin", "password"], Code::Unauthenticated),
        ("a wrong certificate", "ca.crt", ["certificate", "ca.crt"], Code::FailedPrecondition),
    ] {
        let _ = fs::remove_dir_all(&bad);
        fs::create_dir_all(&bad)?;
        for good in ["username", "password", "ca.crt"] {
            fs::copy(stack.dir.join("credentials").join(good), bad.join(good))?;
        }
        let wrong = match file {
            "password" => "not-it".to_owned(),
            _ => other_certificate()?,
        };
        fs::write(bad.join(file), wrong)?;
        let controller = Stack::start_controller(&stack.dir, &bad, "bad.sock").await?;
        let mut csi =
            Csi::connect(&stack.dir.join("csi.sock"), &stack.dir.join("bad.sock")).await?;
        let answer = csi.create(VOLUME, MIB, filesystem("ext4"), HashMap::new()).await;
        if !report.case(name, refused(answer, code, &says)) {
            println!("{}", tail("controller", 10));
        }
        drop(controller);
    }
    Ok(())
}

/// A certificate that somebody else made.
fn other_certificate() -> Result<String> {
    let words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
                 -keyout /dev/null -days 2 -subj /CN=somebody-else";
    command(&words.split_whitespace().collect::<Vec<_>>())
}
