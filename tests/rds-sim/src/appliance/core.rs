//! The disks and what commands do to them. Synchronous: the transports call it from a blocking thread.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::btrfs::Subvolume;
use super::command::{Command, Menu, Reply};
use super::pool::{Pool, Pools};
use super::readings::Readings;
use super::store::{Saved, Store};
use crate::config::{GrownSize, Switches};
use crate::ros::disk::{Disk, Status};
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::item::{Item, Value};
use crate::ros::query::Query;
use crate::ros::version::Version;
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
    pub(super) subvolumes: Vec<Subvolume>,
    pub(super) next_subvolume: u32,
    /// Labels of btrfs pools that were changed.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) readings: Readings,
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
    pub(super) version: Version,
    pub(super) portal_port: u16,
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
        version: Version,
        portal_port: u16,
        changes: UnboundedSender<Change>,
    ) -> io::Result<Appliance> {
        let inner = Inner {
            next_id: FIRST_DISK_ID,
            disks: BTreeMap::new(),
            live: BTreeMap::new(),
            identities: BTreeMap::new(),
            subvolumes: Vec::new(),
            next_subvolume: 0,
            labels: BTreeMap::new(),
            readings: Readings::new(),
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
        inner.subvolumes = saved.subvolumes;
        inner.next_subvolume = saved.next_subvolume;
        inner.labels = saved.labels;
        self.share(&inner);
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
            subvolumes: inner.subvolumes.clone(),
            next_subvolume: inner.next_subvolume,
            labels: inner.labels.clone(),
        };
        self.store
            .save(&saved)
            .map_err(|e| Refusal::Guess(format!("failure: cannot write state.json: {e}")))
    }

    pub fn execute(&self, command: &Command) -> Result<Reply, Refusal> {
        if !command.known_to(self.version) {
            return Err(Refusal::NoSuchCommand);
        }
        match command {
            Command::Print { menu, query, proplist } => {
                let items = match query.only("slot") {
                    Some(slot) if *menu == Menu::Disk => self.disks_in(Some(slot)),
                    _ => self.items(*menu),
                };
                let items = items.into_iter().filter(|i| query.matches(i));
                Ok(Reply::Items(items.map(|i| i.project(proplist)).collect()))
            }
            Command::MonitorTraffic { targets } => self.monitor_traffic(targets),
            Command::Resource => Ok(Reply::One(self.resource())),
            Command::Identity => {
                let mut item = Item::default();
                item.text("name", "rds-sim");
                Ok(Reply::One(item))
            }
            Command::Add { menu, properties } => self.change(|| match menu {
                Menu::Disk => self.add(properties),
                Menu::File => self.add_file(properties),
                Menu::BtrfsSubvolume => self.add_subvolume(properties),
                Menu::BtrfsFilesystem | Menu::Health => Err(Refusal::NoSuchCommand),
            }),
            Command::Set { menu, targets, properties } => self.change(|| match menu {
                Menu::Disk => self.set(targets, properties),
                Menu::BtrfsSubvolume => self.set_subvolumes(targets, properties),
                Menu::BtrfsFilesystem => self.set_filesystems(targets, properties),
                // Not known well enough to imitate.
                Menu::File | Menu::Health => Err(Refusal::NoSuchCommand),
            }),
            Command::Remove { menu, targets } => self.change(|| match menu {
                Menu::Disk => self.remove(targets),
                Menu::File => self.remove_files(targets),
                Menu::BtrfsSubvolume => self.remove_subvolumes(targets),
                Menu::BtrfsFilesystem | Menu::Health => Err(Refusal::NoSuchCommand),
            }),
            // Takes long: other changes go on meanwhile.
            Command::Copy { menu: Menu::File, targets, properties } => {
                self.copy_files(targets, properties)
            }
            Command::Copy { menu: Menu::Disk, properties, .. } => self.copy_disk(properties),
            Command::Copy { .. } => Err(Refusal::NoSuchCommand),
        }
    }

    /// Carries out a command of PUT or PATCH, which answer with the whole item (manual, "REST API").
    pub fn execute_and_show(&self, command: &Command) -> Result<Reply, Refusal> {
        let menu = match command {
            Command::Add { menu, .. } | Command::Set { menu, .. } => *menu,
            _ => return self.execute(command),
        };
        let before = match command {
            Command::Set { targets, .. } => {
                let mut found =
                    self.items(menu).into_iter().filter(|i| i.is_any(menu.key(), targets));
                found.next().and_then(|i| i.get(".id").map(Value::rest))
            }
            _ => None,
        };
        let id = match (self.execute(command)?, before) {
            (Reply::Added(id), _) | (_, Some(id)) => id,
            (other, None) => return Ok(other),
        };
        let query = Query::equal([(".id".to_owned(), id)]);
        self.execute(&Command::Print { menu, query, proplist: Vec::new() })
    }

    fn items(&self, menu: Menu) -> Vec<Item> {
        match menu {
            Menu::Disk => self.disks(),
            Menu::File => self.files(),
            Menu::BtrfsFilesystem => self.filesystems(),
            Menu::BtrfsSubvolume => self.subvolumes(),
            Menu::Health => self.health(),
        }
    }

    pub(super) fn change<T>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let _one_at_a_time = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work();
        self.pools.changed();
        result
    }

    pub(super) fn disks(&self) -> Vec<Item> {
        self.disks_in(None)
    }

    /// All disks, or those of one slot: what a client asks for most.
    fn disks_in(&self, slot: Option<&str>) -> Vec<Item> {
        let asked = |name: &str| slot.is_none_or(|s| s == name);
        let mut items = self.physical();
        let pools = (1..).map(ItemId).zip(self.pools.pools());
        items.extend(pools.filter(|(_, p)| asked(&p.name)).map(|(id, p)| self.print_pool(id, p)));
        let inner = self.inner();
        let read_back = self.switches.read_back();
        let entries = inner.disks.values().filter(|e| asked(&e.disk.slot));
        items.extend(entries.map(|e| e.disk.print(self.status(&inner, e), read_back)));
        items
    }

    /// In the order of a real one's output.
    fn print_pool(&self, id: ItemId, pool: &Pool) -> Item {
        let free = self.pools.free_shown(pool);
        let state = self.raid_state(&pool.name);
        let mut item = Item::default();
        item.word(".id", id.to_string());
        item.push("block-device", Value::Flag(true));
        item.push("mounted", Value::Flag(true));
        item.push("disabled", Value::Flag(false));
        item.word("type", "raid");
        item.text("slot", &*pool.name);
        item.text("slot-default", "");
        item.text("parent", "");
        item.text("fs-label", self.label(&self.inner(), pool));
        item.text("fs-uuid", pool.uuid());
        item.word("fs", pool.kind.name());
        item.push("size", Value::Number(pool.bytes));
        item.push("free", Value::Number(free));
        item.word("use", format!("{}%", (pool.bytes - free) * 100 / pool.bytes.max(1)));
        item.text("mount-point", &*pool.name);
        item.push("mount-filesystem", Value::Flag(true));
        item.push("mount-read-only", Value::Flag(false));
        item.push("compress", Value::Flag(false));
        item.push("sector-size", Value::Number(512));
        item.word("raid-master", "none");
        if let Some(state) = state {
            item.text("state", state);
        }
        item
    }

    fn status(&self, inner: &Inner, entry: &Entry) -> Status {
        let created = entry.visible_at.is_some_and(|at| at <= Instant::now());
        let exported = inner.live.get(&entry.disk.id).is_some_and(|l| !l.parked);
        let live = inner.live.get(&entry.disk.id).filter(|_| exported);
        let size = match (self.switches.grown_size, live) {
            (GrownSize::AfterToggle, Some(live)) => Some(live.size),
            _ => entry.disk.file_size,
        };
        Status { block_device: created, exported, size: size.filter(|_| created) }
    }

    pub(super) fn notify(&self, id: ItemId, after: Duration) {
        // Fails only when the exporter is gone, at shutdown.
        let _ = self.changes.send(Change { id, after });
    }
}
