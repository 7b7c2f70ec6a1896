//! `/file`: what lies in the pools.

use super::command::Reply;
use super::core::Appliance;
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::item::{Item, Value};

impl Appliance {
    pub(super) fn files(&self) -> Vec<Item> {
        let mut inner = self.inner();
        let mut items = Vec::new();
        for entry in self.pools.entries() {
            let next =
                ItemId(u32::try_from(inner.file_ids.len()).unwrap_or(u32::MAX).saturating_add(1));
            let id = *inner.file_ids.entry(entry.name.clone()).or_insert(next);
            let mut item = Item::default();
            item.word(".id", id.to_string());
            item.text("name", entry.name);
            item.text("type", entry.kind);
            if let Some(size) = entry.size {
                item.push("size", Value::Size(size));
            }
            item.text("last-modified", crate::clock::date_time(entry.modified));
            items.push(item);
        }
        items
    }

    pub(super) fn remove_files(&self, targets: &[String]) -> Result<Reply, Refusal> {
        let files = self.files();
        let text = |i: &Item, n: &str| i.get(n).map(Value::rest).unwrap_or_default();
        let mut names = Vec::new();
        for target in targets {
            let found =
                files.iter().find(|i| text(i, ".id") == *target || text(i, "name") == *target);
            names.push(found.map(|i| text(i, "name")).ok_or(Refusal::NoSuchItem)?);
        }
        if names.is_empty() {
            return Err(Refusal::NoSuchItem);
        }
        for name in names {
            let (_, host) = self.pools.resolve(&name).ok_or(Refusal::NoSuchItem)?;
            // Also when it is in use: an export keeps the open file, and nothing else does. What happens
            // to a directory that is not empty is not known; here it stays.
            let done = if host.is_dir() {
                std::fs::remove_dir(&host)
            } else {
                std::fs::remove_file(&host)
            };
            done.map_err(|_| Refusal::CannotDo)?;
        }
        Ok(Reply::Done)
    }
}
