//! `/file`: what lies in the pools.

use super::command::{Property, Reply};
use super::core::Appliance;
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::item::{Item, Value};

/// "Limited to just under 60 KiB (61439 bytes)" (manual, `/file`).
const MAX_CONTENTS: usize = 61_439;

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

    /// The name of the file that a name or id means. "A leading `/` is optional" (manual, `/file`).
    pub(super) fn file_named(&self, target: &str) -> Result<String, Refusal> {
        if ItemId::parse(target).is_none() {
            let (_, host) = self.pools.resolve(target).ok_or(Refusal::NoSuchItem)?;
            let name = target.trim_start_matches('/').to_owned();
            return if host.exists() { Ok(name) } else { Err(Refusal::NoSuchItem) };
        }
        let files = self.files();
        let found = files.iter().find(|i| i.is_any(".id", &[target.to_owned()]));
        found.and_then(|i| i.get("name")).map(Value::rest).ok_or(Refusal::NoSuchItem)
    }

    /// `/file/add`, as the manual's page "Files" has it.
    pub(super) fn add_file(&self, properties: &[Property]) -> Result<Reply, Refusal> {
        let (mut name, mut directory, mut contents) = (None, false, "");
        for p in properties {
            match (p.name.as_str(), p.value.as_str()) {
                ("name", value) => name = Some(value),
                ("type", "file") => directory = false,
                ("type", "directory") => directory = true,
                ("type", _) => return Err(Refusal::NoMatch("type".into())),
                ("contents", value) if value.len() <= MAX_CONTENTS => contents = value,
                ("contents", _) => return Err(Refusal::InvalidValue("contents".into())),
                (other, _) => return Err(Refusal::UnknownParameter(other.to_owned())),
            }
        }
        let name = name.ok_or_else(|| Refusal::InvalidValue("name".into()))?;
        let (_, host) = self.place_for(name)?;
        let made = match directory {
            true => std::fs::create_dir(&host),
            false => std::fs::write(&host, contents),
        };
        made.map_err(|e| Refusal::Guess(format!("failure: {e}")))?;
        let name = name.trim_start_matches('/');
        let files = self.files();
        let made = files.iter().find(|i| i.is_any("name", &[name.to_owned()]));
        Ok(Reply::Added(made.and_then(|i| i.get(".id")).map(Value::rest).unwrap_or_default()))
    }

    pub(super) fn remove_files(&self, targets: &[String]) -> Result<Reply, Refusal> {
        if targets.is_empty() {
            return Err(Refusal::NoSuchItem);
        }
        let names: Result<Vec<_>, _> = targets.iter().map(|t| self.file_named(t)).collect();
        for name in names? {
            let (_, host) = self.pools.resolve(&name).ok_or(Refusal::NoSuchItem)?;
            self.writable(&host)?;
            // Also when it is in use: an export keeps the open file, and nothing else does. What happens
            // to a directory that is not empty is not known; here it stays.
            let done = if host.is_dir() {
                std::fs::remove_dir(&host)
            } else {
                std::fs::remove_file(&host)
            };
            done.map_err(|_| Refusal::CannotDo)?;
            self.forget_subvolume(&host)?;
        }
        Ok(Reply::Done)
    }
}
