//! ControllerPublishVolume and ControllerUnpublishVolume: who may connect, enforced by the
//! target. The rules are in [`crate::rules::attach`]; here they are carried out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rds_csi_proto::context::{NVME_ADDRESS, PublishContext};
use rds_csi_proto::csi::ControllerPublishVolumeRequest;
use rds_csi_proto::ids::{HostNqn, NodeName, Nqn, Portal, VolumeId};

use super::{Volumes, portal};
use crate::crash;
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::routeros::wire::{Property, Switch};
use crate::rules::attach::{Publish, Unpublish, publish, unpublish};
use crate::rules::capability;
use crate::rules::owner::{Attachment, NodeKey, OwnerTag, Sharing, Stage};

/// A ControllerPublish, checked.
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeName,
    sharing: Sharing,
    /// From the volume context: an address, or a name in those that older drivers wrote.
    nvme_address: Option<String>,
}

impl PublishRequest {
    pub(crate) fn new(request: ControllerPublishVolumeRequest) -> Result<Self, Error> {
        let required = |name: &str, value: &str| match value {
            "" => Err(Error::Invalid(format!("{name} is required"))),
            _ => Ok(()),
        };
        required("volume_id", &request.volume_id)?;
        required("node_id", &request.node_id)?;
        let capability = request
            .volume_capability
            .ok_or_else(|| Error::Invalid("volume_capability is required".into()))?;
        let sharing = capability::check(&capability)?;
        if request.readonly {
            return Err(Error::Invalid(
                "readonly: attaching read-only is not supported (PUBLISH_READONLY is not announced)"
                    .into(),
            ));
        }
        let node = request.node_id.parse().map_err(|e| Error::Invalid(format!("{e}")))?;
        // An id of another form was never given out.
        let volume =
            request.volume_id.parse().map_err(|_| Error::NotFound(request.volume_id.clone()))?;
        let nvme_address =
            request.volume_context.get(NVME_ADDRESS).filter(|a| !a.is_empty()).cloned();
        Ok(Self { volume, node, sharing, nvme_address })
    }
}

impl Volumes {
    /// Attaches the volume to a node, or finds that it is.
    pub(crate) async fn publish(
        &self,
        request: &PublishRequest,
    ) -> Result<HashMap<String, String>, Error> {
        let volume = &request.volume;
        let (item, tag) = self.existing(volume).await?;
        let nodes = &self.settings.nodes;
        if !nodes.is_empty() && !nodes.contains(&request.node) {
            return Err(Error::NoSuchNode(request.node.to_string()));
        }
        // Everything that can fail without a trace comes before the first change.
        let portal = self.portal(request, &item).await?;
        let nqn: Nqn = item.nqn.parse().map_err(|e| {
            Error::Refused(format!("the appliance's item {volume} cannot be exported: {e}"))
        })?;
        let node = NodeKey::of(&request.node);
        let refused = |text: String| Err(Error::Refused(text));
        let host = match publish(&tag.stage, &node, request.sharing) {
            Publish::Attach => self.attach(request, &item, &tag, node).await,
            Publish::Resume(host) => self.resume(volume, &item, host).await,
            Publish::Incompatible(_) => {
                return Err(Error::Exists(format!(
                    "volume {volume} is attached to this node with another access mode"
                )));
            }
            Publish::HeldBy(holder) => return refused(held_by(volume, &holder, request.sharing)),
            Publish::Filling => {
                return refused(format!("volume {volume} is still being filled with its content"));
            }
            Publish::Deleting => return refused(format!("volume {volume} is being deleted")),
        }
        .map_err(|e| e.after_change(format!("attaching {volume} to {}", request.node)))?;
        Ok(PublishContext { nqn, host_nqn: host, portal }.to_map())
    }

    /// A new attachment: record, host and export in one change, which halves the time that a
    /// pod waits. That the appliance applies them together is likely and not known, so no
    /// order may do harm:
    /// - export first: it still admits only the host that nobody was given, which is why a
    ///   volume that cannot be shown to admit nobody is closed in a change of its own before;
    /// - host first: not exported, nobody connects;
    /// - record first: it claims an attachment that is not there, which is harmless.
    ///
    /// If it stops half-way, the record is there and the next call goes on by it; or it is
    /// not, and what is exported with nobody on record is closed by the next call, whichever
    /// it is. The host is told to the node only when all three were seen.
    ///
    /// Between the look and this change another controller could attach the volume to another
    /// node, and this would take its record away: REST has no change that depends on what is
    /// there. Within one controller operations on a volume exclude each other; and what one
    /// that died had sent is done before this one's look, since the appliance takes the
    /// requests of one user in turn. So there must not be two that change things (README,
    /// "run one controller").
    async fn attach(
        &self,
        request: &PublishRequest,
        item: &DiskItem,
        tag: &OwnerTag,
        node: NodeKey,
    ) -> Result<HostNqn, Error> {
        let volume = &request.volume;
        if item.export {
            tracing::warn!("exported with nobody on record: turning it off before attaching");
        }
        if item.export || !admits_nobody(item) {
            let close = vec![Property::Export(Switch::Off), Property::AllowHost(HostNqn::closed())];
            self.change(volume, "closing it", close).await?;
        }
        let host = HostNqn::random();
        let sharing = request.sharing;
        let stage =
            Stage::Attached(Attachment { node, host: host.clone(), sharing, since: unix_time() });
        let attached = vec![
            Property::Comment(tag.at(stage)),
            Property::AllowHost(host.clone()),
            Property::Export(Switch::On),
        ];
        crash::point("publish.looked");
        self.change(volume, "attaching", attached).await?;
        crash::point("publish.attached");
        tracing::info!("attached");
        Ok(host)
    }

    /// An attachment that is on record: everything as it says, whatever is missing. The
    /// allowed host is never corrected under an export that is on, nor together with turning
    /// it on: who is connected by the wrong one has to go first.
    async fn resume(
        &self,
        volume: &VolumeId,
        item: &DiskItem,
        host: HostNqn,
    ) -> Result<HostNqn, Error> {
        let right = item.allow_host == host.as_str();
        if !right {
            if item.export {
                tracing::warn!("exported to another host NQN than the one on record: correcting");
            }
            let allow = vec![Property::Export(Switch::Off), Property::AllowHost(host.clone())];
            self.change(volume, "correcting the allowed host", allow).await?;
        }
        if !right || !item.export {
            self.export_on(volume).await?;
        }
        Ok(host)
    }

    async fn export_on(&self, volume: &VolumeId) -> Result<(), Error> {
        let on = vec![Property::Export(Switch::On)];
        self.change(volume, "turning the export on", on).await.map(drop)
    }

    /// Detaches the volume from a node, or from all; on return the node cannot have it.
    /// That there is no such volume here is [`Error::NotFound`].
    pub(crate) async fn unpublish(
        &self,
        volume: &VolumeId,
        node: Option<&NodeName>,
    ) -> Result<(), Error> {
        let (item, tag) = self.existing(volume).await?;
        let key = node.map(NodeKey::of);
        match unpublish(&tag.stage, item.export, key.as_ref()) {
            Unpublish::Nothing => {
                tracing::debug!("not attached to this node");
                return Ok(());
            }
            Unpublish::Close => {}
        }
        let begun = |e: Error| e.after_change(format!("detaching {volume}"));
        self.export_off(volume).await.map_err(begun)?;
        crash::point("unpublish.off");
        // Closed to everybody rather than cleared: an empty allow list admits any host, and
        // a late export request, or a hand, might still turn the export on.
        let closed = HostNqn::closed();
        let ready = match tag.stage {
            Stage::Deleting | Stage::Filling(_) => tag.clone(),
            Stage::Ready | Stage::Attached(_) => tag.at(Stage::Ready),
        };
        let clear = vec![
            Property::Export(Switch::Off),
            Property::AllowHost(closed),
            Property::Comment(ready),
        ];
        self.change(volume, "clearing the attachment", clear).await.map_err(begun)?;
        tracing::info!("detached");
        Ok(())
    }

    /// Where the node finds the volume: the port is the item's own.
    async fn portal(&self, request: &PublishRequest, item: &DiskItem) -> Result<Portal, Error> {
        let host = match (&request.nvme_address, &self.settings.nvme_address) {
            (Some(address), _) => address.as_str(),
            (None, Some(host)) => host.as_str(),
            (None, None) => self.settings.rds.host(),
        };
        let port = item.port.ok_or_else(|| {
            Error::Refused(format!("the appliance's item {} has no NVMe/TCP port", item.slot))
        })?;
        Ok(Portal::new(portal::address_of(host).await?, port))
    }
}

/// Whether the item is closed to every host there is.
fn admits_nobody(item: &DiskItem) -> bool {
    item.allow_host.parse::<HostNqn>().is_ok_and(|host| host.is_closed())
}

fn held_by(volume: &VolumeId, holder: &Attachment, wanted: Sharing) -> String {
    let since = Duration::from_secs(unix_time().saturating_sub(holder.since)).as_secs();
    let mut text = format!(
        "volume {volume} is attached to node {} (for {since} s); it must be detached there first",
        holder.node
    );
    if wanted == Sharing::Shared && holder.sharing == Sharing::Shared {
        text.push_str(
            ". A second node for a ReadWriteMany block volume (live migration) comes with a later version",
        );
    }
    text
}

/// For people who read the comment; nothing is decided by it.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
