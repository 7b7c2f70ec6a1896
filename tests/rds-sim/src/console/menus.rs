//! Which paths and arguments there are. The console refuses all others before it runs anything.

use super::syntax::{Place, Verb};
use crate::appliance::command::Menu;
use crate::ros::disk::SETTABLE;
use crate::ros::version::{Feature, Version};

/// Words of each path.
const PATHS: &[(&[&str], Place)] = &[
    (&["disk"], Place::Menu(Menu::Disk)),
    (&["disk", "btrfs", "filesystem"], Place::Menu(Menu::BtrfsFilesystem)),
    (&["disk", "btrfs", "subvolume"], Place::Menu(Menu::BtrfsSubvolume)),
    (&["file"], Place::Menu(Menu::File)),
    (&["system", "resource"], Place::Resource),
    (&["system", "health"], Place::Menu(Menu::Health)),
    (&["system", "identity"], Place::Identity),
];

/// How far a path has been read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trail {
    words: &'static [&'static str],
    pub(super) place: Option<Place>,
}

impl Trail {
    /// Where a command within a menu starts.
    pub(super) fn at(place: Option<Place>) -> Trail {
        let words = PATHS.iter().find(|(_, p)| Some(*p) == place).map_or(&[][..], |(w, _)| w);
        Trail { words, place }
    }

    /// One word further; `None` where no path goes on with it.
    pub(super) fn step(self, word: &str) -> Option<Trail> {
        let n = self.words.len();
        let on = |(path, _): &&(&'static [&'static str], Place)| {
            path.len() > n && path[..n] == *self.words && path[n] == word
        };
        let (path, _) = PATHS.iter().find(on)?;
        let words = &path[..=n];
        let place = PATHS.iter().find(|(p, _)| *p == words).map(|(_, place)| *place);
        Some(Trail { words, place })
    }
}

/// The command of that name in that place.
pub(super) fn verb_named(name: &str, place: Place, version: Version) -> Option<Verb> {
    let verb = match name {
        "add" => Verb::Add,
        "set" => Verb::Set,
        "remove" => Verb::Remove,
        "print" => Verb::Print,
        "find" => Verb::Find,
        "get" => Verb::Get,
        "copy" => Verb::Copy,
        "monitor-traffic" => Verb::MonitorTraffic,
        _ => return None,
    };
    let known = match place {
        Place::Resource | Place::Identity => matches!(verb, Verb::Print | Verb::Get),
        Place::Menu(Menu::Health) => matches!(verb, Verb::Print | Verb::Get | Verb::Find),
        Place::Menu(menu) => {
            let copies = matches!(menu, Menu::Disk | Menu::File) && version.has(Feature::Copy);
            let btrfs = matches!(menu, Menu::BtrfsFilesystem | Menu::BtrfsSubvolume);
            let there = match verb {
                Verb::Copy => copies,
                Verb::MonitorTraffic => menu == Menu::Disk,
                Verb::Add | Verb::Remove => menu != Menu::BtrfsFilesystem,
                _ => true,
            };
            there && (!btrfs || version.has(Feature::Subvolumes))
        }
    };
    known.then_some(verb)
}

/// Whether a command has an argument of this name.
pub(super) fn takes(place: Place, verb: Verb, name: &str) -> bool {
    let target = matches!(name, "numbers" | ".id");
    let Place::Menu(menu) = place else {
        return matches!(name, "proplist" | ".proplist" | "value-name" | "number");
    };
    match verb {
        Verb::Add => settable(menu, name),
        Verb::Set => target || settable(menu, name),
        Verb::Remove | Verb::MonitorTraffic => target,
        Verb::Copy if menu == Menu::File => target || name == "name",
        Verb::Copy => matches!(name, "src" | "dst" | "src-offset" | "dst-offset" | "size"),
        Verb::Print => matches!(name, "proplist" | ".proplist"),
        Verb::Get => matches!(name, "value-name" | "number"),
        Verb::Find => false,
    }
}

fn settable(menu: Menu, name: &str) -> bool {
    match menu {
        Menu::Disk => SETTABLE.contains(&name),
        Menu::File => matches!(name, "name" | "type" | "contents"),
        Menu::Health => false,
        Menu::BtrfsFilesystem => matches!(name, "label" | "default-subvolume"),
        Menu::BtrfsSubvolume => {
            matches!(name, "fs" | "parent" | "name" | "read-only" | "mount" | "mountpoint")
        }
    }
}
