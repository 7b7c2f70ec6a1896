//! Is this still the same volume?
//!
//! Before I/O is sent to a namespace that took the place of a lost one, its content is
//! compared with what was recorded while the volume was healthy. A file system is known
//! by its UUID. A raw volume belongs to its user, so it is known by samples: the hashes of
//! blocks spread over it, taken again every few seconds. One sampled block that still
//! matches proves that it is the same; none that matches proves the opposite, unless so
//! much was written since the sampling that all of them may have changed. On a volume of which
//! only a part holds anything that is little: a program that goes round in that part, or in the
//! only few blocks of one that is nearly empty. There, what was zeros has to tell: it still is.
//! Only at the very beginning fewer blocks than hold something may have come to do so: a log that
//! grows, or reaches its first place again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::Content;
use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::sysfs::{self, Namespace};

/// Size of a sampled block, in bytes.
const BLOCK: u64 = 4096;
/// Blocks sampled: the first ones, where partition tables and headers are, and the rest
/// spread evenly.
const HEAD_BLOCKS: u64 = 8;
const SPREAD_BLOCKS: u64 = 56;

/// As many blocks as a program may be thought to write to and to no others. A volume on which
/// more of the samples hold something is not nearly empty.
const FEW: usize = HEAD_BLOCKS as usize;
const SECTOR: u64 = 512;

/// What was sampled of a raw volume, and when by the device's own count of writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Samples {
    /// Offset and hash of each block that was not all zeros.
    pub blocks: Vec<(u64, u32)>,
    /// Offset of each block that was all zeros. Older records do not tell.
    #[serde(default)]
    pub zeros: Vec<u64>,
    /// Size of the volume when it was sampled, in bytes.
    pub size_bytes: u64,
    /// Bytes that had been written through the shield by then.
    pub written_bytes: u64,
}

/// What may have changed since a volume was sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Since {
    /// Bytes that were written and acknowledged.
    pub written_bytes: u64,
    /// Requests that were not acknowledged, though the target may have carried them out.
    pub in_flight: u64,
}

impl Since {
    /// At most so many blocks.
    fn blocks(self) -> u64 {
        (self.written_bytes / SECTOR).saturating_add(self.in_flight)
    }
}

/// The outcome of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the same volume, or nothing is known that could tell.
    Same,
    /// It is another one; with what was expected and found.
    Different(String),
}

/// Compares what is on `device` with what was recorded.
///
/// # Errors
/// If the device cannot be read: then nothing is known.
pub fn compare(
    device: &File,
    content: &Content,
    samples: &Samples,
    since: Since,
) -> io::Result<Verdict> {
    match content {
        Content::Unknown => Ok(Verdict::Same),
        Content::Filesystem { fs_type, uuid } => {
            let expected = format!("{fs_type} {uuid}");
            Ok(match identify(device)? {
                Some((t, u)) if same_type(&t, fs_type) && u == *uuid => Verdict::Same,
                Some((t, u)) => {
                    Verdict::Different(format!("it should hold {expected} and holds {t} {u}"))
                }
                None => Verdict::Different(format!(
                    "it should hold {expected} and holds no file system"
                )),
            })
        }
        Content::Raw => compare_samples(device, samples, since),
    }
}

/// ext2, ext3 and ext4 differ by features that a journal replay may change.
fn same_type(a: &str, b: &str) -> bool {
    let ext = |t: &str| t.starts_with("ext");
    a == b || (ext(a) && ext(b))
}

fn compare_samples(device: &File, samples: &Samples, since: Since) -> io::Result<Verdict> {
    if samples.blocks.is_empty() || since.written_bytes >= samples.size_bytes / 2 {
        return Ok(Verdict::Same);
    }
    let mut all_zeros = true;
    for (offset, hash) in &samples.blocks {
        let found = hash_at(device, *offset)?;
        if found == *hash {
            return Ok(Verdict::Same);
        }
        all_zeros &= found == hash_of_zeros();
    }
    if !all_zeros && may_be_rewritten(device, samples, since)? {
        return Ok(Verdict::Same);
    }
    Ok(Verdict::Different(format!(
        "none of {} sampled blocks is what it was, though only {} bytes were written since",
        samples.blocks.len(),
        since.written_bytes
    )))
}

/// Whether all blocks that held something may have been written to since, in a volume of which
/// the rest is as empty as it was.
fn may_be_rewritten(device: &File, samples: &Samples, since: Since) -> io::Result<bool> {
    if samples.zeros.is_empty() {
        return Ok(false);
    }
    let held = samples.blocks.len();
    let beyond = samples.blocks.iter().filter(|(offset, _)| *offset >= HEAD_BLOCKS * BLOCK).count();
    // Once over the part that holds anything, as far as the samples tell how large it is.
    let once_over = beyond as u64 * (samples.size_bytes / SPREAD_BLOCKS);
    let mut begun = 0;
    for offset in &samples.zeros {
        if hash_at(device, *offset)? != hash_of_zeros() {
            if *offset >= HEAD_BLOCKS * BLOCK {
                return Ok(false);
            }
            begun += 1;
        }
    }
    let each_of_few = held <= FEW && (held + begun) as u64 <= since.blocks();
    Ok(begun < held && (each_of_few || (beyond > 0 && since.written_bytes >= once_over)))
}

fn hash_of_zeros() -> u32 {
    crc32fast::hash(&[0; BLOCK as usize])
}

/// Samples a raw volume, beside the count of what was written through `counted`, the device
/// that its users have.
///
/// The count comes first: what is written in between is then taken for written since.
///
/// # Errors
/// If the volume or the count cannot be read. A count that is not known is not 0: everything
/// ever written would seem to have been written since, and any volume would pass for this one.
pub fn take(
    device: &File,
    namespace: &Namespace,
    counted: Option<DeviceNumber>,
) -> Result<Samples> {
    let written = counted.and_then(sysfs::bytes_written).ok_or_else(|| {
        Error::Unavailable(format!(
            "{} is not sampled: what was written to its volume cannot be counted",
            namespace.name
        ))
    })?;
    sample(device, namespace.size_bytes, written).map_err(Error::kernel("read", &namespace.name))
}

fn sample(device: &File, size_bytes: u64, written_bytes: u64) -> io::Result<Samples> {
    let blocks = size_bytes / BLOCK;
    let mut wanted: Vec<u64> = (0..HEAD_BLOCKS.min(blocks)).collect();
    wanted.extend((0..SPREAD_BLOCKS).map(|n| n * blocks / SPREAD_BLOCKS));
    wanted.sort_unstable();
    wanted.dedup();
    let (mut found, mut zeros) = (Vec::new(), Vec::new());
    for block in wanted {
        let (offset, hash) = (block * BLOCK, hash_at(device, block * BLOCK)?);
        if hash == hash_of_zeros() {
            zeros.push(offset);
        } else {
            found.push((offset, hash));
        }
    }
    Ok(Samples { blocks: found, zeros, size_bytes, written_bytes })
}

/// A buffer that direct I/O accepts. The check must not be answered from the page cache,
/// which a namespace keeps for as long as the shield holds it open.
#[repr(align(4096))]
struct Block([u8; BLOCK as usize]);

fn read_block(device: &File, offset: u64) -> io::Result<Box<Block>> {
    let mut block = Box::new(Block([0; BLOCK as usize]));
    device.read_exact_at(&mut block.0, offset)?;
    Ok(block)
}

fn hash_at(device: &File, offset: u64) -> io::Result<u32> {
    Ok(crc32fast::hash(&read_block(device, offset)?.0))
}

/// The file system on a device, by its superblock: type and UUID as libblkid prints them.
/// Only the types that this driver makes; anything else is `None`.
///
/// # Errors
/// If the device cannot be read.
pub fn identify(device: &File) -> io::Result<Option<(String, String)>> {
    // Btrfs's superblock is the farthest: 64 KiB + 64 bytes of magic.
    let mut head = Vec::with_capacity(68 << 10);
    for block in 0..17 {
        head.extend_from_slice(&read_block(device, block * BLOCK)?.0);
    }
    Ok(identify_bytes(&head))
}

fn identify_bytes(head: &[u8]) -> Option<(String, String)> {
    let at = |offset: usize, len: usize| head.get(offset..offset + len).unwrap_or_default();
    let uuid =
        |offset: usize| uuid::Uuid::from_slice(at(offset, 16)).unwrap_or_default().to_string();
    if at(0, 4) == b"XFSB" {
        return Some(("xfs".into(), uuid(32)));
    }
    if at(0x1_0040, 8) == b"_BHRfS_M" {
        return Some(("btrfs".into(), uuid(0x1_0020)));
    }
    // s_magic; then s_feature_compat (has_journal 0x4) and s_feature_incompat (extents 0x40).
    if at(1024 + 0x38, 2) == [0x53, 0xef] {
        let word =
            |offset: usize| at(1024 + offset, 4).try_into().map(u32::from_le_bytes).unwrap_or(0);
        let kind = match (word(0x5c) & 0x4 != 0, word(0x60) & 0x40 != 0) {
            (_, true) => "ext4",
            (true, false) => "ext3",
            (false, false) => "ext2",
        };
        return Some((kind.into(), uuid(1024 + 0x68)));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    const SIZE: u64 = 4 << 20;

    fn written(written_bytes: u64) -> Since {
        Since { written_bytes, in_flight: 0 }
    }

    fn volume(seed: u8) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..SIZE).map(|n| (n / BLOCK) as u8 ^ seed).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn the_same_volume_matches_even_when_partly_rewritten() {
        let mut file = volume(1);
        let samples = sample(&file, SIZE, 0).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&vec![0xaa; (SIZE / 4) as usize]).unwrap();
        assert_eq!(
            compare(&file, &Content::Raw, &samples, written(SIZE / 4)).unwrap(),
            Verdict::Same
        );
    }

    /// A block device that any machine has, since the kernel's counters are needed.
    fn any_block_device() -> Option<DeviceNumber> {
        let devices = std::fs::read_dir("/sys/block").ok()?.flatten();
        devices
            .filter_map(|d| std::fs::read_to_string(d.path().join("dev")).ok())
            .find_map(|text| DeviceNumber::parse(text.trim()))
    }

    #[test]
    fn a_volume_whose_writes_cannot_be_counted_is_not_sampled() {
        let gone = DeviceNumber { major: 0, minor: 0 };
        let namespace =
            Namespace { name: "nvme0n1".into(), number: gone, size_bytes: SIZE, wwid: "".into() };
        for unknown in [None, Some(gone)] {
            let refused = take(&volume(1), &namespace, unknown).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unavailable);
        }
        if let Some(device) = any_block_device() {
            assert!(take(&volume(1), &namespace, Some(device)).is_ok());
        }
        // Why: half the volume was written before the sampling. The earlier samples tell another
        // volume; those that begin to count at 0 let it pass.
        let kept = sample(&volume(1), SIZE, SIZE / 2).unwrap();
        let blind = sample(&volume(1), SIZE, 0).unwrap();
        let since = |samples: &Samples| written(SIZE / 2 - samples.written_bytes);
        let other = volume(0x80);
        let verdict = |s: &Samples| compare(&other, &Content::Raw, s, since(s)).unwrap();
        assert!(matches!(verdict(&kept), Verdict::Different(_)));
        assert_eq!(verdict(&blind), Verdict::Same);
    }

    #[test]
    fn another_or_an_empty_volume_does_not_match() {
        let samples = sample(&volume(1), SIZE, 0).unwrap();
        let other = compare(&volume(0x80), &Content::Raw, &samples, written(0)).unwrap();
        assert!(matches!(other, Verdict::Different(_)));
        let empty = tempfile::tempfile().unwrap();
        empty.set_len(SIZE).unwrap();
        assert!(matches!(
            compare(&empty, &Content::Raw, &samples, written(0)).unwrap(),
            Verdict::Different(_)
        ));
    }

    /// Nearly empty: these blocks hold something.
    fn sparse(blocks: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        for (block, byte) in blocks {
            file.write_all_at(&[*byte; BLOCK as usize], block * BLOCK).unwrap();
        }
        file
    }

    #[test]
    fn a_nearly_empty_volume_may_be_rewritten_where_it_was_written() {
        let is_same = |found: &File, samples: &Samples, since: Since| {
            compare(found, &Content::Raw, samples, since).unwrap() == Verdict::Same
        };
        let samples = sample(&sparse(&[(0, 1), (1, 1)]), SIZE, 0).unwrap();
        let rewritten = sparse(&[(0, 2), (1, 2)]);
        let in_flight = |in_flight| Since { written_bytes: 0, in_flight };
        assert!(is_same(&rewritten, &samples, written(2 * BLOCK)));
        assert!(is_same(&rewritten, &samples, in_flight(2)));
        // Nobody wrote that much.
        assert!(!is_same(&rewritten, &samples, written(0)));
        assert!(!is_same(&rewritten, &samples, in_flight(1)));
        // What was zeros is not, or nothing is left: other volumes.
        assert!(!is_same(&sparse(&[(0, 2), (1, 2), (512, 2)]), &samples, written(2 * BLOCK)));
        assert!(!is_same(&sparse(&[]), &samples, written(2 * BLOCK)));
        assert!(!is_same(&volume(9), &samples, written(2 * BLOCK)));
        // A log that goes round: its first block held nothing yet, and all others hold what is new.
        let ring = |first: u64, byte| sparse(&(first..8).map(|n| (n, byte)).collect::<Vec<_>>());
        let begun = sample(&ring(1, 1), SIZE, 0).unwrap();
        assert_eq!(begun.blocks.len(), 7);
        assert!(is_same(&ring(0, 2), &begun, written(8 * SECTOR)));
        assert!(!is_same(&ring(0, 2), &begun, written(7 * SECTOR)));
        // As many blocks are new as there were: another volume.
        assert!(!is_same(&ring(0, 2), &sample(&ring(4, 1), SIZE, 0).unwrap(), written(SIZE / 4)));
        assert!(is_same(&ring(1, 2), &sample(&ring(4, 1), SIZE, 0).unwrap(), written(SIZE / 4)));
        // A record from before zeros were noted.
        let older = Samples { zeros: Vec::new(), ..samples };
        assert!(!is_same(&rewritten, &older, written(2 * BLOCK)));
        // Not nearly empty.
        let many: Vec<(u64, u8)> = (0..9).map(|n| (if n < 8 { n } else { 512 }, 1)).collect();
        let samples = sample(&sparse(&many), SIZE, 0).unwrap();
        assert_eq!(samples.blocks.len(), 9);
        let rewritten: Vec<_> = many.iter().map(|(block, _)| (*block, 2)).collect();
        assert!(!is_same(&sparse(&rewritten), &samples, written(9 * BLOCK)));
        // Unless a program that goes round in the first part came by everywhere.
        let round: Vec<(u64, u8)> = (0..300).map(|n| (n, 1)).collect();
        let samples = sample(&sparse(&round), SIZE, 0).unwrap();
        assert_eq!(samples.blocks.len(), 8 + 16);
        let again: Vec<(u64, u8)> = (0..300).map(|n| (n, 2)).collect();
        assert!(is_same(&sparse(&again), &samples, written(300 * BLOCK)));
        assert!(!is_same(&sparse(&again), &samples, written(200 * BLOCK)));
        // Another one, that has something elsewhere, or is full.
        let elsewhere = [&again[..], &[(512, 2)]].concat();
        assert!(!is_same(&sparse(&elsewhere), &samples, written(300 * BLOCK)));
        assert!(!is_same(&volume(9), &samples, written(300 * BLOCK)));
    }

    #[test]
    fn an_empty_volume_has_nothing_to_compare() {
        let empty = tempfile::tempfile().unwrap();
        empty.set_len(SIZE).unwrap();
        let samples = sample(&empty, SIZE, 0).unwrap();
        assert_eq!(
            compare(&volume(3), &Content::Raw, &samples, written(0)).unwrap(),
            Verdict::Same
        );
    }

    #[test]
    fn file_systems_are_told_apart_by_uuid() {
        let mut head = vec![0u8; 68 << 10];
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        head[1024 + 0x60] = 0x40;
        head[1024 + 0x68..1024 + 0x78].copy_from_slice(&[7; 16]);
        let uuid = "07070707-0707-0707-0707-070707070707";
        assert_eq!(identify_bytes(&head), Some(("ext4".into(), uuid.into())));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&head).unwrap();
        let fs = |uuid: &str| Content::Filesystem { fs_type: "ext4".into(), uuid: uuid.into() };
        assert_eq!(
            compare(&file, &fs(uuid), &Samples::default(), written(0)).unwrap(),
            Verdict::Same
        );
        assert!(matches!(
            compare(&file, &fs("x"), &Samples::default(), written(0)).unwrap(),
            Verdict::Different(_)
        ));
        file.set_len(0).unwrap();
        file.set_len(68 << 10).unwrap();
        assert!(matches!(
            compare(&file, &fs(uuid), &Samples::default(), written(0)).unwrap(),
            Verdict::Different(_)
        ));
        file.set_len(1000).unwrap();
        assert!(
            compare(&file, &fs(uuid), &Samples::default(), written(0)).is_err(),
            "unreadable is not different"
        );
    }
}
