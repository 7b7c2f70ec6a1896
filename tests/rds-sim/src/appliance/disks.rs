//! `/disk`: what `add`, `set` and `remove` do to file disks.

use std::time::{Duration, Instant};

use super::command::{Property, Reply};
use super::core::{Appliance, Entry, Inner};
use super::pool::AllocError;
use crate::config::{ExistingFile, FullPool};
use crate::ros::disk::Disk;
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;

impl Appliance {
    pub(super) fn add(&self, properties: &[Property]) -> Result<Reply, Refusal> {
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
        let fits = existing.as_ref().is_some_and(|m| m.len() >= disk.file_size.unwrap_or(0));
        if !fits {
            self.writable(&host)?;
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

    pub(super) fn set(
        &self,
        targets: &[String],
        properties: &[Property],
    ) -> Result<Reply, Refusal> {
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
                let exported = self.inner().live.get(&id).is_some_and(|l| !l.parked);
                if exported && !self.switches.grow_exported {
                    return Err(Refusal::CannotDo);
                }
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
        self.writable(&host)?;
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

    pub(super) fn remove(&self, targets: &[String]) -> Result<Reply, Refusal> {
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
    pub(super) fn find(&self, targets: &[String]) -> Result<Vec<ItemId>, Refusal> {
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
}
