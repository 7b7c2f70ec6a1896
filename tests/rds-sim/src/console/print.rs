//! `print` for people: never to be parsed, and as hard to parse as the real one.
//!
//! The forms are those of recorded output (`tests/transcripts`): rows of properties that wrap at the
//! width, after as many flag columns as flags occur; tables where the manual shows them.

use super::quote::quote;
use crate::appliance::command::Menu;
use crate::ros::item::{Item, Value};
use crate::ros::number::{grouped, human_size};

/// An item, and its number in the whole list.
pub type Row = (usize, Item);

/// Letter, property. In the order of the manual's CLI reference.
type Flags = &'static [(char, &'static str)];

const DISK_FLAGS: Flags = &[
    ('X', "disabled"),
    ('B', "block-device"),
    ('M', "mounted"),
    ('r', "raid-member"),
    ('t', "nvme-tcp-export"),
];
const SUBVOLUME_FLAGS: Flags =
    &[('*', "default"), ('S', "snapshot"), ('r', "read-only"), ('D', "dead"), ('M', "mounted")];
/// Shown as a flag, as a comment or not at all.
const HIDDEN: &[&str] = &[
    ".id",
    "block-device",
    "mounted",
    "disabled",
    "raid-member",
    "default",
    "snapshot",
    "dead",
    "comment",
];

/// Items with all their properties.
pub fn detail(menu: Menu, rows: &[Row], width: usize) -> String {
    let all = match menu {
        Menu::Disk => DISK_FLAGS,
        Menu::BtrfsSubvolume => SUBVOLUME_FLAGS,
        _ => &[],
    };
    let set = |item: &Item, name| item.get(name) == Some(&Value::Flag(true));
    let mut flags: Vec<_> =
        all.iter().filter(|(_, name)| rows.iter().any(|(_, i)| set(i, *name))).collect();
    if rows.is_empty() && menu == Menu::Disk {
        // The header appears with no row as well (ROUTEROS.md).
        flags = all.iter().filter(|(c, _)| matches!(c, 'B' | 't')).collect();
    }
    let mut out = String::new();
    if !flags.is_empty() {
        let legend = flags.iter().map(|(c, name)| format!("{c} - {}", name.to_uppercase()));
        out.push_str(&format!("Flags: {}\r\n", legend.collect::<Vec<_>>().join("; ")));
    }
    for (n, item) in rows {
        let letters = flags.iter().map(|(c, name)| if set(item, name) { *c } else { ' ' });
        let prefix = format!("{n:>2} {} ", letters.collect::<String>());
        row(&mut out, &prefix, item, width);
    }
    out
}

fn row(out: &mut String, prefix: &str, item: &Item, width: usize) {
    let indent = " ".repeat(prefix.chars().count());
    let mut line = prefix.to_owned();
    if let Some(Value::Text(comment)) = item.get("comment") {
        out.push_str(&format!("{line};;; {comment}\r\n"));
        line.clone_from(&indent);
    }
    let room = width.max(indent.len() + 10) - indent.len();
    for (name, value) in item.0.iter().filter(|(name, _)| !HIDDEN.contains(name)) {
        let mut token = format!("{name}={} ", shown(name, value));
        if line.len() + token.trim_end().len() > width && line.trim() != "" {
            out.push_str(line.trim_end());
            out.push_str("\r\n");
            line.clone_from(&indent);
        }
        // A token that is too long breaks in its middle.
        while token.trim_end().chars().count() > room {
            let head: String = token.chars().take(room).collect();
            token = token.chars().skip(room).collect();
            out.push_str(&format!("{line}{head}\r\n"));
            line.clone_from(&indent);
        }
        line.push_str(&token);
        // The sample shows an unset file system right after `parent`.
        if *name == "parent" && item.get("fs").is_none() {
            line.push_str("fs=- ");
        }
    }
    out.push_str(line.trim_end());
    out.push_str("\r\n\r\n");
}

fn shown(name: &str, value: &Value) -> String {
    match value {
        // Seen without quotes.
        Value::Text(s) if name == "file-path" => s.clone(),
        Value::Text(s) => quote(s),
        Value::Word(s) => s.clone(),
        Value::Flag(b) => if *b { "yes" } else { "no" }.to_owned(),
        Value::Number(n) if matches!(name, "size" | "free" | "total-inodes" | "free-inodes") => {
            grouped(*n)
        }
        Value::Number(n) => n.to_string(),
        Value::Size(n) => human_size(*n),
    }
}

/// A table, where the manual shows one for plain `print`; `None` for other menus.
pub fn table(menu: Menu, rows: &[Row]) -> Option<String> {
    let (columns, gap): (&[&str], _) = match menu {
        Menu::Health => (&["name", "value", "type"], "  "),
        Menu::File => (&["name", "type", "size", "last-modified"], " "),
        _ => return None,
    };
    let cell = |item: &Item, name: &str| match item.get(name) {
        Some(Value::Size(n)) => human_size(*n),
        Some(value) => value.rest(),
        None => String::new(),
    };
    let digits = rows.iter().map(|(n, _)| n.to_string().len()).max().unwrap_or(1);
    let width = |name: &str| {
        let cells = rows.iter().map(|(_, i)| cell(i, name).chars().count());
        cells.max().unwrap_or(0).max(name.len())
    };
    let line = |number: String, cells: Vec<String>| {
        let padded = columns.iter().zip(cells).map(|(name, cell)| match *name {
            "size" => format!("{cell:>0$}", width(name)),
            _ => format!("{cell:<0$}", width(name)),
        });
        let padded = padded.collect::<Vec<_>>().join("  ");
        format!("{}\r\n", format!("{number:>digits$}{gap}{padded}").trim_end())
    };
    let titles: Vec<_> = columns.iter().map(|c| c.to_uppercase()).collect();
    let mut out = format!("Columns: {}\r\n", titles.join(", "));
    out.push_str(&line("#".into(), titles));
    for (n, item) in rows {
        out.push_str(&line(n.to_string(), columns.iter().map(|c| cell(item, c)).collect()));
    }
    Some(out)
}

/// `name: value` lines, right-aligned.
pub fn single(items: &[Item]) -> String {
    let mut out = String::new();
    for (name, value) in items.iter().flat_map(|i| &i.0) {
        out.push_str(&format!("{name:>20}: {}\r\n", value.rest()));
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::ros::disk::{Disk, ReadBack, Status};
    use crate::ros::id::ItemId;
    use crate::ros::number::Origin;

    /// The terminal that the samples were taken from.
    const WIDTH: usize = 240;

    fn recorded(text: &str) -> String {
        text.replace('\n', "\r\n")
    }

    #[test]
    fn like_the_sample_of_a_file_disk() {
        let mut disk = Disk::new(ItemId(1), 4420);
        let mut set = |n: &str, v: &str| disk.set(n, v, Origin::Text).unwrap();
        set("slot", "vm-storage-001");
        set("file-path", "/raid10/vm-storage-001.img");
        set("file-size", "1T");
        set("mount-filesystem", "no");
        set("nvme-tcp-server-nqn", "nqn.2026-09.com.mikrotik:rds2216.vm-storage-001");
        let status = Status { block_device: true, exported: true, size: Some(1 << 40) };
        let item = disk.print(status, ReadBack { actual_export: true, effective_nqn: true });
        let text = detail(Menu::Disk, &[(31, item)], WIDTH);
        assert_eq!(text, recorded(include_str!("../../tests/transcripts/disk-file.txt")));
        assert!(detail(Menu::Disk, &[], 80).starts_with("Flags:"));
    }

    fn raid(pairs: &[(&'static str, &str)]) -> Item {
        let mut item = Item::default();
        item.push("block-device", Value::Flag(true));
        for (name, value) in pairs {
            match *value {
                "yes" | "no" => item.push(name, Value::Flag(*value == "yes")),
                _ => match (value.parse(), value.strip_prefix('=')) {
                    (Ok(number), _) => item.push(name, Value::Number(number)),
                    (_, Some(word)) => item.word(name, word),
                    _ => item.text(name, *value),
                },
            }
        }
        item
    }

    #[test]
    fn like_the_sample_of_a_raid() {
        let shares = [
            ("iscsi-export", "no"),
            ("nfs-sharing", "no"),
            ("smb-sharing", "no"),
            ("media-sharing", "no"),
            ("media-interface", "=none"),
            ("swap", "no"),
        ];
        let mut top = vec![
            ("mounted", "yes"),
            ("type", "=raid"),
            ("slot", "raid10"),
            ("slot-default", ""),
            ("parent", ""),
            ("fs-label", "ocp-storage"),
            ("fs-uuid", "40437dbc-2318-45dc-817b-b3bb95cf48ab"),
            ("fs", "=xfs"),
            ("model", "RAID0 striped"),
            ("size", "16003143565312"),
            ("free", "14789895307264"),
            ("total-inodes", "1562806656"),
            ("free-inodes", "1562806652"),
            ("use", "=8%"),
            ("mount-point", "raid10"),
            ("mount-filesystem", "yes"),
            ("mount-read-only", "no"),
            ("compress", "no"),
            ("sector-size", "512"),
            ("raid-type", "0"),
            ("raid-device-count", "4"),
            ("raid-max-component-size", "=none"),
            ("raid-chunk-size", "=256K"),
            ("raid-master", "=none"),
            ("state", "clean"),
            ("raid-uuid", "eadca0af-ecff031c-239758ad-951a47de"),
            ("nvme-tcp-export", "no"),
        ];
        let mut pair = vec![
            ("raid-member", "yes"),
            ("type", "=raid"),
            ("slot", "raid10-m0"),
            ("slot-default", ""),
            ("parent", ""),
            ("model", "RAID1 mirrored"),
            ("size", "4000786153472"),
            ("mount-filesystem", "no"),
            ("mount-read-only", "no"),
            ("compress", "no"),
            ("sector-size", "512"),
            ("raid-type", "1"),
            ("raid-device-count", "2"),
            ("raid-max-component-size", "=none"),
            ("raid-master", "=raid10"),
            ("raid-role", "0"),
            ("raid-member-failed", "no"),
            ("raid-member-state", "0:in_sync"),
            ("state", "clean"),
            ("raid-uuid", "5715669c-43873157-0ebaaa3a-7104d138"),
            ("nvme-tcp-export", "no"),
        ];
        top.extend(shares);
        pair.extend(shares);
        let text = detail(Menu::Disk, &[(26, raid(&top)), (27, raid(&pair))], WIDTH);
        assert_eq!(text, recorded(include_str!("../../tests/transcripts/disk-raid.txt")));
    }

    #[test]
    fn tables_like_the_manual() {
        let file = |name: &str, kind: &str, modified: &str| {
            let mut item = Item::default();
            item.text("name", name);
            item.text("type", kind);
            if kind != "directory" {
                item.push("size", Value::Size(0));
            }
            item.text("last-modified", modified);
            item
        };
        let (day, old) = ("2026-09-25 12:12:20", "1970-01-01 03:00:05");
        let files = [
            file("dir2", "directory", day),
            file("dir1", "directory", day),
            file("test1.txt", ".txt file", day),
            file("skins", "directory", old),
            file("dir1/test1copy.txt", ".txt file", day),
            file("dir2/test1copy.txt", ".txt file", day),
        ];
        let rows: Vec<Row> = files.into_iter().enumerate().collect();
        let expected = recorded(include_str!("../../tests/transcripts/file-print.txt"));
        assert_eq!(table(Menu::File, &rows).unwrap(), expected);
        assert!(table(Menu::Disk, &rows).is_none());
    }
}
