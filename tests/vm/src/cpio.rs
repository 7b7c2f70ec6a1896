//! The "newc" cpio format, as far as the kernel's initramfs unpacker reads it
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written here rather than by the `cpio` command: forty lines, one dependency on the
//! machine less, and no staging directory for two guests to fight over.

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Builds an archive in memory; an initramfs here is a few MiB.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

/// One header's worth of fields that differ between entries.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Archive {
    pub(crate) fn directory(&mut self, name: &str) {
        self.push(&Entry { name, mode: DIRECTORY | 0o755, device: (0, 0), data: &[] });
    }

    pub(crate) fn file(&mut self, name: &str, permissions: u32, data: &[u8]) {
        self.push(&Entry { name, mode: REGULAR | permissions, device: (0, 0), data });
    }

    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.push(&Entry {
            name,
            mode: CHARACTER_DEVICE | 0o600,
            device: (major, minor),
            data: &[],
        });
    }

    /// Closes the archive with the trailer that the kernel looks for.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.push(&Entry { name: "TRAILER!!!", mode: 0, device: (0, 0), data: &[] });
        self.bytes
    }

    fn push(&mut self, entry: &Entry<'_>) {
        self.inode += 1;
        let (major, minor) = entry.device;
        // Both lengths fit: names are ours, and no module or busybox is near 4 GiB.
        let size = u32::try_from(entry.data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(entry.name.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
        // rdevminor, namesize, check
        let fields = [self.inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
        self.pad();
    }

    /// Header plus name, and data, each end on a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_header_name_and_data_each_padded_to_four() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert_eq!(&header[..6], "070701");
        assert_eq!(&header[14..22], "000081ed", "mode");
        assert_eq!(&header[54..62], "00000005", "file size");
        assert_eq!(&header[94..102], "00000005", "name size with its NUL");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello", "110 + 5, padded to 116");
        assert_eq!(&bytes[124..130], b"070701", "the trailer starts on a multiple of four");
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn a_device_carries_its_numbers() {
        let mut archive = Archive::default();
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(&bytes[78..94], b"0000000500000001");
    }
}
