//! Whether something else has a volume connected on this node: a driver that was here before,
//! or a person with nvme-cli.
//!
//! The session's task ends every controller of its subsystem that is not its own, since two
//! hosts on one namespace are two writers. So before there is a task, it is made sure that
//! nobody's mount or open file is taken away by that.

use std::collections::HashSet;

use rds_csi_proto::ids::VolumeId;

use super::busy;
use super::locks::Operation;
use super::sessions::Sessions;
use super::{LOCAL, Node};
use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::dm::DeviceMapper;
use crate::kernel::processes::Holder;
use crate::kernel::sysfs::{self, Controller, Namespace};
use crate::session::{SessionSpec, shield};

/// Refuses while a volume that this agent does not know yet is in use over somebody else's
/// controller. One that nobody uses, such as a leftover, is no obstacle.
///
/// # Errors
/// Names the controller and its users.
pub(super) async fn expect_none<S: Sessions>(
    node: &Node<S>,
    operation: &Operation,
    spec: &SessionSpec,
) -> Result<()> {
    if node.sessions.view(&spec.volume).is_some() {
        return Ok(());
    }
    let wanted = spec.clone();
    let look = move || Ok(strangers(sysfs::controllers()?, &wanted));
    let found = operation.run("looking for other connections to the volume", LOCAL, look).await?;
    let mut own = None;
    let mut asked = HashSet::new();
    for (controller, namespace) in found {
        // With native multipath all controllers of a subsystem have the same device.
        if !asked.insert(namespace.number) {
            continue;
        }
        if own.is_none() {
            own = Some(own_shield(operation, &spec.volume).await?);
        }
        let is_own = |holder: &Holder| own.as_ref().and_then(Option::as_ref) == Some(&holder.holds);
        let mut users = busy::holders(namespace.number, None).await;
        users.retain(|holder| !is_own(holder) && !busy::is_udev(holder));
        if !users.is_empty() {
            return Err(Error::Precondition(format!(
                "volume {} is connected on this node already, and not by this agent (controller \
                 {}, host NQN {}), and in use over {}: {}; end that use, and what has connected \
                 it, first (docs/switch-over.md)",
                spec.volume,
                controller.name,
                controller.host_nqn,
                namespace.name,
                busy::list(&users)
            )));
        }
    }
    Ok(())
}

/// Refuses to call a volume unstaged that this agent does not know while the node is still
/// connected to it: whoever hears that it is would let another node in. Here the NQN is not
/// told, so it goes by the only name that a volume's subsystem has.
///
/// # Errors
/// Names the controller, and how to end it.
pub(super) async fn expect_disconnected<S: Sessions>(
    node: &Node<S>,
    operation: &Operation,
    volume: &VolumeId,
) -> Result<()> {
    if node.sessions.view(volume).is_some() {
        return Ok(());
    }
    let look = || sysfs::controllers();
    let all = operation.run("looking for connections to the volume", LOCAL, look).await?;
    match connected(&all, volume) {
        None => Ok(()),
        Some(controller) => Err(Error::Precondition(format!(
            "volume {volume} is still connected on this node, and not by this agent (controller \
             {}, host NQN {}); when nothing uses it any more: nvme disconnect -n {} \
             (docs/switch-over.md)",
            controller.name, controller.host_nqn, controller.nqn
        ))),
    }
}

/// A controller of a volume that is not on its way out.
fn connected<'a>(all: &'a [Controller], volume: &VolumeId) -> Option<&'a Controller> {
    let is_its = |c: &&Controller| c.nqn.rsplit(':').next() == Some(volume.as_str());
    all.iter().filter(is_its).find(|c| !c.state.is_going())
}

/// Controllers of the volume's subsystem that are another host's, and have its device.
fn strangers(all: Vec<Controller>, spec: &SessionSpec) -> Vec<(Controller, Namespace)> {
    all.into_iter()
        .filter(|c| c.nqn == spec.nqn.as_str() && c.host_nqn != spec.host_nqn.as_str())
        .filter_map(|c| c.namespace.clone().map(|namespace| (c, namespace)))
        .collect()
}

/// What a search for users calls the volume's own shield, which an agent that has lost its
/// journal may have left on the controller of an earlier attachment.
async fn own_shield(operation: &Operation, volume: &VolumeId) -> Result<Option<String>> {
    let volume = volume.clone();
    let number: Option<DeviceNumber> = operation
        .run("looking for the volume's shield", LOCAL, move || {
            Ok(shield::look(&DeviceMapper::open()?, &volume)?.map(|seen| seen.number))
        })
        .await?;
    Ok(number.map(|number| shield::node_of(number).display().to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rds_csi_proto::ids::{HostNqn, Portal};

    use super::*;
    use crate::kernel::sysfs::ControllerState;

    #[test]
    fn only_another_hosts_controller_with_the_device_is_a_stranger() {
        let spec = SessionSpec {
            volume: "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap(),
            nqn: "nqn.2000-02.com.mikrotik:pvc-x".parse().unwrap(),
            host_nqn: HostNqn::random(),
            portal: Portal::parse("10.0.0.2", "4420").unwrap(),
            ctrl_loss_tmo: -1,
            reconnect_delay: 1,
            keep_alive_tmo: 5,
            nr_io_queues: 1,
            shield: true,
            io_timeout_secs: 0,
            reattach_check_secs: 60,
            arrival: None,
        };
        let own = spec.host_nqn.as_str().to_owned();
        let namespace = Namespace {
            name: "nvme0n1".into(),
            number: DeviceNumber { major: 259, minor: 0 },
            size_bytes: 1 << 20,
            wwid: "uuid.x".into(),
        };
        let controller = |nqn: &str, host: &str, namespace: Option<&Namespace>| Controller {
            name: "nvme0".into(),
            nqn: nqn.into(),
            host_nqn: host.into(),
            address: String::new(),
            cntlid: "1".into(),
            state: ControllerState::Live,
            namespace: namespace.cloned(),
        };
        let there = Some(&namespace);
        let nqn = spec.nqn.as_str();
        let found = |c: Controller| strangers(vec![c], &spec).len();
        assert_eq!(found(controller(nqn, "nqn.2014-08.org.nvmexpress:uuid:the-host", there)), 1);
        // Kernels before 4.20 tell no host NQN: then its users are asked about all the more.
        assert_eq!(found(controller(nqn, "", there)), 1);
        assert_eq!(found(controller(nqn, &own, there)), 0);
        assert_eq!(found(controller(nqn, "other", None)), 0);
        assert_eq!(found(controller("nqn.2000-02.com.mikrotik:pvc-xx", "other", there)), 0);

        let named = format!("nqn.2000-02.com.mikrotik:{}", spec.volume);
        let is_connected = |c: Controller| connected(&[c], &spec.volume).is_some();
        assert!(is_connected(controller(&named, "other", None)));
        assert!(!is_connected(controller(&format!("{named}0"), "other", there)));
        let going =
            Controller { state: ControllerState::Deleting, ..controller(&named, "other", there) };
        assert!(!is_connected(going));
    }
}
