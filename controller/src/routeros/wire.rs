//! Requests as a transport sees them: a menu, a verb, and properties that were made from
//! validated types. No text of a CSI request reaches the appliance in any other way.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;
use rds_csi_proto::ids::{HostNqn, Nqn, SnapshotId, VolumeId};

use super::ApplianceError;
use super::btrfs::{FsLabel, Part, SubvolumeName};
use super::disk::ItemId;
use crate::rules::attachment::Allow;
use crate::rules::owner::OwnerTag;
use crate::rules::path::{AppliancePath, snapshot_name};
use crate::rules::snapshot::SnapTag;

/// One item as it is printed: property names and their values as text.
pub type Row = BTreeMap<String, String>;

/// A menu of the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Menu {
    Disk,
    File,
    Subvolume,
    Resource,
    Health,
}

impl Menu {
    /// Its path in the REST interface.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::File => "file",
            Self::Subvolume => "disk/btrfs/subvolume",
            Self::Resource => "system/resource",
            Self::Health => "system/health",
        }
    }
}

/// The name of an item of `/disk`: a volume's, or that of a snapshot's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot(String);

impl Slot {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&VolumeId> for Slot {
    fn from(volume: &VolumeId) -> Self {
        Self(volume.to_string())
    }
}

impl From<VolumeId> for Slot {
    fn from(volume: VolumeId) -> Self {
        Self::from(&volume)
    }
}

impl From<&SnapshotId> for Slot {
    fn from(snapshot: &SnapshotId) -> Self {
        Self(snapshot_name(snapshot))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is copied: a disk, or a file that no disk stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFrom {
    Slot(Slot),
    File(AppliancePath),
}

impl fmt::Display for CopyFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(slot) => slot.fmt(f),
            Self::File(path) => path.fmt(f),
        }
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Items whose property has exactly this value (or all of them).
    Print { menu: Menu, filter: Option<Property>, proplist: &'static [&'static str] },
    /// A new item.
    Add { menu: Menu, properties: Vec<Property> },
    /// New values for one item.
    Set { menu: Menu, target: Target, properties: Vec<Property> },
    /// The end of one item.
    Remove { menu: Menu, target: Target },
    /// The end of a file, and then of the disk over it; only where one command can carry
    /// several changes ([`Transport::takes_several`]).
    Discard { file: AppliancePath, slot: Slot },
    /// A part of one disk over the same part of another.
    Copy { from: CopyFrom, to: Slot, part: Part },
}

/// Which item a change is meant for.
///
/// By name where the appliance takes names, since ids may be given out anew when it
/// reboots: one read before and used after would hit somebody else's item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A disk's slot.
    Slot(Slot),
    /// A file's name.
    File(AppliancePath),
    /// A subvolume's name.
    Subvolume(SubvolumeName),
    /// An id that was read a moment ago.
    Id(ItemId),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(slot) => slot.fmt(f),
            Self::Subvolume(name) => f.write_str(name.as_str()),
            Self::File(path) => f.write_str(path.file_name()),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl Request {
    /// Whether it can change anything.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Print { .. })
    }

    /// Menu and verb, for metrics: few different values.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Print { menu: Menu::Disk, .. } => "disk/print",
            Self::Print { menu: Menu::File, .. } => "file/print",
            Self::Print { menu: Menu::Subvolume, .. } => "disk/btrfs/subvolume/print",
            Self::Print { menu: Menu::Resource, .. } => "system/resource/print",
            Self::Print { menu: Menu::Health, .. } => "system/health/print",
            Self::Add { menu: Menu::Subvolume, .. } => "disk/btrfs/subvolume/add",
            Self::Remove { menu: Menu::Subvolume, .. } => "disk/btrfs/subvolume/remove",
            Self::Copy { .. } => "disk/copy",
            Self::Add { .. } => "disk/add",
            Self::Set { .. } => "disk/set",
            Self::Remove { menu: Menu::File, .. } => "file/remove",
            Self::Discard { .. } => "file+disk/remove",
            Self::Remove { .. } => "disk/remove",
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.name())?;
        match self {
            Self::Print { filter, .. } => match filter {
                Some(p) => write!(f, " {}={}", p.name(), p.value()),
                None => Ok(()),
            },
            Self::Add { properties, .. } => match properties.first() {
                Some(p) => write!(f, " {}={}", p.name(), p.value()),
                None => Ok(()),
            },
            Self::Set { target, .. } | Self::Remove { target, .. } => write!(f, " {target}"),
            Self::Discard { slot, .. } => write!(f, " {slot}"),
            Self::Copy { from, to, part } => {
                write!(f, " {from} to {to} ({} bytes at {})", part.size, part.offset)
            }
        }
    }
}

/// A property with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    Slot(Slot),
    TypeFile,
    FilePath(AppliancePath),
    FileSize(u64),
    /// Always off: the appliance would mount the guest's file system.
    NoMountFilesystem,
    Export(Switch),
    Port(u16),
    Nqn(Nqn),
    AllowHost(HostNqn),
    /// One or several, separated by commas.
    AllowHosts(Allow),
    Comment(OwnerTag),
    /// The comment of a snapshot's record.
    SnapTag(SnapTag),
    /// Where a pool is, without slashes: the first component of an [`AppliancePath`].
    MountPoint(String),
    SubvolumeName(SubvolumeName),
    SubvolumeFs(FsLabel),
    SubvolumeParent(SubvolumeName),
    ReadOnly(Switch),
    /// The name of a file, without the leading slash.
    FileName(AppliancePath),
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
}

impl Property {
    /// Its name in RouterOS.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Slot(_) => "slot",
            Self::TypeFile => "type",
            Self::FilePath(_) => "file-path",
            Self::FileSize(_) => "file-size",
            Self::NoMountFilesystem => "mount-filesystem",
            Self::Export(_) => "nvme-tcp-export",
            Self::Port(_) => "nvme-tcp-server-port",
            Self::Nqn(_) => "nvme-tcp-server-nqn",
            Self::AllowHost(_) | Self::AllowHosts(_) => "nvme-tcp-server-allow-host-name",
            Self::Comment(_) | Self::SnapTag(_) => "comment",
            Self::FileName(_) | Self::SubvolumeName(_) => "name",
            Self::MountPoint(_) => "mount-point",
            Self::SubvolumeFs(_) => "fs",
            Self::SubvolumeParent(_) => "parent",
            Self::ReadOnly(_) => "read-only",
        }
    }

    /// Its value as text. Sizes are plain decimal bytes: suffixes round, and a leading zero
    /// would make them octal.
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::Slot(slot) => slot.to_string(),
            Self::TypeFile => "file".into(),
            Self::FilePath(path) => path.to_string(),
            Self::FileSize(bytes) => bytes.to_string(),
            Self::NoMountFilesystem | Self::Export(Switch::Off) | Self::ReadOnly(Switch::Off) => {
                "no".into()
            }
            Self::Export(Switch::On) | Self::ReadOnly(Switch::On) => "yes".into(),
            Self::Port(port) => port.to_string(),
            Self::Nqn(nqn) => nqn.to_string(),
            Self::AllowHost(host) => host.to_string(),
            Self::AllowHosts(hosts) => hosts.to_string(),
            Self::Comment(tag) => tag.to_string(),
            Self::SnapTag(tag) => tag.to_string(),
            Self::MountPoint(name) => name.clone(),
            Self::SubvolumeFs(label) => label.0.clone(),
            Self::SubvolumeName(name) | Self::SubvolumeParent(name) => name.as_str().to_owned(),
            Self::FileName(path) => path.file_name().to_owned(),
        }
    }
}

/// A way to the appliance: carries one request at a time.
pub trait Transport: Send {
    /// Whether one command can carry several changes.
    fn takes_several(&self) -> bool {
        false
    }

    /// Sends it and waits for the answer, within the transport's own deadlines. A `Set` may
    /// be answered with the item as it is afterwards.
    fn call<'a>(
        &'a mut self,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Vec<Row>, ApplianceError>>;
}
