//! Items as they are read back, parsed strictly: a value that cannot be read is an error,
//! never an absent value.

use std::fmt;

use super::wire::{Property, Row, Switch};
use crate::rules::capacity::DiskSpace;

/// The appliance's name for an item, `*2A`, or a file's own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemId(String);

impl ItemId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix('*')?;
        let ok = !hex.is_empty() && hex.len() <= 16 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        ok.then(|| Self(text.to_owned()))
    }

    /// The text to send.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The properties that are read of a volume's item.
pub(super) const DISK_PROPS: &[&str] = &[
    ".id",
    "slot",
    "type",
    "file-path",
    "size",
    "nvme-tcp-export",
    "nvme-tcp-server-port",
    "nvme-tcp-server-nqn",
    "nvme-tcp-server-allow-host-name",
    "comment",
];
/// What is read of all disks, to see which files they use.
pub(super) const USE_PROPS: &[&str] = &[".id", "slot", "file-path"];
/// What is read of all disks, to see how much is promised.
pub(super) const SPACE_PROPS: &[&str] =
    &[".id", "slot", "file-path", "size", "file-size", "free", "mount-point"];
/// What is read of all disks, to see what their comments say.
pub(super) const COMMENT_PROPS: &[&str] = &[".id", "slot", "comment"];
/// What is read of a file.
pub(super) const FILE_PROPS: &[&str] = &[".id", "name", "size"];

/// A volume's item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskItem {
    pub id: ItemId,
    pub slot: String,
    /// `file` for all of ours.
    pub kind: String,
    /// As read back, with a leading slash; empty if the item has none.
    pub file_path: String,
    /// Exact bytes; absent until the file is there.
    pub size: Option<u64>,
    pub export: bool,
    pub port: Option<u16>,
    /// Empty if none is set.
    pub nqn: String,
    /// Empty means that any host may connect.
    pub allow_host: String,
    pub comment: String,
}

/// Which file a disk uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUse {
    pub id: ItemId,
    pub slot: String,
    pub file_path: String,
}

/// What the comment of a disk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskComment {
    pub slot: String,
    pub comment: String,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileItem {
    pub id: ItemId,
    pub name: String,
    /// In bytes, where it is told exactly.
    pub size: Option<u64>,
}

/// RouterOS leaves out properties that are empty, so for texts absent means empty.
fn text(row: &Row, key: &str) -> String {
    row.get(key).cloned().unwrap_or_default()
}

fn required<'a>(row: &'a Row, key: &str) -> Result<&'a str, String> {
    match row.get(key) {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(format!("an item has no {key}")),
    }
}

fn id(row: &Row) -> Result<ItemId, String> {
    let value = required(row, ".id")?;
    ItemId::parse(value).ok_or_else(|| format!(".id {value:?} is not an item id"))
}

/// A property that must be there and must be a yes or a no. An export that is merely not
/// mentioned is not known to be off.
fn yes_no(row: &Row, key: &str) -> Result<bool, String> {
    match required(row, key)? {
        "true" | "yes" => Ok(true),
        "false" | "no" => Ok(false),
        other => Err(format!("{key} is {other:?}, neither yes nor no")),
    }
}

fn number<T: std::str::FromStr>(row: &Row, key: &str) -> Result<Option<T>, String> {
    match row.get(key).map(String::as_str) {
        None | Some("") => Ok(None),
        Some(value) if value.bytes().all(|b| b.is_ascii_digit()) => {
            value.parse().map(Some).map_err(|_| format!("{key} {value:?} is out of range"))
        }
        Some(value) => Err(format!("{key} {value:?} is not a number")),
    }
}

impl DiskItem {
    pub(super) fn read(row: &Row) -> Result<Self, String> {
        Ok(Self {
            id: id(row)?,
            slot: required(row, "slot")?.to_owned(),
            kind: text(row, "type"),
            file_path: text(row, "file-path"),
            size: number(row, "size")?,
            export: yes_no(row, "nvme-tcp-export")?,
            port: number(row, "nvme-tcp-server-port")?,
            nqn: text(row, "nvme-tcp-server-nqn"),
            allow_host: text(row, "nvme-tcp-server-allow-host-name"),
            comment: text(row, "comment"),
        })
    }
}

impl DiskItem {
    /// Whether a property reads back as it was set.
    #[must_use]
    pub fn shows(&self, property: &Property) -> bool {
        match property {
            Property::Slot(slot) => self.slot == slot.as_str(),
            Property::TypeFile => self.kind == "file",
            Property::FilePath(path) => path.is(&self.file_path),
            Property::FileSize(size) => self.size == Some(*size),
            Property::Export(switch) => self.export == (*switch == Switch::On),
            Property::Port(port) => self.port == Some(*port),
            Property::Nqn(nqn) => self.nqn == nqn.as_str(),
            Property::AllowHost(host) => self.allow_host == host.as_str(),
            Property::AllowHosts(hosts) => self.allow_host == hosts.to_string(),
            Property::Comment(tag) => self.comment == tag.to_string(),
            Property::SnapTag(tag) => self.comment == tag.to_string(),
            // Not read of a disk; nothing is built on it.
            Property::NoMountFilesystem
            | Property::FileName(_)
            | Property::MountPoint(_)
            | Property::SubvolumeName(_)
            | Property::SubvolumeFs(_)
            | Property::SubvolumeParent(_)
            | Property::ReadOnly(_) => true,
        }
    }
}

/// What space a disk has or takes.
pub(super) fn space(row: &Row) -> Result<DiskSpace, String> {
    Ok(DiskSpace {
        slot: text(row, "slot"),
        file_path: text(row, "file-path"),
        size: number(row, "size")?,
        // Shown rounded by some versions; the size is what counts.
        file_size: number(row, "file-size").unwrap_or(None),
        free: number(row, "free")?,
        mount_point: text(row, "mount-point"),
    })
}

#[cfg(test)]
impl DiskItem {
    /// A volume that nobody has, for tests.
    pub(crate) fn sample(slot: &str, size: u64) -> Self {
        Self {
            id: ItemId("*2A".into()),
            slot: slot.into(),
            kind: "file".into(),
            file_path: format!("/raid10/volumes/{slot}.img"),
            size: Some(size),
            export: false,
            port: Some(4420),
            nqn: format!("nqn.2000-02.com.mikrotik:{slot}"),
            allow_host: "nqn.2014-08.org.nvmexpress:uuid:3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11"
                .into(),
            comment: String::new(),
        }
    }
}

impl DiskUse {
    pub(super) fn read(row: &Row) -> Result<Self, String> {
        Ok(Self { id: id(row)?, slot: text(row, "slot"), file_path: text(row, "file-path") })
    }
}

impl DiskComment {
    pub(super) fn read(row: &Row) -> Result<Self, String> {
        Ok(Self { slot: text(row, "slot"), comment: text(row, "comment") })
    }
}

impl FileItem {
    pub(super) fn read(row: &Row) -> Result<Self, String> {
        // Only shown to people: one that is rounded is worth nothing.
        let size = number(row, "size").unwrap_or(None);
        Ok(Self { id: id(row)?, name: required(row, "name")?.to_owned(), size })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(changes: &[(&str, Option<&str>)]) -> Row {
        let mut row: Row = [
            (".id", "*2A"),
            ("slot", "pvc-x"),
            ("type", "file"),
            ("file-path", "/raid10/x.img"),
            ("size", "1099511627776"),
            ("nvme-tcp-export", "false"),
            ("nvme-tcp-server-port", "4420"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        for (key, value) in changes {
            match value {
                Some(v) => row.insert((*key).to_owned(), (*v).to_owned()),
                None => row.remove(*key),
            };
        }
        row
    }

    #[test]
    fn an_item_is_read_exactly() {
        let item = DiskItem::read(&row(&[])).unwrap();
        assert_eq!((item.size, item.export, item.port), (Some(1 << 40), false, Some(4420)));
        assert_eq!((item.comment.as_str(), item.allow_host.as_str()), ("", ""));
        assert_eq!(DiskItem::read(&row(&[("size", None)])).unwrap().size, None);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for (key, value) in [
            (".id", None),
            (".id", Some("2A")),
            (".id", Some("*")),
            ("slot", None),
            ("size", Some("1 099 511 627 776")),
            ("size", Some("1024.0GiB")),
            ("size", Some("-1")),
            ("size", Some("99999999999999999999")),
            ("nvme-tcp-export", None),
            ("nvme-tcp-export", Some("")),
            ("nvme-tcp-export", Some("maybe")),
            ("nvme-tcp-server-port", Some("70000")),
        ] {
            assert!(DiskItem::read(&row(&[(key, value)])).is_err(), "{key}={value:?}");
        }
    }
}
