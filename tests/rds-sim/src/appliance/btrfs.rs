//! `/disk/btrfs`: file systems and subvolumes, as the manual's CLI reference and its page "Btrfs subvolumes
//! and snapshots" have them.
//!
//! A subvolume is a directory of the pool and a record of ours; the state directory need not be on btrfs.
//! A snapshot shares its data with the parent where the host can (FICLONE), else it is a copy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::clone::clone_tree;
use super::command::{Property, Reply};
use super::core::{Appliance, Inner};
use super::pool::{HIDDEN, Pool};
use crate::clock;
use crate::config::{PoolKind, SubvolumeReference};
use crate::ros::disk::flag;
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::item::{Item, Value};

/// How the manual names the top of a file system.
const ROOT: &str = "<FS_ROOT>";
/// Lower ids belong to the tops of the file systems.
const FIRST_ID: u32 = 0x10;
/// Linux numbers subvolumes from here (`BTRFS_FIRST_FREE_OBJECTID`); the top is 5.
const FIRST_NUMBER: u32 = 256;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subvolume {
    pub id: ItemId,
    pub pool: String,
    /// Path below the pool, without a leading slash.
    pub fullname: String,
    pub read_only: bool,
    /// Whose snapshot it is.
    pub parent: Option<String>,
    pub uuid: String,
    /// The first one of a line of snapshots: all of them share its data.
    pub origin: String,
    pub created_ms: u64,
    pub number: u32,
}

impl Subvolume {
    /// The last component: what `find where name=` of the manual's example finds.
    fn name(&self) -> &str {
        self.fullname.rsplit('/').next().unwrap_or(&self.fullname)
    }

    fn holds(&self, other: &Subvolume) -> bool {
        self.pool == other.pool
            && other.fullname.strip_prefix(&self.fullname).is_some_and(|r| r.starts_with('/'))
    }
}

impl Appliance {
    fn btrfs_pools(&self) -> impl Iterator<Item = (ItemId, &Pool)> {
        (1..).map(ItemId).zip(self.pools.pools().iter().filter(|p| p.kind == PoolKind::Btrfs))
    }

    /// The label: `<slot>-fs` by default, as `/disk/format` gives it.
    pub(super) fn label(&self, inner: &Inner, pool: &Pool) -> String {
        inner.labels.get(&pool.name).cloned().unwrap_or_else(|| format!("{}-fs", pool.name))
    }

    fn host(&self, subvolume: &Subvolume) -> Option<PathBuf> {
        let path = format!("{}/{}", subvolume.pool, subvolume.fullname);
        self.pools.resolve(&path).map(|(_, host)| host)
    }

    /// Tells the pools which directories share data, for their free space.
    pub(super) fn share(&self, inner: &Inner) {
        let shared = inner.subvolumes.iter();
        let shared = shared.filter_map(|s| Some((self.host(s)?, s.origin.clone())));
        self.pools.set_shared(shared.collect::<BTreeMap<_, _>>());
    }

    /// Refuses what would write into a read-only subvolume.
    pub(super) fn writable(&self, path: &Path) -> Result<(), Refusal> {
        match self.sealed(&self.inner(), path) {
            true => Err(Refusal::Guess(self.switches.read_only_text.clone())),
            false => Ok(()),
        }
    }

    /// Whether a path lies in a read-only subvolume.
    pub(super) fn sealed(&self, inner: &Inner, path: &Path) -> bool {
        let mut sealed = inner.subvolumes.iter().filter(|s| s.read_only);
        sealed.any(|s| self.host(s).is_some_and(|dir| path != dir && path.starts_with(dir)))
    }

    pub(super) fn filesystems(&self) -> Vec<Item> {
        let inner = self.inner();
        let print = |(id, pool): (ItemId, &Pool)| {
            let mut item = Item::default();
            item.word(".id", id.to_string());
            item.text("label", self.label(&inner, pool));
            item.text("default-subvolume", ROOT);
            item.text("uuid", pool.uuid());
            item.push("total-devs", Value::Number(1));
            item.text("devs", &*pool.name);
            item
        };
        self.btrfs_pools().map(print).collect()
    }

    pub(super) fn subvolumes(&self) -> Vec<Item> {
        let inner = self.inner();
        let mut items = Vec::new();
        for (id, pool) in self.btrfs_pools() {
            let mut item = Item::default();
            item.word(".id", id.to_string());
            item.push("default", Value::Flag(true));
            item.text("fs", self.label(&inner, pool));
            item.text("name", ROOT);
            item.push("subvolume-id", Value::Number(5));
            items.push(item);
        }
        items.extend(inner.subvolumes.iter().map(|s| self.print_subvolume(&inner, s)));
        items
    }

    fn print_subvolume(&self, inner: &Inner, subvolume: &Subvolume) -> Item {
        let pool = self.pools.pools().iter().find(|p| p.name == subvolume.pool);
        let parent = subvolume.parent.as_ref();
        let parent = parent.and_then(|uuid| inner.subvolumes.iter().find(|s| s.uuid == *uuid));
        let holder = inner.subvolumes.iter().filter(|s| s.holds(subvolume));
        let holder = holder.max_by_key(|s| s.fullname.len());
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(subvolume.created_ms);
        let mut item = Item::default();
        item.word(".id", subvolume.id.to_string());
        item.push("default", Value::Flag(false));
        item.push("snapshot", Value::Flag(subvolume.parent.is_some()));
        item.push("read-only", Value::Flag(subvolume.read_only));
        item.push("dead", Value::Flag(false));
        item.push("mounted", Value::Flag(false));
        item.text("fs", pool.map(|p| self.label(inner, p)).unwrap_or_default());
        // Empty also when the parent is gone: a script in the wild tells such snapshots by it.
        item.text("parent", parent.map(Subvolume::name).unwrap_or_default());
        item.text("name", subvolume.name());
        item.push("mount", Value::Flag(false));
        item.text("top-level", holder.map_or(ROOT, Subvolume::name));
        item.text("fullname", &*subvolume.fullname);
        item.text("uuid", &*subvolume.uuid);
        item.text("creation-time", clock::date_time(created));
        item.push("subvolume-id", Value::Number(subvolume.number.into()));
        item
    }

    pub(super) fn add_subvolume(&self, properties: &[Property]) -> Result<Reply, Refusal> {
        let (mut fs, mut parent, mut name, mut read_only) = (None, None, None, false);
        for p in properties {
            match p.name.as_str() {
                "fs" => fs = Some(p.value.as_str()),
                "parent" => parent = Some(p.value.as_str()),
                "name" => name = Some(p.value.trim_matches('/')),
                "read-only" => read_only = flag(&p.name, &p.value)?,
                // Kept out: what mounting it elsewhere does to paths is not known.
                "mount" if !flag(&p.name, &p.value)? => {}
                "mount" | "mountpoint" => return Err(Refusal::CannotDo),
                other => return Err(Refusal::UnknownParameter(other.to_owned())),
            }
        }
        let name = name.filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| Refusal::InvalidValue("name".into()))?;
        let no_match = |name: &str| Refusal::NoMatch(name.to_owned());
        let mut inner = self.inner();
        let mut pools = self.btrfs_pools().map(|(_, p)| p);
        let pool = pools.find(|p| fs == Some(self.label(&inner, p).as_str()));
        let pool = pool.ok_or_else(|| no_match("fs"))?;
        let parent = match parent {
            None => None,
            Some(given) => {
                let is = |s: &&Subvolume| match self.switches.subvolume_reference {
                    SubvolumeReference::Name => s.name() == given,
                    SubvolumeReference::Fullname => s.fullname == given,
                };
                let mut those = inner.subvolumes.iter().filter(|s| s.pool == pool.name);
                Some(those.find(is).cloned().ok_or_else(|| no_match("parent"))?)
            }
        };
        let number = inner.next_subvolume;
        let uuid = uuid::Uuid::new_v4().to_string();
        let subvolume = Subvolume {
            id: ItemId(FIRST_ID + number),
            pool: pool.name.clone(),
            fullname: name.to_owned(),
            read_only,
            origin: parent.as_ref().map_or_else(|| uuid.clone(), |p| p.origin.clone()),
            parent: parent.as_ref().map(|p| p.uuid.clone()),
            uuid,
            created_ms: clock::unix_ms(),
            number: FIRST_NUMBER + number,
        };
        drop(inner); // A copy without FICLONE takes a while; `writes` keeps other changes out.
        self.make_subvolume(&subvolume, parent.as_ref(), pool)?;
        inner = self.inner();
        inner.next_subvolume += 1;
        let id = subvolume.id.to_string();
        inner.subvolumes.push(subvolume);
        self.share(&inner);
        self.save(&inner)?;
        Ok(Reply::Added(id))
    }

    fn make_subvolume(
        &self,
        subvolume: &Subvolume,
        parent: Option<&Subvolume>,
        pool: &Pool,
    ) -> Result<(), Refusal> {
        let bad_path = || Refusal::Guess(self.switches.bad_path_text.clone());
        let host = self.host(subvolume).ok_or_else(bad_path)?;
        if host.exists() {
            return Err(Refusal::Guess(self.switches.subvolume_exists_text.clone()));
        }
        if !host.parent().is_some_and(Path::is_dir) {
            return Err(bad_path());
        }
        self.writable(&host)?;
        // Under a name that nobody sees, so that a kill half-way leaves no half snapshot.
        let draft = pool.dir().join(format!("{HIDDEN}{}", subvolume.uuid));
        let made = match parent.map(|p| self.host(p).ok_or_else(bad_path)).transpose()? {
            None => fs::create_dir(&draft),
            Some(from) => {
                // Snapshots do not reach into subvolumes within: those arrive as empty directories.
                let inner = self.inner();
                let dirs = inner.subvolumes.iter().filter_map(|s| self.host(s));
                let inside: Vec<PathBuf> = dirs.filter(|d| *d != from).collect();
                drop(inner);
                clone_tree(&from, &draft, &|dir| inside.iter().any(|d| d == dir))
            }
        };
        let made = made.and_then(|()| fs::rename(&draft, &host));
        made.map_err(|e| {
            let _ = fs::remove_dir_all(&draft);
            match e.raw_os_error() {
                Some(libc::ENOSPC) => Refusal::Guess(self.switches.full_pool_text.clone()),
                _ => Refusal::Guess(format!("failure: {e}")),
            }
        })
    }

    pub(super) fn set_subvolumes(
        &self,
        targets: &[String],
        properties: &[Property],
    ) -> Result<Reply, Refusal> {
        let mut inner = self.inner();
        for at in find(&inner, targets)? {
            for p in properties {
                match p.name.as_str() {
                    "read-only" => inner.subvolumes[at].read_only = flag(&p.name, &p.value)?,
                    "name" | "parent" | "fs" | "mount" | "mountpoint" => {
                        return Err(Refusal::CannotDo);
                    }
                    other => return Err(Refusal::UnknownParameter(other.to_owned())),
                }
            }
        }
        self.save(&inner)?;
        Ok(Reply::Done)
    }

    pub(super) fn set_filesystems(
        &self,
        targets: &[String],
        properties: &[Property],
    ) -> Result<Reply, Refusal> {
        let items = self.filesystems();
        let mut inner = self.inner();
        for target in targets {
            let one = std::slice::from_ref(target);
            let at = items.iter().position(|i| i.is_any("label", one));
            let pool = at.and_then(|at| self.btrfs_pools().nth(at)).ok_or(Refusal::NoSuchItem)?.1;
            for p in properties {
                match p.name.as_str() {
                    "label" => inner.labels.insert(pool.name.clone(), p.value.clone()),
                    "default-subvolume" => return Err(Refusal::CannotDo),
                    other => return Err(Refusal::UnknownParameter(other.to_owned())),
                };
            }
        }
        self.save(&inner)?;
        Ok(Reply::Done)
    }

    /// An empty subvolume may also be removed like a directory.
    pub(super) fn forget_subvolume(&self, dir: &Path) -> Result<(), Refusal> {
        let mut inner = self.inner();
        let before = inner.subvolumes.len();
        inner.subvolumes.retain(|s| self.host(s).as_deref() != Some(dir));
        if inner.subvolumes.len() == before {
            return Ok(());
        }
        self.share(&inner);
        self.save(&inner)
    }

    /// With all files in it, also when they are exported: the target keeps them open.
    pub(super) fn remove_subvolumes(&self, targets: &[String]) -> Result<Reply, Refusal> {
        let mut inner = self.inner();
        let doomed: Vec<Subvolume> =
            find(&inner, targets)?.into_iter().map(|at| inner.subvolumes[at].clone()).collect();
        for subvolume in doomed {
            if inner.subvolumes.iter().any(|s| subvolume.holds(s)) {
                return Err(Refusal::Guess(self.switches.subvolume_busy_text.clone()));
            }
            inner.subvolumes.retain(|s| s.id != subvolume.id);
            self.share(&inner);
            self.save(&inner)?;
            let pool = self.pools.pools().iter().find(|p| p.name == subvolume.pool);
            if let (Some(host), Some(pool)) = (self.host(&subvolume), pool) {
                let gone = pool.dir().join(format!("{HIDDEN}{}", subvolume.uuid));
                let done = fs::rename(&host, &gone).and_then(|()| fs::remove_dir_all(&gone));
                done.map_err(|e| Refusal::Guess(format!("failure: {e}")))?;
            }
        }
        Ok(Reply::Done)
    }
}

/// Positions of what ids or names mean; all must exist. The tops of file systems cannot be changed.
fn find(inner: &Inner, targets: &[String]) -> Result<Vec<usize>, Refusal> {
    if targets.is_empty() {
        return Err(Refusal::NoSuchItem);
    }
    let one = |target: &String| {
        let is = |s: &Subvolume| s.id.to_string() == *target || s.name() == target;
        match inner.subvolumes.iter().position(is) {
            None if target == ROOT => Err(Refusal::CannotDo),
            None => Err(Refusal::NoSuchItem),
            Some(at) => Ok(at),
        }
    };
    targets.iter().map(one).collect()
}
