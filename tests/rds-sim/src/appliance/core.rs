//! The disks and what commands do to them. Synchronous: the transports call it from a blocking thread.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::command::{Command, Menu, Property, Reply};
use super::pool::{AllocError, Pools};
use super::store::{Saved, Store};
use crate::config::{ExistingFile, FullPool, Switches};
use crate::ros::disk::{Disk, Status};
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::item::{Item, Value};
use crate::target::{Identity, Spec};

/// Ids below this one belong to pools.
const FIRST_DISK_ID: u32 = 0x10;

/// A disk may have to be exported, or not any more; look again after `after`.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub id: ItemId,
    pub after: Duration,
}

/// An export that is up.
#[derive(Debug, Clone)]
pub struct Live {
    pub spec: Spec,
    pub identity: Identity,
    pub size: u64,
    /// [`Entry::toggles`] when it was made: a difference means that it must go down first.
    pub toggles: u64,
    /// Turned off, with live controllers left alone (`--export-off-kills false`).
    pub parked: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) disk: Disk,
    /// When the block device appears; `None`: never.
    pub(super) visible_at: Option<Instant>,
    pub(super) toggles: u64,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) next_id: u32,
    pub(super) disks: BTreeMap<ItemId, Entry>,
    pub(super) live: BTreeMap<ItemId, Live>,
    pub(super) identities: BTreeMap<String, Identity>,
    pub(super) file_ids: HashMap<String, ItemId>,
    pub(super) powered: bool,
    /// While booting: the disks whose exports are back already.
    pub(super) released: Option<HashSet<ItemId>>,
    pub(super) booted: Instant,
    pub(super) boots: u64,
}

#[derive(Debug)]
pub struct Appliance {
    pub switches: Switches,
    pub(super) pools: Pools,
    store: Store,
    version: String,
    portal_port: u16,
    inner: Mutex<Inner>,
    /// One change at a time, whichever transport it came by.
    writes: Mutex<()>,
    changes: UnboundedSender<Change>,
}

impl Appliance {
    /// Restores what was saved; exports follow as [`Change`]s.
    pub fn restore(
        switches: Switches,
        pools: Pools,
        store: Store,
        version: String,
        portal_port: u16,
        changes: UnboundedSender<Change>,
    ) -> io::Result<Appliance> {
        let inner = Inner {
            next_id: FIRST_DISK_ID,
            disks: BTreeMap::new(),
            live: BTreeMap::new(),
            identities: BTreeMap::new(),
            file_ids: HashMap::new(),
            powered: true,
            released: None,
            booted: Instant::now(),
            boots: 0,
        };
        let appliance = Appliance {
            switches,
            pools,
            store,
            version,
            portal_port,
            inner: Mutex::new(inner),
            writes: Mutex::new(()),
            changes,
        };
        appliance.reload(false)?;
        Ok(appliance)
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the saved disks again, as a boot does.
    pub(super) fn reload(&self, renumber: bool) -> io::Result<()> {
        let saved = self.store.load()?;
        let mut inner = self.inner();
        inner.next_id = saved.next_id.max(FIRST_DISK_ID);
        inner.identities = saved.identities;
        inner.disks.clear();
        inner.file_ids.clear();
        inner.booted = Instant::now();
        inner.boots += 1;
        for mut disk in saved.disks {
            if renumber {
                disk.id = ItemId(inner.next_id);
                inner.next_id += 1;
            }
            let there = self.pools.resolve(&disk.file_path).is_some_and(|(_, host)| host.is_file());
            let entry = Entry { visible_at: there.then(Instant::now), toggles: 0, disk };
            inner.disks.insert(entry.disk.id, entry);
        }
        Ok(())
    }

    pub(super) fn save(&self, inner: &Inner) -> Result<(), Refusal> {
        let saved = Saved {
            version: 1,
            next_id: inner.next_id,
            disks: inner.disks.values().map(|e| e.disk.clone()).collect(),
            identities: inner.identities.clone(),
        };
        self.store
            .save(&saved)
            .map_err(|e| Refusal::Guess(format!("failure: cannot write state.json: {e}")))
    }

    pub fn execute(&self, command: &Command) -> Result<Reply, Refusal> {
        match command {
            Command::Print { menu, query, proplist } => {
                let items = match menu {
                    Menu::Disk => self.disks(),
                    Menu::File => self.files(),
                };
                let items = items
                    .iter()
                    .filter(|i| query.matches(i))
                    .map(|i| i.project(proplist))
                    .collect();
                Ok(Reply::Items(items))
            }
            Command::Resource => Ok(Reply::One(self.resource())),
            Command::Identity => {
                let mut item = Item::default();
                item.text("name", "rds-sim");
                Ok(Reply::One(item))
            }
            Command::Add { menu: Menu::Disk, properties } => self.change(|| self.add(properties)),
            Command::Set { menu: Menu::Disk, targets, properties } => {
                self.change(|| self.set(targets, properties))
            }
            Command::Remove { menu: Menu::Disk, targets } => self.change(|| self.remove(targets)),
            Command::Remove { menu: Menu::File, targets } => {
                self.change(|| self.remove_files(targets))
            }
            // Not known well enough to imitate.
            Command::Add { menu: Menu::File, .. } | Command::Set { menu: Menu::File, .. } => {
                Err(Refusal::NoSuchCommand)
            }
        }
    }

    fn change(&self, work: impl FnOnce() -> Result<Reply, Refusal>) -> Result<Reply, Refusal> {
        let _one_at_a_time = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn disks(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for (id, pool) in (1..).zip(self.pools.pools()) {
            let mut item = Item::default();
            item.word(".id", ItemId(id).to_string());
            item.push("block-device", Value::Flag(true));
            item.push("disabled", Value::Flag(false));
            item.word("type", "raid");
            item.text("slot", &*pool.name);
            item.word("fs", "xfs");
            item.text("mount-point", &*pool.name);
            item.push("size", Value::Number(pool.bytes));
            item.push("free", Value::Number(self.pools.free(pool)));
            item.word("state", "clean");
            items.push(item);
        }
        let inner = self.inner();
        let read_back = self.switches.read_back();
        items.extend(inner.disks.values().map(|e| e.disk.print(self.status(&inner, e), read_back)));
        items
    }

    fn status(&self, inner: &Inner, entry: &Entry) -> Status {
        let created = entry.visible_at.is_some_and(|at| at <= Instant::now());
        let exported = inner.live.get(&entry.disk.id).is_some_and(|l| !l.parked);
        Status { block_device: created, exported, size: entry.disk.file_size.filter(|_| created) }
    }

    fn resource(&self) -> Item {
        let mut item = Item::default();
        item.text("uptime", uptime(self.inner().booted.elapsed()));
        item.text("version", format!("{} (stable)", self.version));
        item.text("architecture-name", "arm64");
        item.text("board-name", "RDS2216");
        item.text("platform", "MikroTik");
        item
    }

    fn add(&self, properties: &[Property]) -> Result<Reply, Refusal> {
        let mut inner = self.inner();
        let mut disk = Disk::new(ItemId(inner.next_id), self.portal_port);
        for p in properties {
            disk.set(&p.name, &p.value, p.origin)?;
        }
        if !properties.iter().any(|p| p.name == "type") {
            return Err(Refusal::InvalidValue("type".into()));
        }
        if disk.slot.is_empty() {
            disk.slot = (1..)
                .map(|n| format!("file{n}"))
                .find(|s| !self.taken(&inner, s, None))
                .unwrap_or_default();
        }
        if self.taken(&inner, &disk.slot, None) {
            return Err(Refusal::Duplicate);
        }
        drop(inner); // Allocation takes long; `writes` keeps other changes out.
        let visible = self.make_file(&mut disk)?;
        inner = self.inner();
        inner.next_id += 1;
        let after = Duration::from_millis(self.switches.create_delay_ms);
        let id = disk.id;
        let wanted = disk.nvme_tcp_export;
        inner.disks.insert(
            id,
            Entry { disk, visible_at: visible.then(|| Instant::now() + after), toggles: 0 },
        );
        self.save(&inner)?;
        if wanted && visible {
            self.notify(id, after + Duration::from_millis(self.switches.export_delay_ms));
        }
        Ok(Reply::Added(id.to_string()))
    }

    fn taken(&self, inner: &Inner, slot: &str, but: Option<ItemId>) -> bool {
        self.pools.pools().iter().any(|p| p.name == slot)
            || inner.disks.values().any(|e| e.disk.slot == slot && Some(e.disk.id) != but)
    }

    /// The image of a new disk. `Ok(false)`: accepted, yet no block device will come of it.
    fn make_file(&self, disk: &mut Disk) -> Result<bool, Refusal> {
        let bad_path = || Refusal::Guess(self.switches.bad_path_text.clone());
        let (pool, host) = self.pools.resolve(&disk.file_path).ok_or_else(bad_path)?;
        let existing = host.metadata().ok();
        if existing.as_ref().is_some_and(|m| m.is_dir()) {
            return Err(bad_path());
        }
        if existing.is_some() && self.switches.existing_file == ExistingFile::Refuse {
            return Err(Refusal::Guess(self.switches.existing_file_text.clone()));
        }
        let have = existing.map_or(0, |m| m.len());
        let size = disk.file_size.unwrap_or(0).max(have);
        if size == 0 {
            return Err(Refusal::InvalidValue("file-size".into()));
        }
        let missing = host.parent().filter(|p| !p.is_dir());
        let made = |dir| self.switches.create_parents && std::fs::create_dir_all(dir).is_ok();
        if missing.is_some_and(|dir| !made(dir)) {
            return Err(bad_path());
        }
        disk.file_size = Some(size);
        match self.pools.allocate(pool, &host, size) {
            Ok(()) => Ok(true),
            Err(AllocError::Full) if self.switches.full_pool == FullPool::Silent => Ok(false),
            Err(AllocError::Full) => Err(Refusal::Guess(self.switches.full_pool_text.clone())),
            Err(AllocError::Io(e)) => Err(Refusal::Guess(format!("failure: {e}"))),
        }
    }

    fn set(&self, targets: &[String], properties: &[Property]) -> Result<Reply, Refusal> {
        let ids = self.find(targets)?;
        for id in ids {
            let mut disk = match self.inner().disks.get(&id) {
                Some(entry) => entry.disk.clone(),
                None => return Err(Refusal::CannotDo), // a pool
            };
            let before = disk.clone();
            for p in properties {
                disk.set(&p.name, &p.value, p.origin)?;
            }
            if disk.file_path != before.file_path {
                return Err(Refusal::CannotDo);
            }
            if disk.slot != before.slot && self.taken(&self.inner(), &disk.slot, Some(id)) {
                return Err(Refusal::Duplicate);
            }
            if disk.file_size != before.file_size {
                self.resize(&disk, before.file_size)?;
            }
            self.store_changed(disk, &before)?;
        }
        Ok(Reply::Done)
    }

    fn resize(&self, disk: &Disk, before: Option<u64>) -> Result<(), Refusal> {
        let (Some(size), Some((pool, host))) =
            (disk.file_size, self.pools.resolve(&disk.file_path))
        else {
            return Err(Refusal::CannotDo);
        };
        if size < before.unwrap_or(0) && !self.switches.allow_shrink {
            return Err(Refusal::InvalidValue("file-size".into()));
        }
        self.pools.allocate(pool, &host, size).map_err(|e| match e {
            AllocError::Full => Refusal::Guess(self.switches.full_pool_text.clone()),
            AllocError::Io(e) => Refusal::Guess(format!("failure: {e}")),
        })
    }

    fn store_changed(&self, disk: Disk, before: &Disk) -> Result<(), Refusal> {
        let mut inner = self.inner();
        let id = disk.id;
        let on = |d: &Disk| d.nvme_tcp_export && !d.disabled;
        let mut after = Duration::from_millis(self.switches.unexport_delay_ms);
        if on(&disk) {
            // A disk that is still being made is exported after that.
            let visible = inner.disks.get(&id).and_then(|e| e.visible_at);
            let pending =
                visible.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            after = pending + Duration::from_millis(self.switches.export_delay_ms);
        }
        if let Some(entry) = inner.disks.get_mut(&id) {
            // Off and on again in a moment is still off and on: hosts lose the old export.
            let off = on(before) && !on(&disk);
            if off || disk.nqn() != before.nqn() || disk.server_port != before.server_port {
                entry.toggles += 1;
            }
            entry.disk = disk;
        }
        self.save(&inner)?;
        self.notify(id, after);
        Ok(())
    }

    fn remove(&self, targets: &[String]) -> Result<Reply, Refusal> {
        let ids = self.find(targets)?;
        let mut inner = self.inner();
        if ids.iter().any(|id| !inner.disks.contains_key(id)) {
            return Err(Refusal::CannotDo);
        }
        for id in ids {
            inner.disks.remove(&id); // The file stays.
            self.notify(id, Duration::from_millis(self.switches.unexport_delay_ms));
        }
        self.save(&inner)?;
        Ok(Reply::Done)
    }

    /// The items that `numbers` or `.id` name; all must exist. Pools have the lowest ids.
    fn find(&self, targets: &[String]) -> Result<Vec<ItemId>, Refusal> {
        let inner = self.inner();
        let pools = self.pools.pools();
        let one = |target: &String| {
            let pool = (1..)
                .zip(pools)
                .find(|(n, p)| p.name == *target || ItemId(*n).to_string() == *target);
            let disk = || match ItemId::parse(target) {
                Some(id) => inner.disks.contains_key(&id).then_some(id),
                None => inner.disks.values().find(|e| e.disk.slot == *target).map(|e| e.disk.id),
            };
            pool.map(|(n, _)| ItemId(n)).or_else(disk).ok_or(Refusal::NoSuchItem)
        };
        if targets.is_empty() {
            return Err(Refusal::NoSuchItem);
        }
        targets.iter().map(one).collect()
    }

    fn notify(&self, id: ItemId, after: Duration) {
        // Fails only when the exporter is gone, at shutdown.
        let _ = self.changes.send(Change { id, after });
    }
}

fn uptime(since: Duration) -> String {
    let mut rest = since.as_secs();
    let mut out = String::new();
    for (unit, seconds) in [("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60)] {
        if rest >= seconds {
            out.push_str(&format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    format!("{out}{rest}s")
}
