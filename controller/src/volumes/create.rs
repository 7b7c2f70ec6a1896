//! CreateVolume.
//!
//! One `add` makes file, item, NQN and owner tag together, not exported, and closed to every
//! host. So there is nothing in between to clean up: after a failure the item is either not
//! there, or there and ours, and the next call finds out which.

use std::collections::HashMap;
use std::net::IpAddr;

use rds_csi_proto::csi::{self, CreateVolumeRequest, TopologyRequirement};
use rds_csi_proto::ids::{HostNqn, Nqn, RdsName, VolumeId};
use rds_csi_proto::params::{KNOWN_KEYS, VolumeParams, context_keys};

use super::place::Place;
use super::{Pace, Volumes, foreign, portal, publish::unix_time};
use crate::crash;
use crate::error::Error;
use crate::routeros::{ApplianceError, DiskItem, NewDisk};
use crate::rules::capability;
use crate::rules::owner::{ClassHash, Notes, OwnerTag, Ownership, Stage};
use crate::rules::path::AppliancePath;
use crate::rules::size::{SizePlan, csi_bytes};
use crate::rules::source::Source;

/// CSI limits names to 128 bytes.
const NAME_MAX: usize = 128;

/// What a request asks for, checked.
#[derive(Debug, Clone)]
pub(crate) struct CreatePlan {
    pub(crate) volume: VolumeId,
    pub(super) size: SizePlan,
    /// What it is filled from.
    pub(crate) source: Option<Source>,
    pub(super) params: VolumeParams,
    pub(super) wanted: Option<TopologyRequirement>,
    /// The StorageClass's own keys, as given.
    pub(super) given: HashMap<String, String>,
}

impl CreatePlan {
    /// Checks all of a request that can be checked without the appliance.
    pub(crate) fn new(request: CreateVolumeRequest) -> Result<Self, Error> {
        if request.name.is_empty() || request.name.len() > NAME_MAX {
            return Err(Error::Invalid(format!("name is required, 1 to {NAME_MAX} bytes")));
        }
        capability::check_all(&request.volume_capabilities)?;
        if !request.mutable_parameters.is_empty() {
            return Err(Error::Invalid(
                "mutable_parameters: VolumeAttributesClass is not supported by this version".into(),
            ));
        }
        let range = request.capacity_range.map(|r| (r.required_bytes, r.limit_bytes));
        let size = SizePlan::new(range)?;
        let params = VolumeParams::from_storage_class(&request.parameters)?;
        let source = request.volume_content_source.map(Source::from_csi).transpose()?;
        let given = request
            .parameters
            .into_iter()
            .filter(|(key, value)| KNOWN_KEYS.contains(&key.as_str()) && !value.is_empty())
            .collect();
        let wanted = request.accessibility_requirements;
        let volume = VolumeId::from_request_name(&request.name);
        Ok(Self { volume, size, source, params, wanted, given })
    }

    /// Which appliance is meant, by name.
    pub(crate) fn rds(&self) -> Option<&RdsName> {
        self.params.rds.as_ref()
    }

    /// Which appliance is meant, by address.
    pub(crate) fn rds_address(&self) -> Option<&str> {
        self.params.rds_address.as_deref()
    }

    /// Where the volume is wanted.
    pub(crate) fn wanted(&self) -> Option<&TopologyRequirement> {
        self.wanted.as_ref()
    }

    fn class(&self) -> ClassHash {
        // What it is made from belongs to it: so a repeated request is told from another one
        // without a further field in the tag, which an attachment fills to the brim.
        let source = self.source.as_ref().map(ToString::to_string);
        let given = self.given.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        ClassHash::of(given.chain(source.iter().map(|id| ("", id.as_str()))))
    }
}

impl Volumes {
    /// Makes the volume, or finds that it was made.
    pub(crate) async fn create(&self, plan: &CreatePlan) -> Result<csi::Volume, Error> {
        let directory = self.directory(plan.params.volume_path.as_deref())?;
        let nvme_address = self.nvme_address(plan).await?;
        let nqn: Nqn = format!("nqn.2000-02.com.mikrotik:{}", plan.volume)
            .parse()
            .map_err(|e| Error::Internal(format!("{e}")))?;
        let place = self.place(&plan.volume, &directory).await?;
        let mut found = self.look(plan, &place).await?;
        crash::point("create.looked");
        if let Some(item) = &found
            && let Stage::Filling(_) = self.check_existing(plan, item, &directory)?
        {
            // Whoever filled it is gone: operations on one volume exclude each other.
            tracing::warn!("a volume that was begun and not filled is made anew");
            self.discard_filling(&plan.volume, item)
                .await
                .map_err(|e| e.after_change(begun(plan)))?;
            found = None;
        }
        if found.is_none() {
            match &plan.source {
                None => {
                    let tag = self.tag(plan, Stage::Ready);
                    self.make(plan, &place, &nqn, &tag, HostNqn::closed()).await?;
                }
                Some(source) => self.make_from(plan, source, &place, &nqn).await?,
            }
        }
        crash::point("create.added");
        // What is there counts, not what was asked for.
        let item = match found.filter(|item| item.size.is_some_and(|s| is_whole(plan, s))) {
            Some(item) => item,
            None => self.wait_for_size(plan).await.map_err(|e| match e {
                e @ Error::Exists(_) => e,
                e => e.after_change(begun(plan)),
            })?,
        };
        crash::point("create.sized");
        tracing::info!(bytes = item.size, file = item.file_path, "volume is there");
        self.describe(plan, &item, nvme_address)
    }

    /// What there is already of the volume.
    ///
    /// Where the file needs nothing around it, it is looked at first: if it is not there,
    /// neither is a whole volume, and an item without one makes the appliance refuse `add`. So
    /// the item has to be looked at only where there is something.
    async fn look(&self, plan: &CreatePlan, place: &Place) -> Result<Option<DiskItem>, Error> {
        let alone = plan.source.is_none() && place.subvolume.is_none();
        if alone && self.appliance.file(&place.file).await?.is_none() {
            return Ok(None);
        }
        let found = self.appliance.disk(&plan.volume).await?;
        if found.is_none() {
            self.refuse_leftover(&place.file).await?;
        }
        Ok(found)
    }

    pub(super) fn directory(&self, given: Option<&str>) -> Result<AppliancePath, Error> {
        let roots = &self.settings.roots;
        let default = roots.first().ok_or_else(|| Error::Internal("no --volume-path".into()))?;
        let Some(given) = given else { return Ok(default.clone()) };
        let given: AppliancePath = given.parse().map_err(Error::Invalid)?;
        if roots.iter().any(|root| given.is_within(root)) {
            return Ok(given);
        }
        let allowed: Vec<_> = roots.iter().map(AppliancePath::as_str).collect();
        Err(Error::Invalid(format!(
            "StorageClass parameter volumePath has the value {given}; accepted is a directory in {} \
             (the controller's --volume-path)",
            allowed.join(", ")
        )))
    }

    async fn nvme_address(&self, plan: &CreatePlan) -> Result<IpAddr, Error> {
        match (plan.params.nvme_address, &self.settings.nvme_address) {
            (Some(address), _) => Ok(address),
            (None, Some(host)) => portal::address_of(host.as_str()).await,
            (None, None) => portal::address_of(self.settings.rds.host()).await,
        }
    }

    /// Whether what is there is what was asked for, made by an earlier call.
    fn check_existing(
        &self,
        plan: &CreatePlan,
        item: &DiskItem,
        directory: &AppliancePath,
    ) -> Result<Stage, Error> {
        let volume = &plan.volume;
        let tag = match self.judge(item, volume) {
            Ownership::Ours(tag) => tag,
            Ownership::Foreign(why) => return Err(Error::Exists(foreign(volume, &why))),
        };
        let differs =
            |what: String| Error::Exists(format!("volume {volume} exists already, but {what}"));
        if tag.stage == Stage::Deleting {
            return Err(Error::Refused(format!(
                "volume {volume} is being deleted; try again later"
            )));
        }
        if let Some(size) = item.size.filter(|s| !plan.size.admits(*s)) {
            return Err(differs(format!(
                "its size is {size} bytes, which is not what is asked for"
            )));
        }
        let home = directory.volume_home(volume);
        let places = [directory.volume_file(volume), home.file_in_subvolume()];
        if !places.iter().any(|file| file.is(&item.file_path)) {
            return Err(differs(format!(
                "its file is {:?}, not {} or {}",
                item.file_path, places[0], places[1]
            )));
        }
        if item.port != Some(plan.params.nvme_port) {
            return Err(differs(format!(
                "its NVMe/TCP port is {:?}, not {}",
                item.port, plan.params.nvme_port
            )));
        }
        if tag.class.as_ref().is_some_and(|class| *class != plan.class()) {
            return Err(differs(
                "it was made with other StorageClass parameters, or from another source".into(),
            ));
        }
        // Volumes of older drivers have no class, and were made from nothing.
        if tag.class.is_none() && plan.source.is_some() {
            return Err(differs("it was not made from a snapshot or another volume".into()));
        }
        Ok(tag.stage)
    }

    /// A file without an item is somebody's data whose item was lost. A new item on it would
    /// hand that data to a stranger.
    async fn refuse_leftover(&self, file: &AppliancePath) -> Result<(), Error> {
        match self.appliance.file(file).await? {
            None => Ok(()),
            Some(_) => Err(Error::Refused(format!(
                "file {file} exists on the appliance without a disk item, and is not touched; \
                 if nobody needs it, remove it by hand"
            ))),
        }
    }

    /// Makes file and item in a place that is known to be free.
    pub(super) async fn make(
        &self,
        plan: &CreatePlan,
        place: &Place,
        nqn: &Nqn,
        tag: &OwnerTag,
        closed: HostNqn,
    ) -> Result<(), Error> {
        self.prepare(&plan.volume, place).await.map_err(|e| e.after_change(begun(plan)))?;
        crash::point("create.prepared");
        let added = self
            .appliance
            .add_disk(NewDisk {
                volume: plan.volume.clone(),
                file: place.file.clone(),
                size: plan.size.size,
                nqn: nqn.clone(),
                port: plan.params.nvme_port,
                closed,
                tag: tag.clone(),
            })
            .await;
        match added {
            // Without an answer, what is there afterwards decides.
            Ok(()) | Err(ApplianceError::Ambiguous { .. }) => Ok(()),
            Err(e) if e.is_refusal() => self.after_refusal(plan, place, e).await,
            Err(e) => Err(Error::from(e).after_change(begun(plan))),
        }
    }

    pub(super) fn tag(&self, plan: &CreatePlan, stage: Stage) -> OwnerTag {
        OwnerTag {
            cluster: self.settings.cluster.clone(),
            volume: plan.volume.clone(),
            class: Some(plan.class()),
            notes: Notes {
                made: u32::try_from(unix_time()).ok(),
                bare: !plan.params.session.shield,
                growing: false,
            },
            stage,
        }
    }

    /// The appliance said no. The texts for a full pool and the like are not documented, so
    /// what is there afterwards counts; and nothing may stay behind that would be in the way
    /// of the next attempt.
    async fn after_refusal(
        &self,
        plan: &CreatePlan,
        place: &Place,
        refusal: ApplianceError,
    ) -> Result<(), Error> {
        self.pools.forget();
        let begun = |e: Error| e.after_change(begun(plan));
        match self.appliance.disk(&plan.volume).await {
            Err(e) => return Err(begun(e.into())),
            Ok(Some(item)) => {
                let directory = self.directory(plan.params.volume_path.as_deref())?;
                return match self.check_existing(plan, &item, &directory)? {
                    Stage::Filling(_) => Err(Error::Refused(format!(
                        "volume {} is still being filled with its content",
                        plan.volume
                    ))),
                    _ => Ok(()),
                };
            }
            Ok(None) => {}
        }
        // It was not there a moment ago, so it is of our own making.
        self.delete_file(&place.file).await.map_err(begun)?;
        self.delete_home(&plan.volume, &place.file).await.map_err(begun)?;
        Err(Error::NotMade { volume: plan.volume.clone(), size: plan.size.size, cause: refusal })
    }

    pub(super) async fn wait_for_size(&self, plan: &CreatePlan) -> Result<DiskItem, Error> {
        let volume = &plan.volume;
        let pace = Pace::start();
        let item = loop {
            let item = self.appliance.disk(volume).await?;
            if let Some(item) = &item
                && item.size.is_some_and(|s| is_whole(plan, s))
            {
                break item.clone();
            }
            match (pace.again(&format!("creation of {volume}")).await, item) {
                (Ok(()), _) => {}
                // It is there, and has not the size that was asked for.
                (Err(_), Some(item)) => break item,
                (Err(error), None) => return Err(error),
            }
        };
        match item.size {
            Some(size) if plan.size.admits(size) => Ok(item),
            size => Err(Error::Internal(format!(
                "the appliance shows {size:?} bytes for {volume}, where {} were asked for; is the \
                 pool full?",
                plan.size.size
            ))),
        }
    }

    fn describe(
        &self,
        plan: &CreatePlan,
        item: &DiskItem,
        nvme_address: IpAddr,
    ) -> Result<csi::Volume, Error> {
        let mut context = plan.given.clone();
        let mut put = |key: &str, value: String| context.insert(key.to_owned(), value);
        put("rds", self.settings.name.to_string());
        put("rdsAddress", self.settings.rds.host().to_owned());
        put("nvmeAddress", nvme_address.to_string());
        put("nvmePort", item.port.unwrap_or(plan.params.nvme_port).to_string());
        put(context_keys::NQN, item.nqn.clone());
        put(context_keys::VOLUME_PATH, format!("/{}", item.file_path.trim_start_matches('/')));
        if let Some(source) = &plan.source {
            put(context_keys::MADE_FROM, source.to_string());
        }
        Ok(csi::Volume {
            capacity_bytes: csi_bytes(item.size.unwrap_or_default())?,
            volume_id: plan.volume.to_string(),
            volume_context: context,
            content_source: plan.source.as_ref().map(Source::to_csi),
            accessible_topology: self.settings.topology.to_csi(),
        })
    }
}

/// Where it is made from something, that says how large it becomes.
fn is_whole(plan: &CreatePlan, size: u64) -> bool {
    match plan.source {
        None => size >= plan.size.size,
        Some(_) => plan.size.admits(size),
    }
}

pub(super) fn begun(plan: &CreatePlan) -> String {
    format!("CreateVolume of {}", plan.volume)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rds_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume};
    use rds_csi_proto::csi::{CapacityRange, VolumeCapability, VolumeContentSource};
    use tonic::Code;

    fn request() -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".into(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
            volume_capabilities: vec![VolumeCapability {
                access_type: Some(AccessType::Block(BlockVolume {})),
                access_mode: Some(AccessMode { mode: 1 }),
            }],
            ..CreateVolumeRequest::default()
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_before_the_appliance_is_asked() {
        assert_eq!(CreatePlan::new(request()).unwrap().volume.as_str(), request().name);
        let refused: [fn(&mut CreateVolumeRequest); 6] = [
            |r| r.name.clear(),
            |r| r.name = "x".repeat(129),
            |r| r.volume_capabilities.clear(),
            |r| r.volume_content_source = Some(VolumeContentSource::default()),
            |r| r.capacity_range = Some(CapacityRange::default()),
            |r| {
                r.parameters.insert("shields".into(), "true".into());
            },
        ];
        for change in refused {
            let mut bad = request();
            change(&mut bad);
            assert_eq!(CreatePlan::new(bad).unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn the_class_does_not_depend_on_what_the_provisioner_adds() {
        let plain = CreatePlan::new(request()).unwrap().class();
        let mut with = request();
        with.parameters.insert("csi.storage.k8s.io/pvc/name".into(), "x".into());
        assert_eq!(CreatePlan::new(with).unwrap().class(), plain);
        let mut other = request();
        other.parameters.insert("shield".into(), "false".into());
        assert_ne!(CreatePlan::new(other).unwrap().class(), plain);
    }
}
