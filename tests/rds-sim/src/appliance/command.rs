//! What both transports ask of the appliance.

use crate::ros::item::Item;
use crate::ros::number::Origin;
use crate::ros::policy::Policy;
use crate::ros::query::Query;
use crate::ros::version::{Feature, Version};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Menu {
    Disk,
    File,
    BtrfsFilesystem,
    BtrfsSubvolume,
    /// Print only.
    Health,
}

impl Menu {
    pub fn path(self) -> &'static str {
        match self {
            Menu::Disk => "/disk",
            Menu::File => "/file",
            Menu::BtrfsFilesystem => "/disk/btrfs/filesystem",
            Menu::BtrfsSubvolume => "/disk/btrfs/subvolume",
            Menu::Health => "/system/health",
        }
    }

    /// The property that names an item, beside its id.
    pub fn key(self) -> &'static str {
        match self {
            Menu::Disk => "slot",
            Menu::File | Menu::BtrfsSubvolume | Menu::Health => "name",
            Menu::BtrfsFilesystem => "label",
        }
    }
}

/// A property as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub name: String,
    pub value: String,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Print {
        menu: Menu,
        query: Query,
        proplist: Vec<String>,
    },
    Add {
        menu: Menu,
        properties: Vec<Property>,
    },
    /// `targets` are ids (`*2A`) or names: slots of disks, names of files.
    Set {
        menu: Menu,
        targets: Vec<String>,
        properties: Vec<Property>,
    },
    Remove {
        menu: Menu,
        targets: Vec<String>,
    },
    /// `/file/copy` of `targets`, or `/disk/copy`, which has no targets.
    Copy {
        menu: Menu,
        targets: Vec<String>,
        properties: Vec<Property>,
    },
    MonitorTraffic {
        targets: Vec<String>,
    },
    Resource,
    Identity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Items(Vec<Item>),
    One(Item),
    Added(String),
    Done,
}

impl Command {
    /// `/disk/add`: for the log, for faults, and without any value.
    pub fn path(&self) -> String {
        let (menu, verb) = match self {
            Command::Print { menu, .. } => (menu, "print"),
            Command::Add { menu, .. } => (menu, "add"),
            Command::Set { menu, .. } => (menu, "set"),
            Command::Remove { menu, .. } => (menu, "remove"),
            Command::Copy { menu, .. } => (menu, "copy"),
            Command::MonitorTraffic { .. } => return "/disk/monitor-traffic".into(),
            Command::Resource => return "/system/resource/print".into(),
            Command::Identity => return "/system/identity/print".into(),
        };
        format!("{}/{verb}", menu.path())
    }

    /// Whether that version has it (ROUTEROS.md, "Versions").
    pub fn known_to(&self, version: Version) -> bool {
        match self {
            Command::Copy { .. } => version.has(Feature::Copy),
            Command::Print { menu, .. }
            | Command::Add { menu, .. }
            | Command::Set { menu, .. }
            | Command::Remove { menu, .. } => {
                !matches!(menu, Menu::BtrfsFilesystem | Menu::BtrfsSubvolume)
                    || version.has(Feature::Subvolumes)
            }
            Command::MonitorTraffic { .. } | Command::Resource | Command::Identity => true,
        }
    }

    /// What its user must be allowed.
    pub fn policy(&self) -> Policy {
        match self {
            Command::Print { .. } | Command::Resource | Command::Identity => Policy::Read,
            Command::MonitorTraffic { .. } => Policy::Test,
            Command::Add { .. }
            | Command::Set { .. }
            | Command::Remove { .. }
            | Command::Copy { .. } => Policy::Write,
        }
    }

    /// Which item it is about, for the log.
    pub fn item(&self) -> Option<String> {
        let property = |p: &[Property]| {
            p.iter().find(|p| p.name == "slot" || p.name == "name").map(|p| p.value.clone())
        };
        match self {
            Command::Add { properties, .. } => property(properties),
            Command::Set { targets, .. }
            | Command::Remove { targets, .. }
            | Command::MonitorTraffic { targets } => Some(targets.join(",")),
            Command::Print { query, .. } => query.0.iter().find_map(|w| match w {
                crate::ros::query::Word::Equal(n, v) if n != "type" => Some(v.clone()),
                _ => None,
            }),
            Command::Copy { targets, properties, .. } => match targets.as_slice() {
                [] => properties.iter().find(|p| p.name == "src").map(|p| p.value.clone()),
                targets => Some(targets.join(",")),
            },
            Command::Resource | Command::Identity => None,
        }
    }
}
