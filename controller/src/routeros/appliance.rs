//! The typed interface. One request at a time, in order, which is what the appliance does
//! with the requests of one user anyway; and none at all until it has proven that it is in
//! its right mind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rds_csi_proto::ids::{HostNqn, Nqn, RdsName, VolumeId};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::disk::{
    self, COMMENT_PROPS, DISK_PROPS, DiskComment, DiskItem, DiskUse, FILE_PROPS, FileItem,
    SPACE_PROPS, USE_PROPS,
};
use super::error::ApplianceError;
use super::gate::Gate;
use super::version::{FLOOR, Version};
use super::wire::{Menu, Property, Request, Row, Slot, Switch, Target, Transport};
use crate::crash;
use crate::metrics::Metrics;
use crate::rules::capacity::DiskSpace;
use crate::rules::owner::OwnerTag;
use crate::rules::path::AppliancePath;
use crate::rules::snapshot::SnapTag;

/// How long a request waits for those before it. The caller's own deadline is longer, and
/// it is told that the appliance is busy instead of hearing nothing.
const QUEUE_LIMIT: Duration = Duration::from_secs(45);

/// After a boot the appliance answers with nonsense for a moment, and one good answer may
/// be an accident between two bad ones. So two are needed, this far apart.
const PROOF_GAP: Duration = Duration::from_millis(250);

/// A client of one appliance.
pub struct Appliance {
    name: Option<RdsName>,
    transport: Mutex<Box<dyn Transport>>,
    takes_several: bool,
    proven: AtomicBool,
    metrics: Arc<Metrics>,
    gate: Arc<Gate>,
}

/// Everything that a new volume's item is made with.
#[derive(Debug, Clone)]
pub struct NewDisk {
    pub volume: VolumeId,
    pub file: AppliancePath,
    pub size: u64,
    pub nqn: Nqn,
    pub port: u16,
    /// A host NQN that was never given to anybody: nobody may connect.
    pub closed: HostNqn,
    pub tag: OwnerTag,
}

/// Everything that the record of a snapshot is made with.
#[derive(Debug, Clone)]
pub struct NewRecord {
    pub slot: Slot,
    pub file: AppliancePath,
    pub size: u64,
    /// As in [`NewDisk`].
    pub closed: HostNqn,
    pub tag: SnapTag,
}

impl Appliance {
    /// Over any transport. Nothing is sent yet.
    #[must_use]
    pub fn new(transport: Box<dyn Transport>, metrics: Arc<Metrics>) -> Self {
        let (takes_several, proven) = (transport.takes_several(), AtomicBool::new(false));
        let gate = Arc::new(Gate::open());
        Self { name: None, transport: Mutex::new(transport), takes_several, proven, metrics, gate }
    }

    /// Called so in metrics and in the log.
    #[must_use]
    pub fn named(self, name: RdsName) -> Self {
        Self { name: Some(name), ..self }
    }

    /// Changes are sent only while this gate is open.
    #[must_use]
    pub fn behind(self, gate: Arc<Gate>) -> Self {
        Self { gate, ..self }
    }

    pub(crate) fn name(&self) -> &str {
        self.name.as_ref().map_or("", RdsName::as_str)
    }

    /// Whether the appliance is there and can be used.
    ///
    /// # Errors
    /// Why not.
    pub async fn probe(&self) -> Result<(), ApplianceError> {
        self.call(Request::Print { menu: Menu::Resource, filter: None, proplist: &["version"] })
            .await
            .map(drop)
    }

    /// An item by its slot; `None` only if the appliance says so.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn disk(&self, slot: impl Into<Slot>) -> Result<Option<DiskItem>, ApplianceError> {
        let slot = slot.into();
        let filter = Property::Slot(slot.clone());
        let items = self.print(Menu::Disk, Some(filter), DISK_PROPS, DiskItem::read).await?;
        self.only(items, "/disk/print", |item| item.slot == slot.as_str())
    }

    /// All disks with their comments.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn disk_comments(&self) -> Result<Vec<DiskComment>, ApplianceError> {
        self.print(Menu::Disk, None, COMMENT_PROPS, DiskComment::read).await
    }

    /// An item by its slot, and all disks with the files they use: one look at all of them.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn disk_among_all(
        &self,
        slot: impl Into<Slot>,
    ) -> Result<(Option<DiskItem>, Vec<DiskUse>), ApplianceError> {
        let slot = slot.into();
        let request = Request::Print { menu: Menu::Disk, filter: None, proplist: DISK_PROPS };
        let action = request.to_string();
        let rows = self.call(request).await?;
        let is_it = |row: &&Row| row.get("slot").is_some_and(|s| s == slot.as_str());
        let items: Result<Vec<_>, _> = rows.iter().filter(is_it).map(DiskItem::read).collect();
        let uses: Result<Vec<_>, _> = rows.iter().map(DiskUse::read).collect();
        let doubt = |cause| self.doubt(action.clone(), cause);
        let item = self.only(items.map_err(doubt)?, &action, |_| true)?;
        Ok((item, uses.map_err(doubt)?))
    }

    /// All disks with the files they use.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn disk_uses(&self) -> Result<Vec<DiskUse>, ApplianceError> {
        self.print(Menu::Disk, None, USE_PROPS, DiskUse::read).await
    }

    /// All items whose comment passes, read strictly; of the others nothing is read.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn disks_where(
        &self,
        passes: impl Fn(&str) -> bool,
    ) -> Result<Vec<DiskItem>, ApplianceError> {
        let request = Request::Print {
            menu: Menu::Disk,
            filter: Some(Property::TypeFile),
            proplist: DISK_PROPS,
        };
        let action = request.to_string();
        let rows = self.call(request).await?;
        rows.iter()
            .filter(|row| row.get("comment").is_some_and(|comment| passes(comment)))
            .map(DiskItem::read)
            .collect::<Result<_, _>>()
            .map_err(|cause| self.doubt(action, cause))
    }

    /// All items whose slot passes, of whatever type, read strictly; of the others nothing is
    /// read.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn disks_named(
        &self,
        passes: impl Fn(&str) -> bool,
    ) -> Result<Vec<DiskItem>, ApplianceError> {
        let request = Request::Print { menu: Menu::Disk, filter: None, proplist: DISK_PROPS };
        let action = request.to_string();
        let rows = self.call(request).await?;
        rows.iter()
            .filter(|row| row.get("slot").is_some_and(|slot| passes(slot)))
            .map(DiskItem::read)
            .collect::<Result<_, _>>()
            .map_err(|cause| self.doubt(action, cause))
    }

    /// All disks with the space that they have or take.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn space(&self) -> Result<Vec<DiskSpace>, ApplianceError> {
        self.print(Menu::Disk, None, SPACE_PROPS, disk::space).await
    }

    /// A file; `None` only if the appliance says so.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn file(&self, path: &AppliancePath) -> Result<Option<FileItem>, ApplianceError> {
        let filter = Property::FileName(path.clone());
        let items = self.print(Menu::File, Some(filter), FILE_PROPS, FileItem::read).await?;
        self.only(items, "/file/print", |item| path.is(&item.name))
    }

    /// All files.
    ///
    /// # Errors
    /// If there is any doubt.
    pub async fn files(&self) -> Result<Vec<FileItem>, ApplianceError> {
        self.print(Menu::File, None, FILE_PROPS, FileItem::read).await
    }

    /// Makes file and item, not exported.
    ///
    /// # Errors
    /// As the appliance says; after [`ApplianceError::Ambiguous`] look before trying again.
    pub async fn add_disk(&self, new: NewDisk) -> Result<(), ApplianceError> {
        let properties = vec![
            Property::Slot(new.volume.into()),
            Property::TypeFile,
            Property::FilePath(new.file),
            Property::FileSize(new.size),
            Property::NoMountFilesystem,
            Property::Export(Switch::Off),
            Property::Port(new.port),
            Property::Nqn(new.nqn),
            Property::AllowHost(new.closed),
            Property::Comment(new.tag),
        ];
        self.call(Request::Add { menu: Menu::Disk, properties }).await.map(drop)
    }

    /// Makes the record of a snapshot and its file, not exported.
    ///
    /// # Errors
    /// As [`Self::add_disk`].
    pub async fn add_record(&self, new: NewRecord) -> Result<(), ApplianceError> {
        let properties = vec![
            Property::Slot(new.slot),
            Property::TypeFile,
            Property::FilePath(new.file),
            Property::FileSize(new.size),
            Property::NoMountFilesystem,
            Property::Export(Switch::Off),
            Property::AllowHost(new.closed),
            Property::SnapTag(new.tag),
        ];
        self.call(Request::Add { menu: Menu::Disk, properties }).await.map(drop)
    }

    /// Changes properties of an item. Gives the item as it is afterwards, if the answer shows
    /// it; a change takes effect some time later than it is answered.
    ///
    /// # Errors
    /// As [`Self::add_disk`].
    pub async fn set_disk(
        &self,
        slot: impl Into<Slot>,
        properties: Vec<Property>,
    ) -> Result<Option<DiskItem>, ApplianceError> {
        let slot = slot.into();
        let set =
            |target| Request::Set { menu: Menu::Disk, target, properties: properties.clone() };
        let answer = match self.call(set(Target::Slot(slot.clone()))).await {
            Err(ApplianceError::NoSuchItem { action }) => match self.disk(slot.clone()).await? {
                // It is there, so this RouterOS does not take names: use the id, just read.
                Some(item) => self.call(set(Target::Id(item.id))).await?,
                None => return Err(ApplianceError::NoSuchItem { action }),
            },
            result => result?,
        };
        // An answer that shows anything else shows nothing: then it is looked at.
        Ok(match answer.as_slice() {
            [row] => DiskItem::read(row).ok().filter(|item| item.slot == slot.as_str()),
            _ => None,
        })
    }

    /// Removes a file and then the disk over it, in one command where that can be. That each
    /// removal was answered proves it.
    ///
    /// # Errors
    /// As [`Self::add_disk`]; the file may be gone then.
    pub async fn discard_disk(
        &self,
        slot: impl Into<Slot>,
        file: &AppliancePath,
    ) -> Result<(), ApplianceError> {
        let slot = slot.into();
        if self.takes_several {
            return self.call(Request::Discard { file: file.clone(), slot }).await.map(drop);
        }
        self.remove_file(file).await?;
        crash::point("delete.file");
        self.remove_disk(slot).await
    }

    /// Removes an item. Its file stays.
    ///
    /// # Errors
    /// As [`Self::add_disk`].
    pub async fn remove_disk(&self, slot: impl Into<Slot>) -> Result<(), ApplianceError> {
        let slot = slot.into();
        let remove = |target| Request::Remove { menu: Menu::Disk, target };
        match self.call(remove(Target::Slot(slot.clone()))).await {
            Err(ApplianceError::NoSuchItem { .. }) => match self.disk(slot).await? {
                Some(item) => self.call(remove(Target::Id(item.id))).await.map(drop),
                None => Ok(()),
            },
            result => result.map(drop),
        }
    }

    /// Removes a file, in use or not.
    ///
    /// # Errors
    /// As [`Self::add_disk`].
    pub async fn remove_file(&self, path: &AppliancePath) -> Result<(), ApplianceError> {
        let remove = |target| Request::Remove { menu: Menu::File, target };
        match self.call(remove(Target::File(path.clone()))).await {
            Err(ApplianceError::NoSuchItem { .. }) => match self.file(path).await? {
                Some(item) => self.call(remove(Target::Id(item.id))).await.map(drop),
                None => Ok(()),
            },
            result => result.map(drop),
        }
    }

    pub(super) async fn print<T>(
        &self,
        menu: Menu,
        filter: Option<Property>,
        proplist: &'static [&'static str],
        read: fn(&Row) -> Result<T, String>,
    ) -> Result<Vec<T>, ApplianceError> {
        let request = Request::Print { menu, filter, proplist };
        let action = request.to_string();
        let rows = self.call(request).await?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|cause| self.doubt(action, cause))
    }

    /// A filter that did not filter, or matched twice, is not to be built upon.
    pub(super) fn only<T>(
        &self,
        items: Vec<T>,
        action: &str,
        is_it: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, ApplianceError> {
        let found = items.len();
        let mut items = items.into_iter();
        match (items.next(), items.next()) {
            (None, _) => Ok(None),
            (Some(item), None) if is_it(&item) => Ok(Some(item)),
            _ => {
                Err(self.doubt(action.into(), format!("{found} items for a filter that fits one")))
            }
        }
    }

    pub(super) fn doubt(&self, action: String, cause: String) -> ApplianceError {
        self.proven.store(false, Ordering::Relaxed);
        let error = ApplianceError::BadAnswer { action, cause };
        self.metrics.appliance_failed(error.kind());
        error
    }

    /// A read in the background: only while nobody else uses or waits for the appliance
    /// (else `None`), and given up after `limit`.
    pub(crate) async fn when_idle(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Option<Result<Vec<Row>, ApplianceError>> {
        let mut transport = self.transport.try_lock().ok()?;
        let answer = async {
            self.ensure_proven(transport.as_mut()).await?;
            self.send(transport.as_mut(), request).await
        };
        if let Ok(result) = tokio::time::timeout(limit, answer).await {
            return Some(result);
        }
        self.metrics.appliance_up(self.name(), false);
        let cause = format!("no answer within {} s", limit.as_secs());
        Some(Err(self.doubt(request.to_string(), cause)))
    }

    pub(super) async fn call(&self, request: Request) -> Result<Vec<Row>, ApplianceError> {
        let mut transport = tokio::time::timeout(QUEUE_LIMIT, self.transport.lock())
            .await
            .map_err(|_| ApplianceError::Queue {
                action: request.to_string(),
                seconds: QUEUE_LIMIT.as_secs(),
            })?;
        self.ensure_proven(transport.as_mut()).await?;
        self.send(transport.as_mut(), &request).await
    }

    async fn ensure_proven(&self, transport: &mut dyn Transport) -> Result<(), ApplianceError> {
        if !self.proven.load(Ordering::Relaxed) {
            let version = self.prove(transport).await?;
            self.proven.store(true, Ordering::Relaxed);
            tracing::info!(rds = self.name(), %version, "the RDS answers");
        }
        Ok(())
    }

    async fn prove(&self, transport: &mut dyn Transport) -> Result<Version, ApplianceError> {
        self.ask_version(transport).await?;
        tokio::time::sleep(PROOF_GAP).await;
        self.ask_version(transport).await
    }

    async fn ask_version(&self, transport: &mut dyn Transport) -> Result<Version, ApplianceError> {
        let request = Request::Print { menu: Menu::Resource, filter: None, proplist: &["version"] };
        let rows = self.send(transport, &request).await?;
        let text = match rows.as_slice() {
            [row] => row.get("version").map(String::as_str).unwrap_or_default(),
            _ => "",
        };
        match Version::parse(text) {
            None => Err(self.doubt(request.to_string(), format!("no version in it ({text:?})"))),
            Some(v) if v < FLOOR => Err(ApplianceError::TooOld {
                version: text.chars().take(40).collect(),
                floor: FLOOR.to_string(),
            }),
            Some(v) => Ok(v),
        }
    }

    async fn send(
        &self,
        transport: &mut dyn Transport,
        request: &Request,
    ) -> Result<Vec<Row>, ApplianceError> {
        let started = Instant::now();
        let result = match request.changes() {
            true => self.gate.carry(request, transport.call(request)).await,
            false => transport.call(request).await,
        };
        let taken = started.elapsed();
        self.metrics.appliance_request(request.name(), taken);
        match &result {
            Ok(rows) => {
                self.metrics.appliance_up(self.name(), true);
                tracing::debug!(%request, rows = rows.len(), ms = taken.as_millis(), "RDS answered");
            }
            Err(error) => {
                self.metrics.appliance_failed(error.kind());
                if error.casts_doubt() {
                    self.metrics.appliance_up(self.name(), false);
                    if self.proven.swap(false, Ordering::Relaxed) {
                        tracing::warn!(rds = self.name(), %request, "the RDS stopped answering: {error}");
                    }
                }
                tracing::debug!(%request, ms = taken.as_millis(), "RDS: {error}");
            }
        }
        result
    }
}

#[cfg(test)]
#[path = "appliance_tests.rs"]
mod tests;
