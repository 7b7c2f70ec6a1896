//! What the block layer counts of a device, in one read that takes no lock of it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::DeviceNumber;

/// Counters of one block device (Documentation/block/stat.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoCounters {
    /// Requests that ended, whether well or badly.
    pub completed: u64,
    /// Requests that have not.
    pub in_flight: u64,
    /// Of those that ended, the ones that may have changed what the device holds.
    pub changes: u64,
}

/// Reads them again and again; each device's file stays open, which is most of the cost of a
/// read. It belongs to the device and not to its number: one that is gone cannot be read.
#[derive(Debug, Default)]
pub struct Reader {
    open: HashMap<DeviceNumber, File>,
}

impl Reader {
    /// `None` if the device is gone or the kernel prints something else.
    pub fn read(&mut self, device: DeviceNumber) -> Option<IoCounters> {
        if let Some(text) = self.open.get(&device).and_then(text) {
            return parse(&text);
        }
        self.open.remove(&device);
        let file = File::open(device.sysfs().join("stat")).ok()?;
        let counters = parse(&text(&file)?);
        self.open.insert(device, file);
        counters
    }

    /// Closes what is not of these devices.
    pub fn keep(&mut self, of: impl Fn(DeviceNumber) -> bool) {
        self.open.retain(|device, _| of(*device));
    }
}

fn text(file: &File) -> Option<String> {
    let mut text = [0; 512];
    let length = file.read_at(&mut text, 0).ok()?;
    Some(std::str::from_utf8(text.get(..length)?).ok()?.to_owned())
}

/// Reads, merges, sectors, ms; the same of writes; in flight; times; the same four of
/// discards; flushes. Older kernels end earlier.
fn parse(stat: &str) -> Option<IoCounters> {
    let fields: Vec<u64> =
        stat.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let (reads, writes, in_flight) = (fields.first()?, fields.get(4)?, *fields.get(8)?);
    let discards = fields.get(11).copied().unwrap_or(0);
    let flushes = fields.get(15).copied().unwrap_or(0);
    let changes = writes + discards;
    Some(IoCounters { completed: reads + changes + flushes, in_flight, changes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_a_device() {
        // A dm-multipath device with waiting requests, as Linux 6.1 prints it.
        let line = "     103        0     2312       40      211        0    37408     1208        3     1200     1250        2        0       16        1        7        0\n";
        assert_eq!(
            parse(line),
            Some(IoCounters { completed: 103 + 211 + 2 + 7, in_flight: 3, changes: 211 + 2 })
        );
        assert_eq!(
            parse("1 0 2 3 4 0 5 6 7 8 9"),
            Some(IoCounters { completed: 5, in_flight: 7, changes: 4 })
        );
        assert_eq!(parse(""), None);
        assert_eq!(parse("1 2 x"), None);
    }
}
