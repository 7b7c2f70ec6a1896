//! What the appliance says of itself, for metrics: health, load, disks, promised bytes.
//!
//! Menus and properties are those of MikroTik's manual, pages "Health", "Resource" and
//! "Disks". Which of them a model has differs, so each is taken if it is there and can be
//! read, and is absent otherwise: a value that is not known is never 0.

use std::collections::BTreeMap;

use super::wire::{Menu, Request, Row};

/// A number with what it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Which number.
    pub kind: Kind,
    /// Whose: a sensor, a disk's slot, a pool; empty where there is only one.
    pub of: String,
    /// In the unit of its [`Kind`].
    pub value: f64,
}

/// Which number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Temperature,
    Fan,
    Voltage,
    Current,
    Power,
    /// 1 if the part says `ok`, 0 if it says anything else.
    PartOk,
    CpuLoad,
    MemoryTotal,
    MemoryFree,
    /// Of a disk that has a file system.
    Size,
    Free,
    /// Sum of the sizes of all file disks in a pool, whoever owns them.
    Promised,
    /// 1 if a RAID says `clean`, 0 if it says anything else.
    RaidClean,
    DiskTemperature,
    DiskUsed,
    DiskSpare,
    /// 1 if the RAID has given the disk up.
    DiskFailed,
}

const HEALTH_PROPS: &[&str] = &["name", "value", "type"];
const RESOURCE_PROPS: &[&str] = &["cpu-load", "free-memory", "total-memory"];
const STORAGE_PROPS: &[&str] = &[
    "slot",
    "type",
    "file-path",
    "size",
    "free",
    "state",
    "temperature",
    "percentage-used",
    "available-spare",
    "raid-member-failed",
];

/// The questions, each with how its answer is read.
pub type Reader = fn(&[Row]) -> Vec<Reading>;

/// All that is asked in one round.
#[must_use]
pub fn round() -> [(Request, Reader); 3] {
    let print = |menu, proplist| Request::Print { menu, filter: None, proplist };
    [
        (print(Menu::Resource, RESOURCE_PROPS), resource),
        (print(Menu::Health, HEALTH_PROPS), health),
        (print(Menu::Disk, STORAGE_PROPS), storage),
    ]
}

fn reading(kind: Kind, of: &str, value: f64) -> Reading {
    Reading { kind, of: of.to_owned(), value }
}

/// A plain number. Anything else, `1024.0GiB` for example, is not known.
fn number(row: &Row, key: &str) -> Option<f64> {
    let text = row.get(key)?;
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-');
    text.parse().ok().filter(|n: &f64| plain && n.is_finite())
}

fn resource(rows: &[Row]) -> Vec<Reading> {
    let [row] = rows else { return Vec::new() };
    let kinds = [
        (Kind::CpuLoad, "cpu-load", 0.01),
        (Kind::MemoryFree, "free-memory", 1.0),
        (Kind::MemoryTotal, "total-memory", 1.0),
    ];
    let found = kinds
        .iter()
        .filter_map(|(kind, key, scale)| number(row, key).map(|n| reading(*kind, "", n * scale)));
    found.collect()
}

fn health(rows: &[Row]) -> Vec<Reading> {
    rows.iter().filter_map(sensor).collect()
}

fn sensor(row: &Row) -> Option<Reading> {
    let name = row.get("name").filter(|n| !n.is_empty())?;
    if let Some(part) = name.strip_suffix("-state") {
        let ok = row.get("value").filter(|v| !v.is_empty())? == "ok";
        return Some(reading(Kind::PartOk, part, f64::from(u8::from(ok))));
    }
    let kind = match row.get("type")?.as_str() {
        "C" => Kind::Temperature,
        "RPM" => Kind::Fan,
        "V" => Kind::Voltage,
        "A" => Kind::Current,
        "W" => Kind::Power,
        _ => return None,
    };
    Some(reading(kind, name, number(row, "value")?))
}

fn storage(rows: &[Row]) -> Vec<Reading> {
    let mut all = Vec::new();
    // A pool's sum is known only if each of its sizes is.
    let mut promised: BTreeMap<&str, Option<f64>> = BTreeMap::new();
    for row in rows {
        let Some(slot) = row.get("slot").filter(|s| !s.is_empty()) else { continue };
        let size = number(row, "size");
        if row.get("type").is_some_and(|t| t == "file") {
            let pool = row.get("file-path").map_or("", String::as_str).trim_start_matches('/');
            let pool = pool.split_once('/').map_or(pool, |(pool, _)| pool);
            let sum = promised.entry(pool).or_insert(Some(0.0));
            *sum = sum.zip(size).map(|(sum, size)| sum + size);
            continue;
        }
        let mut put = |kind, value: Option<f64>| {
            all.extend(value.map(|value| reading(kind, slot, value)));
        };
        if let Some(free) = number(row, "free") {
            put(Kind::Free, Some(free));
            put(Kind::Size, size);
        }
        let state = row.get("state").filter(|s| !s.is_empty());
        put(Kind::RaidClean, state.map(|s| f64::from(u8::from(s == "clean"))));
        put(Kind::DiskTemperature, number(row, "temperature"));
        put(Kind::DiskUsed, number(row, "percentage-used").map(|n| n / 100.0));
        put(Kind::DiskSpare, number(row, "available-spare").map(|n| n / 100.0));
        let failed = match row.get("raid-member-failed").map(String::as_str) {
            Some("true" | "yes") => Some(1.0),
            Some("false" | "no") => Some(0.0),
            _ => None,
        };
        put(Kind::DiskFailed, failed);
    }
    for (pool, sum) in promised {
        all.extend(sum.map(|sum| reading(Kind::Promised, pool, sum)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(pairs: &[(&str, &str)]) -> Row {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn sensors_by_their_unit() {
        let sensor =
            |name, value, unit| health(&[row(&[("name", name), ("value", value), ("type", unit)])]);
        assert_eq!(sensor("fan1-speed", "5654", "RPM"), [reading(Kind::Fan, "fan1-speed", 5654.0)]);
        assert_eq!(
            sensor("cpu-temperature", "-3", "C"),
            [reading(Kind::Temperature, "cpu-temperature", -3.0)]
        );
        assert_eq!(sensor("psu1-state", "ok", ""), [reading(Kind::PartOk, "psu1", 1.0)]);
        assert_eq!(sensor("psu1-state", "fail", ""), [reading(Kind::PartOk, "psu1", 0.0)]);
        for (value, unit) in [("", "C"), ("hot", "C"), ("1e3", "C"), ("43", "lux"), ("nan", "V")] {
            assert_eq!(sensor("x", value, unit), [], "{value} {unit}");
        }
    }

    #[test]
    fn what_is_not_known_is_absent() {
        assert_eq!(resource(&[]), []);
        assert_eq!(resource(&[row(&[("cpu-load", "7")])]), [reading(Kind::CpuLoad, "", 0.07)]);
        let pool = row(&[("slot", "raid10"), ("size", "100"), ("free", "40"), ("state", "clean")]);
        let file = |slot, size| {
            row(&[("slot", slot), ("type", "file"), ("file-path", "/raid10/v/a"), ("size", size)])
        };
        assert_eq!(
            storage(&[pool.clone(), file("a", "10"), file("b", "20")]),
            [
                reading(Kind::Free, "raid10", 40.0),
                reading(Kind::Size, "raid10", 100.0),
                reading(Kind::RaidClean, "raid10", 1.0),
                reading(Kind::Promised, "raid10", 30.0),
            ]
        );
        // One size that cannot be read, and the sum would be too small.
        let sums = storage(&[pool, file("a", "10"), file("b", "20.0GiB")]);
        assert!(!sums.iter().any(|r| r.kind == Kind::Promised), "{sums:?}");
    }

    proptest! {
        #[test]
        fn whatever_the_rows(rows in proptest::collection::vec(
            proptest::collection::btree_map("(slot|type|size|free|file-path|name|value|state)", ".{0,8}", 0..8), 0..4)) {
            for (_, read) in round() {
                prop_assert!(read(&rows).iter().all(|r| r.value.is_finite()));
            }
        }
    }
}
