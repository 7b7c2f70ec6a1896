//! The `/disk` item: exactly the properties of ROUTEROS.md and of its sample output.

use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::id::ItemId;
use super::item::{Item, Value};
use super::number::{Origin, parse_number, parse_size};

/// What `add` and `set` know. The console refuses any other name before it runs anything.
pub const SETTABLE: &[&str] = &[
    "type",
    "slot",
    "file-path",
    "file-size",
    "file-offset",
    "mount-filesystem",
    "mount-read-only",
    "compress",
    "nvme-tcp-export",
    "disabled",
    "nvme-tcp-server-port",
    "nvme-tcp-server-nqn",
    "nvme-tcp-server-allow-host-name",
    "nvme-tcp-server-password",
    "comment",
    "iscsi-export",
    "nfs-sharing",
    "smb-sharing",
    "media-sharing",
    "swap",
];

/// What was configured. What became of it (created, exported) is in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub id: ItemId,
    pub slot: String,
    pub file_path: String,
    /// `None` until it is given or taken from an existing file.
    pub file_size: Option<u64>,
    pub mount_filesystem: bool,
    pub mount_read_only: bool,
    pub compress: bool,
    pub nvme_tcp_export: bool,
    pub server_port: u16,
    pub server_nqn: String,
    pub allow_host_name: String,
    /// Kept so that it can be set; never printed and not used: what it does is not known.
    #[serde(default)]
    pub server_password: String,
    pub comment: String,
    pub disabled: bool,
}

/// What the appliance made of a disk so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Flag `B`.
    pub block_device: bool,
    /// Flag `t`.
    pub exported: bool,
    /// Exact bytes, once there is a block device.
    pub size: Option<u64>,
}

/// How a few things read back that nobody has verified; each is a command line switch.
#[derive(Debug, Clone, Copy)]
pub struct ReadBack {
    /// `nvme-tcp-export` shows what is, rather than what was asked for.
    pub actual_export: bool,
    /// An unset `nvme-tcp-server-nqn` reads back as the default one.
    pub effective_nqn: bool,
}

impl Disk {
    pub fn new(id: ItemId, server_port: u16) -> Disk {
        Disk {
            id,
            slot: String::new(),
            file_path: String::new(),
            file_size: None,
            // The dangerous default is the documented one: the appliance may mount the guest's filesystem.
            mount_filesystem: true,
            mount_read_only: false,
            compress: false,
            nvme_tcp_export: false,
            server_port,
            server_nqn: String::new(),
            allow_host_name: String::new(),
            server_password: String::new(),
            comment: String::new(),
            disabled: false,
        }
    }

    /// The NQN that hosts see.
    pub fn nqn(&self) -> String {
        match self.server_nqn.as_str() {
            "" => format!("nqn.2000-02.com.mikrotik:{}", self.slot),
            nqn => nqn.to_owned(),
        }
    }

    /// Sets one property from its text.
    pub fn set(&mut self, name: &str, value: &str, origin: Origin) -> Result<(), Refusal> {
        let invalid = || Refusal::InvalidValue(name.to_owned());
        match name {
            "type" if value == "file" => {}
            "type" => return Err(Refusal::NoMatch("type".into())),
            "slot" if value.is_empty() => return Err(invalid()),
            "slot" => self.slot = value.to_owned(),
            "file-path" => self.file_path = format!("/{}", value.trim_start_matches('/')),
            "file-size" => {
                self.file_size =
                    Some(parse_size(value, origin).filter(|n| *n > 0).ok_or_else(invalid)?)
            }
            "file-offset" => match parse_size(value, origin) {
                Some(0) => {}
                Some(_) => return Err(Refusal::CannotDo),
                None => return Err(invalid()),
            },
            "mount-filesystem" => self.mount_filesystem = flag(name, value)?,
            "mount-read-only" => self.mount_read_only = flag(name, value)?,
            "compress" => self.compress = flag(name, value)?,
            "nvme-tcp-export" => self.nvme_tcp_export = flag(name, value)?,
            "disabled" => self.disabled = flag(name, value)?,
            "nvme-tcp-server-port" => {
                let port = parse_number(value, origin).and_then(|n| u16::try_from(n).ok());
                self.server_port = port.filter(|p| *p > 0).ok_or_else(invalid)?;
            }
            // 223 bytes: NVMe base specification, "NVMe Qualified Names".
            "nvme-tcp-server-nqn" if value.len() > 223 => return Err(invalid()),
            "nvme-tcp-server-nqn" => self.server_nqn = value.to_owned(),
            "nvme-tcp-server-allow-host-name" => self.allow_host_name = value.to_owned(),
            "nvme-tcp-server-password" => self.server_password = value.to_owned(),
            "comment" => self.comment = value.to_owned(),
            // They exist, and are switched on for nothing that this stand-in is for.
            "iscsi-export" | "nfs-sharing" | "smb-sharing" | "media-sharing" | "swap" => {
                if flag(name, value)? {
                    return Err(Refusal::CannotDo);
                }
            }
            _ => return Err(Refusal::UnknownParameter(name.to_owned())),
        }
        Ok(())
    }

    /// The item as it is printed, in the order of the sample.
    pub fn print(&self, status: Status, read_back: ReadBack) -> Item {
        // Thousands are printed at once: no growing on the way.
        let mut item = Item(Vec::with_capacity(32));
        item.word(".id", self.id.to_string());
        item.push("block-device", Value::Flag(status.block_device));
        item.push("disabled", Value::Flag(self.disabled));
        if !self.comment.is_empty() {
            item.text("comment", &*self.comment);
        }
        item.word("type", "file");
        item.text("slot", &*self.slot);
        item.text("slot-default", "");
        item.text("parent", "");
        item.text("model", &*self.file_path);
        if let Some(size) = status.size {
            item.push("size", Value::Number(size));
        }
        item.push("mount-filesystem", Value::Flag(self.mount_filesystem));
        item.push("mount-read-only", Value::Flag(self.mount_read_only));
        item.push("compress", Value::Flag(self.compress));
        item.push("sector-size", Value::Number(512));
        item.word("raid-master", "none");
        let export = if read_back.actual_export { status.exported } else { self.nvme_tcp_export };
        item.push("nvme-tcp-export", Value::Flag(export));
        item.push("nvme-tcp-server-port", Value::Number(self.server_port.into()));
        let nqn = if read_back.effective_nqn { self.nqn() } else { self.server_nqn.clone() };
        item.text("nvme-tcp-server-nqn", nqn);
        item.text("nvme-tcp-server-allow-host-name", &*self.allow_host_name);
        for name in ["iscsi-export", "nfs-sharing", "smb-sharing", "media-sharing"] {
            item.push(name, Value::Flag(false));
        }
        item.word("media-interface", "none");
        item.push("swap", Value::Flag(false));
        item.text("file-path", &*self.file_path);
        if let Some(size) = self.file_size {
            item.push("file-size", Value::Size(size));
        }
        item.push("file-offset", Value::Number(0));
        item
    }
}

/// Reads `yes` or `no`, `true` or `false`.
pub fn flag(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(Refusal::NoMatch(name.to_owned())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const READ_BACK: ReadBack = ReadBack { actual_export: true, effective_nqn: true };

    #[test]
    fn defaults_are_the_dangerous_ones() {
        let disk = Disk::new(ItemId(1), 4420);
        let item = disk.print(Status::default(), READ_BACK).rest();
        assert_eq!(item["mount-filesystem"], "true");
        assert_eq!(item["nvme-tcp-server-allow-host-name"], "");
        assert!(item.get("size").is_none(), "no size before there is a block device");
        assert!(item.get("status").is_none(), "there is no status property");
    }

    #[test]
    fn refusals_name_the_argument() {
        let mut disk = Disk::new(ItemId(1), 4420);
        let mut set = |n: &str, v: &str| disk.set(n, v, Origin::Text).map_err(|e| e.to_string());
        assert_eq!(set("nvme-tcp-port", "1"), Err("unknown parameter nvme-tcp-port".into()));
        assert_eq!(set("file-size", "1e9"), Err("invalid value for argument file-size".into()));
        assert_eq!(
            set("nvme-tcp-export", "on"),
            Err("input does not match any value of nvme-tcp-export".into())
        );
        assert_eq!(set("size", "1"), Err("unknown parameter size".into()));
        assert_eq!(set("file-path", "raid10/a.img"), Ok(()));
        assert_eq!(disk.file_path, "/raid10/a.img");
    }

    #[test]
    fn every_settable_name_can_be_set() {
        for name in SETTABLE {
            let mut disk = Disk::new(ItemId(1), 4420);
            let set = |v| disk.clone().set(name, v, Origin::Text);
            assert!(["no", "file", "0", "1", "x"].into_iter().any(|v| set(v).is_ok()), "{name}");
            assert_ne!(
                disk.set(name, "", Origin::Text),
                Err(Refusal::UnknownParameter((*name).into()))
            );
        }
    }
}
