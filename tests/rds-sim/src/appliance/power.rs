//! What the exporter and the reboot need to know of the disks: what should be exported, what is, and
//! whether there is power at all.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use super::core::{Appliance, Live};
use crate::config::IdsAfterReboot;
use crate::ros::disk::Disk;
use crate::ros::id::ItemId;
use crate::target::{Hosts, Identity, Spec};

impl Appliance {
    /// The export that should be up for this disk now, and its toggle count.
    pub fn wanted(&self, id: ItemId) -> Option<(Spec, u64, u64)> {
        let inner = self.inner();
        let entry = inner.disks.get(&id)?;
        let held = inner.released.as_ref().is_some_and(|r| !r.contains(&id));
        let created = entry.visible_at.is_some_and(|at| at <= Instant::now());
        let disk = &entry.disk;
        if !inner.powered || held || !created || !disk.nvme_tcp_export || disk.disabled {
            return None;
        }
        let (_, file) = self.pools.resolve(&disk.file_path)?;
        let sealed = self.sealed(&inner, &file);
        if sealed {
            return None; // The target cannot open it for writing.
        }
        let spec = Spec {
            nqn: disk.nqn(),
            port: disk.server_port,
            file,
            hosts: self.hosts(&disk.allow_host_name),
        };
        Some((spec, entry.toggles, disk.file_size.unwrap_or(0)))
    }

    fn hosts(&self, allow: &str) -> Hosts {
        match allow {
            "" => Hosts::Any,
            list if self.switches.allow_host_list => Hosts::Only(
                list.split(',').map(|h| h.trim().to_owned()).filter(|h| !h.is_empty()).collect(),
            ),
            one => Hosts::Only(vec![one.to_owned()]),
        }
    }

    pub fn live(&self) -> BTreeMap<ItemId, Live> {
        self.inner().live.clone()
    }

    pub fn set_live(&self, id: ItemId, live: Option<Live>) {
        let mut inner = self.inner();
        match live {
            Some(live) => inner.live.insert(id, live),
            None => inner.live.remove(&id),
        };
    }

    /// For `--identity fixed`: remembers the first identity that the kernel invented.
    pub fn identity(&self, nqn: &str, invented: Option<&Identity>) -> Option<Identity> {
        let mut inner = self.inner();
        if let (Some(identity), None) = (invented, inner.identities.get(nqn)) {
            inner.identities.insert(nqn.to_owned(), identity.clone());
            if let Err(e) = self.save(&inner) {
                tracing::error!("{e}");
            }
        }
        inner.identities.get(nqn).cloned()
    }

    /// All disks in slot order of their ids, with what was configured.
    pub fn configured(&self) -> Vec<Disk> {
        self.inner().disks.values().map(|e| e.disk.clone()).collect()
    }

    pub fn id_of(&self, slot: &str) -> Option<ItemId> {
        self.inner().disks.values().find(|e| e.disk.slot == slot).map(|e| e.disk.id)
    }

    /// Counts boots, so that a request from before a reboot is never answered after it.
    pub fn boots(&self) -> u64 {
        self.inner().boots
    }

    /// Whether a disk that is switched off keeps its live controllers (`--export-off-kills false`).
    pub fn parks(&self, id: ItemId) -> bool {
        let inner = self.inner();
        !self.switches.export_off_kills && inner.powered && inner.disks.contains_key(&id)
    }

    pub fn power_off(&self) {
        let mut inner = self.inner();
        inner.powered = false;
        inner.boots += 1;
    }

    /// Power is back; disks are restored, and each export waits for its release.
    pub fn boot(&self) -> io::Result<()> {
        self.reload(self.switches.ids_after_reboot == IdsAfterReboot::Renumber)?;
        let mut inner = self.inner();
        inner.powered = true;
        inner.released = Some(HashSet::new());
        Ok(())
    }

    pub fn release(&self, id: ItemId) {
        if let Some(released) = &mut self.inner().released {
            released.insert(id);
        }
    }

    pub fn release_all(&self) {
        self.inner().released = None;
    }

    /// Host path and exact size of a disk's image.
    pub fn image(&self, id: ItemId) -> Option<(PathBuf, u64)> {
        let inner = self.inner();
        let disk = &inner.disks.get(&id)?.disk;
        let (_, host) = self.pools.resolve(&disk.file_path)?;
        Some((host, disk.file_size?))
    }
}
