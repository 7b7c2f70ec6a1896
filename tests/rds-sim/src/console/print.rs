//! `print` for people: never to be parsed, and as hard to parse as the real one.

use super::quote::quote;
use crate::appliance::command::Menu;
use crate::ros::item::{Item, Value};
use crate::ros::number::{grouped, human_size};

const INDENT: &str = "      ";

/// Items as in the sample of ROUTEROS.md; the header appears with no row as well.
pub fn items(menu: Menu, items: &[Item], width: usize) -> String {
    let mut out = String::new();
    if menu == Menu::Disk {
        out.push_str("Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT\r\n");
    }
    for (n, item) in items.iter().enumerate() {
        row(&mut out, n, item, width);
    }
    out
}

fn row(out: &mut String, n: usize, item: &Item, width: usize) {
    let set = |name| item.get(name) == Some(&Value::Flag(true));
    let flags = format!(
        "{}{}",
        if set("block-device") { "B" } else { " " },
        if set("nvme-tcp-export") { "t" } else { " " }
    );
    let mut line = format!("{n:>2} {flags} ");
    if let Some(Value::Text(comment)) = item.get("comment") {
        out.push_str(&format!("{line};;; {comment}\r\n"));
        line = INDENT.into();
    }
    let hidden = [".id", "block-device", "disabled", "comment"];
    for (name, value) in item.0.iter().filter(|(name, _)| !hidden.contains(name)) {
        let mut token = format!("{name}={} ", shown(name, value));
        if line.len() + token.len() > width && line.trim() != "" {
            out.push_str(line.trim_end());
            out.push_str("\r\n");
            line = INDENT.into();
        }
        // A token that is too long breaks in its middle.
        while INDENT.len() + token.chars().count() > width.max(INDENT.len() + 10) {
            let head: String =
                token.chars().take(width.max(INDENT.len() + 10) - INDENT.len()).collect();
            token = token.chars().skip(head.chars().count()).collect();
            out.push_str(&format!("{line}{head}\r\n"));
            line = INDENT.into();
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
        Value::Number(n) if matches!(name, "size" | "free") => grouped(*n),
        Value::Number(n) => n.to_string(),
        Value::Size(n) => human_size(*n),
    }
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

    #[test]
    fn like_the_sample() {
        let mut disk = Disk::new(ItemId(1), 4420);
        let mut set = |n: &str, v: &str| disk.set(n, v, Origin::Text).unwrap();
        set("slot", "vm-storage-001");
        set("file-path", "/raid10/vm-storage-001.img");
        set("file-size", "1T");
        set("mount-filesystem", "no");
        set("nvme-tcp-server-nqn", "nqn.2026-09.com.mikrotik:rds2216.vm-storage-001");
        let status = Status { block_device: true, exported: true, size: Some(1 << 40) };
        let item = disk.print(status, ReadBack { actual_export: true, effective_nqn: true });
        let text = items(Menu::Disk, &[item], 250);
        let expected = "Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT\r\n \
0 Bt type=file slot=\"vm-storage-001\" slot-default=\"\" parent=\"\" fs=- model=\"/raid10/vm-storage-001.img\" size=1 099 511 627 776 \
mount-filesystem=no mount-read-only=no compress=no sector-size=512 raid-master=none nvme-tcp-export=yes\r\n      \
nvme-tcp-server-port=4420 nvme-tcp-server-nqn=\"nqn.2026-09.com.mikrotik:rds2216.vm-storage-001\" nvme-tcp-server-allow-host-name=\"\" \
iscsi-export=no nfs-sharing=no smb-sharing=no media-sharing=no media-interface=none swap=no\r\n      \
file-path=/raid10/vm-storage-001.img file-size=1024.0GiB file-offset=0\r\n\r\n";
        assert_eq!(text, expected);
        assert!(items(Menu::Disk, &[], 80).starts_with("Flags:"));
    }
}
