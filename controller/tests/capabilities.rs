//! What is announced: exactly this list, with whatever flags the controller runs.
//!
//! A capability that is announced and not built, or built and not announced, breaks clusters
//! in ways that no single call shows: delayed binding that waits for ever for a capacity
//! that is never published, a flag of Kubernetes that switches off attaching.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use lab::*;
use rds_csi_proto::csi::controller_service_capability::{Type, rpc::Type as Rpc};
use rds_csi_proto::csi::*;

/// A new one comes here together with the tests of what it announces.
const CONTROLLER: &[Rpc] = &[
    Rpc::CreateDeleteVolume,
    Rpc::PublishUnpublishVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::ListVolumes,
    Rpc::ListVolumesPublishedNodes,
    Rpc::GetCapacity,
    Rpc::ExpandVolume,
    Rpc::GetVolume,
    Rpc::VolumeCondition,
    Rpc::CreateDeleteSnapshot,
    Rpc::ListSnapshots,
    Rpc::CloneVolume,
];

async fn announced(lab: &Lab) -> (Vec<i32>, Vec<PluginCapability>) {
    let request = ControllerGetCapabilitiesRequest {};
    let answer = lab.volumes().controller_get_capabilities(request).await;
    let list = answer.unwrap().into_inner().capabilities;
    let rpcs = list.into_iter().map(|c| match c.r#type {
        Some(Type::Rpc(rpc)) => rpc.r#type,
        other => panic!("{other:?}"),
    });
    let plugin = lab.identity().get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await;
    (rpcs.collect(), plugin.unwrap().into_inner().capabilities)
}

#[tokio::test]
async fn the_same_capabilities_with_every_flag() {
    let mut lab = Lab::start().await;
    let (rpcs, plugin) = announced(&lab).await;
    let mut want: Vec<i32> = CONTROLLER.iter().map(|c| i32::from(*c)).collect();
    let mut found = rpcs.clone();
    want.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, want);
    let flags: [&[&str]; 4] = [
        &["--nodes", "node-1"],
        &["--nvme-address", "192.0.2.1"],
        &["--driver-name", "other.example"],
        &["--metrics-addr", "127.0.0.1:0"],
    ];
    for flags in flags {
        lab.restart_controller(flags).await;
        assert_eq!(announced(&lab).await, (rpcs.clone(), plugin.clone()), "{flags:?}");
    }
    // Nor does it depend on whether the appliance is there.
    lab.ctl(&["drop-connections", "refuse"]);
    lab.restart_controller(&[]).await;
    assert_eq!(announced(&lab).await, (rpcs, plugin));
}
