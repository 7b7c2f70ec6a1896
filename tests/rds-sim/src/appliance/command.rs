//! What both transports ask of the appliance.

use crate::ros::item::Item;
use crate::ros::number::Origin;
use crate::ros::query::Query;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Menu {
    Disk,
    File,
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
    pub fn path(&self) -> &'static str {
        match self {
            Command::Print { menu: Menu::Disk, .. } => "/disk/print",
            Command::Print { menu: Menu::File, .. } => "/file/print",
            Command::Add { menu: Menu::Disk, .. } => "/disk/add",
            Command::Add { menu: Menu::File, .. } => "/file/add",
            Command::Set { menu: Menu::Disk, .. } => "/disk/set",
            Command::Set { menu: Menu::File, .. } => "/file/set",
            Command::Remove { menu: Menu::Disk, .. } => "/disk/remove",
            Command::Remove { menu: Menu::File, .. } => "/file/remove",
            Command::Resource => "/system/resource/print",
            Command::Identity => "/system/identity/print",
        }
    }

    /// Which item it is about, for the log.
    pub fn item(&self) -> Option<String> {
        let property = |p: &[Property]| {
            p.iter().find(|p| p.name == "slot" || p.name == "name").map(|p| p.value.clone())
        };
        match self {
            Command::Add { properties, .. } => property(properties),
            Command::Set { targets, .. } | Command::Remove { targets, .. } => {
                Some(targets.join(","))
            }
            Command::Print { query, .. } => query.0.iter().find_map(|w| match w {
                crate::ros::query::Word::Equal(n, v) if n != "type" => Some(v.clone()),
                _ => None,
            }),
            Command::Resource | Command::Identity => None,
        }
    }
}
