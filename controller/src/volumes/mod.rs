//! What is done to volumes: create, delete, expand, attach, detach, list. Each operation looks at the item
//! first, changes as little as needed, and reads back what it changed; each can be repeated
//! from any point at which it may have stopped.

mod adopt;
mod attachments;
mod copying;
mod create;
mod delete;
mod expand;
mod look;
mod place;
pub(crate) mod portal;
mod progress;
mod proof;
mod publish;
mod request;
mod snapshots;
mod source;
mod story;

pub(crate) use adopt::Disks;
pub(crate) use attachments::{Attachments, ended};
pub(crate) use create::CreatePlan;
pub(crate) use look::Seen;
pub(crate) use proof::{AttachSettings, ExportProof};
pub(crate) use request::PublishRequest;
pub(crate) use snapshots::{ListPlan, SnapshotPlan, page};
pub(crate) use story::{News, Silence, Story};

use std::sync::Arc;
use std::time::Duration;

use rds_csi_proto::ids::{NodeName, RdsName, VolumeId};
use tokio::time::Instant;

use crate::config::{Host, RdsUrl};
use crate::error::Error;
use crate::kubernetes::users::Users;
use crate::routeros::wire::{Property, Slot};
use crate::routeros::{Appliance, ApplianceError, DiskItem};
use crate::rules::owner::{ClusterId, OwnerTag, Ownership, judge};
use crate::rules::path::AppliancePath;
use crate::rules::topology::Segments;

/// How long a change may take to show. Exports and files appear some time after the request
/// (creation of 1 GiB: 0.4 s); a file of many terabytes takes longer and is asked for again.
const CONFIRM_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked at.
const CONFIRM_EVERY: Duration = Duration::from_millis(200);

/// What the operations need to know.
pub(crate) struct Settings {
    pub(crate) cluster: ClusterId,
    /// What the appliance is called.
    pub(crate) name: RdsName,
    /// Where volume files may be; the first is the default.
    pub(crate) roots: Vec<AppliancePath>,
    pub(crate) rds: RdsUrl,
    pub(crate) nvme_address: Option<Host>,
    /// Where the appliance is reached from.
    pub(crate) topology: Segments,
    /// The nodes that exist; none given means that they are not known.
    pub(crate) nodes: Vec<NodeName>,
    pub(crate) attach: AttachSettings,
    /// Asks Kubernetes who uses a volume; without it nobody does.
    pub(crate) users: Option<Users>,
}

/// Whose item has a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Ours,
    Foreign,
    Absent,
}

/// The volumes of one appliance.
pub(crate) struct Volumes {
    settings: Settings,
    appliance: Arc<Appliance>,
    pools: place::Pools,
    copies: progress::Copies,
    attachments: Arc<Attachments>,
    story: Arc<dyn Story>,
    proof: ExportProof,
}

impl Volumes {
    pub(crate) fn new(
        settings: Settings,
        appliance: Arc<Appliance>,
        attachments: Arc<Attachments>,
        story: Arc<dyn Story>,
    ) -> Self {
        let proof = ExportProof::new(settings.attach.prove_off);
        let (pools, copies) = (place::Pools::default(), progress::Copies::default());
        Self { settings, appliance, pools, copies, attachments, story, proof }
    }

    pub(crate) fn name(&self) -> &RdsName {
        &self.settings.name
    }

    pub(crate) fn rds_host(&self) -> &str {
        self.settings.rds.host()
    }

    pub(crate) fn nodes(&self) -> &[NodeName] {
        &self.settings.nodes
    }

    pub(crate) fn topology(&self) -> &Segments {
        &self.settings.topology
    }

    /// How far a volume is that is being filled, if it is.
    pub(crate) fn filled_so_far(&self, volume: &VolumeId) -> Option<String> {
        self.copies.to(&volume.into()).map(|progress| progress.to_string())
    }

    pub(crate) async fn probe(&self) -> Result<(), Error> {
        Ok(self.appliance.probe().await?)
    }

    /// Whether the volume exists and is ours; anything else is an error.
    pub(crate) async fn must_exist(&self, volume: &VolumeId) -> Result<DiskItem, Error> {
        Ok(self.existing(volume).await?.0)
    }

    /// Whether there is an item of the volume's name here, and whose.
    pub(crate) async fn presence(&self, volume: &VolumeId) -> Result<Presence, Error> {
        Ok(match self.appliance.disk(volume).await? {
            None => Presence::Absent,
            Some(item) => match self.judge(&item, volume) {
                Ownership::Ours(_) => Presence::Ours,
                Ownership::Foreign(_) => Presence::Foreign,
            },
        })
    }

    /// The item and its tag; no item is [`Error::NotFound`], one that is not ours is refused.
    async fn existing(&self, volume: &VolumeId) -> Result<(DiskItem, OwnerTag), Error> {
        self.ours(volume).await?.ok_or_else(|| Error::NotFound(volume.to_string()))
    }

    /// The item and its tag, if there is an item; one that is not ours is refused.
    async fn ours(&self, volume: &VolumeId) -> Result<Option<(DiskItem, OwnerTag)>, Error> {
        let Some(item) = self.appliance.disk(volume).await? else { return Ok(None) };
        let tag = self.must_be_ours(&item, volume)?;
        Ok(Some((item, tag)))
    }

    /// The item's tag; an item that is not ours is refused.
    fn must_be_ours(&self, item: &DiskItem, volume: &VolumeId) -> Result<OwnerTag, Error> {
        match self.judge(item, volume) {
            Ownership::Ours(tag) => Ok(tag),
            Ownership::Foreign(why) => Err(Error::Refused(foreign(volume, &why))),
        }
    }

    fn judge(&self, item: &DiskItem, volume: &VolumeId) -> Ownership {
        judge(&item.slot, &item.comment, volume, &self.settings.cluster)
    }

    /// Changes the item and waits until it reads as it was set. The answer may show that at
    /// once. A change without an answer is judged by what is there afterwards.
    async fn change(
        &self,
        slot: impl Into<Slot>,
        what: &str,
        properties: Vec<Property>,
    ) -> Result<DiskItem, Error> {
        let slot = slot.into();
        let as_set = |item: &DiskItem| properties.iter().all(|p| item.shows(p));
        let mut unanswered = None;
        let mut shown = false;
        match self.appliance.set_disk(slot.clone(), properties.clone()).await {
            Ok(Some(item)) if as_set(&item) => return Ok(item),
            Ok(item) => shown = item.is_some(),
            Err(e @ ApplianceError::Ambiguous { .. }) => unanswered = Some(e),
            Err(e) => return Err(e.into()),
        }
        let pace = Pace::start();
        if shown {
            pace.again(&format!("{what} of {slot}")).await?;
        }
        loop {
            let item = self.appliance.disk(slot.clone()).await?;
            let item = item.ok_or_else(|| Error::NotFound(slot.to_string()))?;
            if as_set(&item) {
                return Ok(item);
            }
            match (pace.again(&format!("{what} of {slot}")).await, unanswered.clone()) {
                (Ok(()), _) => {}
                (Err(_), Some(cause)) => return Err(cause.into()),
                (Err(error), None) => return Err(error),
            }
        }
    }
}

/// The rhythm of looking whether a change shows.
struct Pace(Instant);

impl Pace {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Waits until it is time to look again, or says that it has been long enough.
    async fn again(&self, what: &str) -> Result<(), Error> {
        let taken = self.0.elapsed();
        if taken >= CONFIRM_LIMIT {
            return Err(Error::NotConfirmed { what: what.to_owned(), seconds: taken.as_secs() });
        }
        tokio::time::sleep(CONFIRM_EVERY).await;
        Ok(())
    }
}

fn foreign(volume: &VolumeId, why: &str) -> String {
    format!("the appliance's item {volume} is not ours and is left alone: {why}")
}
