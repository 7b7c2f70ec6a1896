//! Device-mapper through its ioctls.
//!
//! The `devicemapper` crate was considered (docs/decisions/0003): it waits on udev's
//! semaphore after each change, so a hung udevd would hang the keeper in the middle of a
//! path swap. Here no udev cookie is sent and nothing waits for udev: devtmpfs makes
//! `/dev/dm-N` itself.
//!
//! Layouts: include/uapi/linux/dm-ioctl.h. The buffer is filled and read by offset in safe
//! code; the only unsafe line is the ioctl itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`.
const HEADER: usize = 312;
const NAME_OFFSET: usize = 48;
const NAME_LEN: usize = 128;
const UUID_OFFSET: usize = 176;
const UUID_LEN: usize = 129;
/// `struct dm_target_spec`.
const TARGET_SPEC: usize = 40;
/// Enough for the table of a one-path device and for a list of fifty devices. The kernel
/// copies all of it in and out, once a second for each volume, so it is small.
const BUFFER: usize = 4 * 1024;
/// A list of ten thousand devices.
const BUFFER_LAST: usize = 1024 * 1024;

const SUSPEND_FLAG: u32 = 1 << 1;
const STATUS_TABLE_FLAG: u32 = 1 << 4;
const BUFFER_FULL_FLAG: u32 = 1 << 8;
const SKIP_LOCKFS_FLAG: u32 = 1 << 10;
const NOFLUSH_FLAG: u32 = 1 << 11;

#[derive(Debug, Clone, Copy)]
enum Command {
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Status = 7,
    TableLoad = 9,
    TableClear = 10,
    TableStatus = 12,
    ListVersions = 13,
    Message = 14,
}

impl Command {
    fn verb(self) -> &'static str {
        match self {
            Self::ListDevices => "list",
            Self::Create => "create",
            Self::Remove => "remove",
            Self::Suspend => "suspend or resume",
            Self::Status => "read the state of",
            Self::TableLoad => "load a table into",
            Self::TableClear => "drop the loaded table of",
            Self::TableStatus => "read the table of",
            Self::ListVersions => "list the targets of",
            Self::Message => "send a message to",
        }
    }
}

/// What the kernel says of a mapped device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// Its number; `/dev/dm-<minor>`.
    pub number: DeviceNumber,
    /// Our mark on it.
    pub uuid: String,
    /// How many have it open.
    pub open_count: i32,
    /// Whether it is suspended: all I/O waits, whatever its table says.
    pub suspended: bool,
}

/// One line of a table: from sector 0, `sectors` long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// `multipath`
    pub kind: String,
    /// Its parameters, or its status.
    pub params: String,
}

/// A kind of target that the kernel has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetVersion {
    /// `multipath`
    pub name: String,
    /// Major, minor, patch.
    pub version: [u32; 3],
}

/// The device-mapper of this host.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens the control node.
    ///
    /// # Errors
    /// If the `dm_mod` module is not loaded, or the caller is not root.
    pub fn open() -> Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open(CONTROL)
            .map_err(Error::kernel("open (is the module dm_multipath loaded?)", CONTROL))?;
        Ok(Self { control })
    }

    /// All devices: name and number.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn list(&self) -> Result<Vec<(String, DeviceNumber)>> {
        let buffer = self.call(Command::ListDevices, "", "", 0, &[], 0)?;
        Ok(parse_name_list(buffer.payload()))
    }

    /// The targets that are loaded.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn target_versions(&self) -> Result<Vec<TargetVersion>> {
        let buffer = self.call(Command::ListVersions, "", "", 0, &[], 0)?;
        Ok(parse_versions(buffer.payload()))
    }

    /// Makes a device without a table.
    ///
    /// # Errors
    /// `EBUSY` if the name or UUID is taken.
    pub fn create(&self, name: &str, uuid: &str) -> Result<DeviceState> {
        Ok(self.call(Command::Create, name, uuid, 0, &[], 0)?.state())
    }

    /// Removes a device, which must not be open: no force, no deferral.
    ///
    /// # Errors
    /// `EBUSY` while somebody has it open.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.call(Command::Remove, name, "", 0, &[], 0).map(|_| ())
    }

    /// The state of a device, `None` if there is no such device.
    ///
    /// # Errors
    /// If the kernel does not answer; that is not the same as absent.
    pub fn status(&self, name: &str) -> Result<Option<DeviceState>> {
        match self.call(Command::Status, name, "", 0, &[], 0) {
            Ok(buffer) => Ok(Some(buffer.state())),
            // ENXIO is device-mapper's word for "no device of that name" (dm-ioctl.c).
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts a table beside the active one; [`Self::resume`] makes it active.
    ///
    /// # Errors
    /// `EINVAL` for a table that the target refuses, `EBUSY` if a path is claimed by others.
    pub fn load(&self, name: &str, target: &Target) -> Result<()> {
        let mut spec = vec![0u8; TARGET_SPEC];
        put(&mut spec, 8, &target.sectors.to_ne_bytes());
        put(&mut spec, 24, target.kind.as_bytes());
        spec.extend_from_slice(target.params.as_bytes());
        spec.push(0);
        spec.resize(spec.len().next_multiple_of(8), 0);
        let next = u32::try_from(spec.len()).unwrap_or(u32::MAX);
        put(&mut spec, 20, &next.to_ne_bytes());
        self.call(Command::TableLoad, name, "", 0, &spec, 1).map(|_| ())
    }

    /// Drops the table that was loaded and not made active yet, if there is one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn clear(&self, name: &str) -> Result<()> {
        self.call(Command::TableClear, name, "", 0, &[], 0).map(|_| ())
    }

    /// Holds new I/O back. `noflush` gives I/O that waits in the target back to the core,
    /// to be sent to the next table; no lockfs, since a file system on a device without a
    /// path cannot be frozen. Waits for I/O that the path below still holds.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn suspend(&self, name: &str) -> Result<()> {
        let flags = SUSPEND_FLAG | NOFLUSH_FLAG | SKIP_LOCKFS_FLAG;
        self.call(Command::Suspend, name, "", flags, &[], 0).map(|_| ())
    }

    /// Makes the loaded table active, if there is one, and lets I/O go on.
    ///
    /// # Errors
    /// If the kernel refuses the loaded table.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.call(Command::Suspend, name, "", 0, &[], 0).map(|_| ())
    }

    /// The active table's parameters, `None` without a table.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn table(&self, name: &str) -> Result<Option<Target>> {
        Ok(self.targets(name, STATUS_TABLE_FLAG)?.first_target())
    }

    /// The state of a device and the status of its active table, if it has one; `None` if
    /// there is no such device.
    ///
    /// # Errors
    /// If the kernel does not answer; that is not the same as absent.
    pub fn table_status(&self, name: &str) -> Result<Option<(DeviceState, Option<Target>)>> {
        // NOFLUSH: reading the state must not wait for I/O.
        match self.targets(name, NOFLUSH_FLAG) {
            Ok(buffer) => Ok(Some((buffer.state(), buffer.first_target()))),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sends a message to the target at sector 0.
    ///
    /// # Errors
    /// If the target does not know it.
    pub fn message(&self, name: &str, message: &str) -> Result<()> {
        let mut data = 0u64.to_ne_bytes().to_vec();
        data.extend_from_slice(message.as_bytes());
        data.push(0);
        self.call(Command::Message, name, "", 0, &data, 0).map(|_| ())
    }

    fn targets(&self, name: &str, flags: u32) -> Result<Buffer> {
        self.call(Command::TableStatus, name, "", flags, &[], 0)
    }

    fn call(
        &self,
        command: Command,
        name: &str,
        uuid: &str,
        flags: u32,
        data: &[u8],
        targets: u32,
    ) -> Result<Buffer> {
        if name.len() >= NAME_LEN || uuid.len() >= UUID_LEN {
            return Err(Error::Invalid(format!("device-mapper name {name:?} is too long")));
        }
        let mut size = BUFFER.max(HEADER + data.len());
        loop {
            let mut buffer = Buffer::new(size, name, uuid, flags, data, targets);
            buffer
                .ioctl(&self.control, command)
                .map_err(Error::kernel(command.verb(), label(name)))?;
            if buffer.flags() & BUFFER_FULL_FLAG == 0 {
                return Ok(buffer);
            }
            // Only what reads can find its answer too long, and reading may be repeated.
            size *= 4;
            if size > BUFFER_LAST {
                let full = io::Error::other("the answer does not fit the buffer");
                return Err(Error::kernel(command.verb(), label(name))(full));
            }
        }
    }
}

fn label(name: &str) -> String {
    if name.is_empty() {
        "device-mapper devices".into()
    } else {
        format!("device-mapper device {name}")
    }
}

/// The ioctl's buffer. The kernel copies it, so its alignment does not matter.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new(size: usize, name: &str, uuid: &str, flags: u32, data: &[u8], targets: u32) -> Self {
        let mut bytes = vec![0u8; size];
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        for (offset, value) in
            [(0, 4u32), (12, size), (16, HEADER as u32), (20, targets), (28, flags)]
        {
            put(&mut bytes, offset, &value.to_ne_bytes());
        }
        put(&mut bytes, NAME_OFFSET, name.as_bytes());
        put(&mut bytes, UUID_OFFSET, uuid.as_bytes());
        put(&mut bytes, HEADER, data);
        Self(bytes)
    }

    #[allow(unsafe_code)]
    fn ioctl(&mut self, control: &File, command: Command) -> io::Result<()> {
        // _IOWR(DM_IOCTL, command, struct dm_ioctl)
        let request = (3u64 << 30) | ((HEADER as u64) << 16) | (0xfd << 8) | command as u64;
        // SAFETY: the pointer is to a buffer that is exclusively borrowed for the call and
        // as long as its header says in data_size (`new` writes both), beyond which the
        // kernel does not read or write (copy_params in dm-ioctl.c); it copies, so any
        // alignment will do. The descriptor is open for as long as `control` lives.
        let result = unsafe {
            libc::ioctl(control.as_raw_fd(), request as libc::Ioctl, self.0.as_mut_ptr())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn flags(&self) -> u32 {
        u32_of(&self.0, 28)
    }

    fn target_count(&self) -> u32 {
        u32_of(&self.0, 20)
    }

    fn state(&self) -> DeviceState {
        DeviceState {
            number: DeviceNumber::from_raw(u64_of(&self.0, 40)),
            uuid: text(self.0.get(UUID_OFFSET..UUID_OFFSET + UUID_LEN).unwrap_or_default()),
            open_count: u32_of(&self.0, 24).cast_signed(),
            suspended: self.flags() & SUSPEND_FLAG != 0,
        }
    }

    fn first_target(&self) -> Option<Target> {
        (self.target_count() > 0).then(|| parse_target(self.payload())).flatten()
    }

    /// What the kernel has put behind the header.
    fn payload(&self) -> &[u8] {
        let (start, size) = (u32_of(&self.0, 16) as usize, u32_of(&self.0, 12) as usize);
        self.0.get(start..size.min(self.0.len())).unwrap_or_default()
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(slot) = bytes.get_mut(offset..offset + value.len()) {
        slot.copy_from_slice(value);
    }
}

fn u32_of(bytes: &[u8], offset: usize) -> u32 {
    let slice = bytes.get(offset..offset + 4).unwrap_or_default();
    slice.try_into().map(u32::from_ne_bytes).unwrap_or_default()
}

fn u64_of(bytes: &[u8], offset: usize) -> u64 {
    let slice = bytes.get(offset..offset + 8).unwrap_or_default();
    slice.try_into().map(u64::from_ne_bytes).unwrap_or_default()
}

/// A C string in a buffer, without its terminator.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// `struct dm_name_list`: dev (8), offset of the next one (4), name.
fn parse_name_list(payload: &[u8]) -> Vec<(String, DeviceNumber)> {
    let mut devices = Vec::new();
    let mut rest = payload;
    loop {
        let dev = u64_of(rest, 0);
        if dev == 0 {
            return devices;
        }
        devices.push((text(rest.get(12..).unwrap_or_default()), DeviceNumber::from_raw(dev)));
        let next = u32_of(rest, 8) as usize;
        match rest.get(next..) {
            Some(tail) if next > 0 => rest = tail,
            _ => return devices,
        }
    }
}

fn parse_target(payload: &[u8]) -> Option<Target> {
    Some(Target {
        sectors: u64_of(payload, 8),
        kind: text(payload.get(24..40)?),
        params: text(payload.get(TARGET_SPEC..)?).trim_end().to_owned(),
    })
}

/// `struct dm_target_versions`: offset of the next one (4, 0 at the end), version (3 × 4),
/// name.
fn parse_versions(payload: &[u8]) -> Vec<TargetVersion> {
    let mut versions = Vec::new();
    let mut rest = payload;
    while let Some(name) = rest.get(16..).map(text).filter(|name| !name.is_empty()) {
        versions.push(TargetVersion { name, version: [4, 8, 12].map(|at| u32_of(rest, at)) });
        match u32_of(rest, 0) {
            0 => break,
            next => rest = rest.get(next as usize..).unwrap_or_default(),
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_list_is_walked_to_its_end() {
        let mut payload = vec![0u8; 64];
        put(&mut payload, 0, &DeviceNumber { major: 253, minor: 1 }.to_raw().to_ne_bytes());
        put(&mut payload, 8, &32u32.to_ne_bytes());
        put(&mut payload, 12, b"rds-a\0");
        put(&mut payload, 32, &DeviceNumber { major: 253, minor: 300 }.to_raw().to_ne_bytes());
        put(&mut payload, 44, b"rds-b\0");
        let list = parse_name_list(&payload);
        assert_eq!(list.len(), 2);
        assert_eq!(list[1], ("rds-b".into(), DeviceNumber { major: 253, minor: 300 }));
    }

    #[test]
    fn target_versions_are_walked_to_their_end() {
        let mut payload = vec![0u8; 64];
        put(&mut payload, 0, &32u32.to_ne_bytes());
        put(&mut payload, 4, &[1, 0, 0, 0, 14, 0, 0, 0, 2, 0, 0, 0]);
        put(&mut payload, 16, b"multipath\0");
        put(&mut payload, 36, &[1, 0, 0, 0, 8]);
        put(&mut payload, 48, b"linear\0");
        let versions = parse_versions(&payload);
        assert_eq!(versions.len(), 2);
        assert_eq!((versions[0].name.as_str(), versions[0].version), ("multipath", [1, 14, 2]));
        assert_eq!((versions[1].name.as_str(), versions[1].version), ("linear", [1, 8, 0]));
        assert!(parse_versions(&[0; 20]).is_empty());
    }

    #[test]
    fn an_empty_or_cut_list_is_no_device() {
        assert!(parse_name_list(&[0; 16]).is_empty());
        assert!(parse_name_list(&[]).is_empty());
    }

    #[test]
    fn the_header_is_where_the_kernel_reads_it() {
        let buffer = Buffer::new(BUFFER, "rds-x", "RDSCSI-x", NOFLUSH_FLAG, &[7, 8], 1);
        assert_eq!(u32_of(&buffer.0, 12) as usize, buffer.0.len());
        assert_eq!((buffer.flags(), buffer.target_count()), (NOFLUSH_FLAG, 1));
        assert_eq!(buffer.state().uuid, "RDSCSI-x");
        assert_eq!(buffer.payload().get(..2), Some([7u8, 8].as_slice()));
    }
}
