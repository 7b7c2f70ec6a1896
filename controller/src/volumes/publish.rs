//! ControllerPublishVolume and ControllerUnpublishVolume: who may connect, enforced by the
//! target. The rules are in [`crate::rules::attach`]; here they are carried out, one change
//! after the other, until they say that nothing is missing.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rds_csi_proto::context::PublishContext;
use rds_csi_proto::ids::{HostNqn, NodeName, Nqn, Portal, VolumeId};

use super::{News, PublishRequest, Volumes, portal};
use crate::crash;
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::routeros::wire::{Property, Switch};
use crate::rules::attach::{self, Change, Departure, Export, MayShare, Step, View};
use crate::rules::attachment::Grant;
use crate::rules::owner::{NodeKey, OwnerTag, Stage};

/// More changes than any rule needs from anywhere. One more, and somebody else is changing
/// the item at the same time.
const CHANGES_AT_MOST: usize = 6;

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
        let portal = self.portal(request.nvme_address.as_deref(), &item).await?;
        let nqn: Nqn = item.nqn.parse().map_err(|e| {
            Error::Refused(format!("the appliance's item {volume} cannot be exported: {e}"))
        })?;
        let wanted = attach::Publish {
            node: NodeKey::of(&request.node),
            sharing: request.sharing,
            hosts: self.settings.attach.hosts,
            may_share: self.may_share(request, &tag).await,
            limit: request.migration_timeout.as_secs(),
            now: unix_time(),
            fresh: HostNqn::random(),
            closed: HostNqn::closed(),
        };
        let what = format!("attaching {volume} to {}", request.node);
        let Grant { host, arrival } = self
            .carry_out("publish", &what, Some(&request.node), item, tag, |view| {
                attach::publish(view, &wanted)
            })
            .await?;
        Ok(PublishContext { nqn, host_nqn: host, portal, arrival }.to_map())
    }

    /// Detaches the volume from a node, or from all; on return the node cannot have it.
    /// That there is no such volume here is [`Error::NotFound`].
    pub(crate) async fn unpublish(
        &self,
        volume: &VolumeId,
        node: Option<&NodeName>,
    ) -> Result<(), Error> {
        let (item, tag) = self.existing(volume).await?;
        let wanted = attach::Unpublish {
            node: node.map(NodeKey::of),
            // Nothing here knows of a node's sessions; that it is asked for is no proof.
            departure: Departure::Unproven,
            now: unix_time(),
            closed: HostNqn::closed(),
        };
        let what = format!("detaching {volume}");
        self.carry_out("unpublish", &what, node, item, tag, |view| attach::unpublish(view, &wanted))
            .await
    }

    /// Whether a second node may come. Kubernetes is asked only where that is the question.
    async fn may_share(&self, request: &PublishRequest, tag: &OwnerTag) -> MayShare {
        if request.allow_shared_block || self.settings.attach.allow_shared_block {
            return MayShare::Yes;
        }
        if let Some(users) = &self.settings.users {
            let node = NodeKey::of(&request.node);
            return match &tag.stage {
                Stage::Attached(held) if held.may_be_joined_by(&node) => {
                    users.may_share(&request.volume, &request.node).await
                }
                _ => MayShare::Unproven("it was attached only now; try again".into()),
            };
        }
        MayShare::Unproven(
            "this controller cannot see whether all users of the volume are one KubeVirt \
             machine; if they agree among themselves who writes, set allowSharedBlock: \"true\" \
             in the StorageClass, or start the controller with --allow-shared-block"
                .into(),
        )
    }

    /// Looks, decides, changes, until nothing is missing.
    async fn carry_out<T>(
        &self,
        call: &str,
        what: &str,
        node: Option<&NodeName>,
        mut item: DiskItem,
        mut tag: OwnerTag,
        decide: impl Fn(View<'_>) -> Step<T>,
    ) -> Result<T, Error> {
        let volume = tag.volume.clone();
        let mut begun = false;
        // The sidecars take a final code for "nothing was done".
        let failed = |e: Error, begun: bool| if begun { e.after_change(what) } else { e };
        for _ in 0..=CHANGES_AT_MOST {
            self.attachments.saw(&volume, &tag.stage);
            let exported = self.may_be_exported(&item, &tag).await.map_err(|e| failed(e, begun))?;
            let view = View { stage: &tag.stage, exported, allow: &item.allow_host };
            let change = match decide(view) {
                Step::Change(change) => change,
                Step::Done(done) => {
                    self.story.stands(&volume, &tag.stage, node);
                    if begun {
                        tracing::info!("{what}: done");
                    }
                    return Ok(done);
                }
                Step::Refused(why) => {
                    let text = why.message(&volume, unix_time());
                    let refusal = match why {
                        attach::Refusal::OtherTerms => Error::Exists(text),
                        _ => Error::Refused(text),
                    };
                    return Err(failed(refusal, begun));
                }
            };
            begun = true;
            let seen =
                self.apply(call, &volume, &tag, &change).await.map_err(|e| failed(e, true))?;
            let now = unix_time();
            self.attachments.changed(&volume, &tag.stage, &change, now);
            let (volume, before, change) = (&volume, &tag.stage, &change);
            self.story.changed(&News { volume, node, before, change, now });
            (item, tag) = seen;
        }
        Err(failed(
            Error::NotConfirmed {
                what: format!("{what}: it is changed by somebody else"),
                seconds: 0,
            },
            true,
        ))
    }

    /// Makes one change, and gives the item as it reads afterwards.
    async fn apply(
        &self,
        call: &str,
        volume: &VolumeId,
        tag: &OwnerTag,
        change: &Change,
    ) -> Result<(DiskItem, OwnerTag), Error> {
        let why = change.why;
        tracing::debug!(?change, "changing the attachment");
        if matches!(why, attach::Why::Close | attach::Why::Correct) {
            tracing::warn!("not as recorded: {}", why.text());
        }
        let mut properties = Vec::new();
        if let Some(stage) = &change.stage {
            properties.push(Property::Comment(tag.at(stage.clone())));
        }
        if let Some(allow) = &change.allow {
            properties.push(Property::AllowHosts(allow.clone()));
        }
        if let Some(export) = change.export {
            let switch = if export == Export::On { Switch::On } else { Switch::Off };
            properties.push(Property::Export(switch));
        }
        crash::point(&format!("{call}.{}.before", why.word()));
        let item = self.change(volume, why.text(), properties).await?;
        crash::point(&format!("{call}.{}.after", why.word()));
        let tag = self.must_be_ours(&item, volume)?;
        if change.export == Some(Export::Off) {
            self.wait_until_off(&item, &tag).await?;
        }
        Ok((item, tag))
    }

    /// Where the node finds the volume: the port is the item's own.
    pub(super) async fn portal(
        &self,
        given: Option<&str>,
        item: &DiskItem,
    ) -> Result<Portal, Error> {
        let host = match (given, &self.settings.nvme_address) {
            (Some(address), _) => address,
            (None, Some(host)) => host.as_str(),
            (None, None) => self.settings.rds.host(),
        };
        let port = item.port.ok_or_else(|| {
            Error::Refused(format!("the appliance's item {} has no NVMe/TCP port", item.slot))
        })?;
        Ok(Portal::new(portal::address_of(host).await?, port))
    }
}

/// The migration's clock, on which all controllers must agree.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
