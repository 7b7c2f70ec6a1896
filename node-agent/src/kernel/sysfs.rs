//! What the kernel knows of our controllers and namespaces.
//!
//! One scan reads all fabrics controllers; the keepers of single volumes filter by
//! subsystem NQN. A controller can vanish between two reads, and the kernel then says so
//! (`ENOENT`, `ENODEV`, `ENXIO`). Any other error means that nothing is known, so it fails
//! the scan: unknown is never absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;

/// A controller's state, as drivers/nvme/host/sysfs.c prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControllerState {
    New,
    Live,
    Resetting,
    Connecting,
    Deleting,
    /// Deleting, and its I/O has been failed. If it stays so, the instance is wedged.
    DeletingNoIo,
    Dead,
    /// Anything else, or unreadable.
    Unknown,
}

impl ControllerState {
    pub(super) fn parse(text: &str) -> Self {
        match text.trim() {
            "new" => Self::New,
            "live" => Self::Live,
            "resetting" => Self::Resetting,
            "connecting" => Self::Connecting,
            "deleting" => Self::Deleting,
            "deleting (no IO)" => Self::DeletingNoIo,
            "dead" => Self::Dead,
            _ => Self::Unknown,
        }
    }

    /// On its way out; it will not come back under this instance.
    #[must_use]
    pub fn is_going(self) -> bool {
        matches!(self, Self::Deleting | Self::DeletingNoIo | Self::Dead)
    }
}

/// A namespace with NSID 1: the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its block device's name (`nvme0n1`); the multipath head where that is in use.
    pub name: String,
    /// Its block device.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The identity that the target made up for this export (`uuid.…`): another one means
    /// that the export was made anew.
    pub wwid: String,
}

/// One fabrics controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// `nvme0`
    pub name: String,
    /// Subsystem NQN.
    pub nqn: String,
    /// Host NQN; empty if the kernel does not tell (before 4.20 or while it goes).
    pub host_nqn: String,
    /// `traddr=…,trsvcid=…`
    pub address: String,
    /// The target's number for it: with the name, tells a reused name from the same one.
    pub cntlid: String,
    /// Its state.
    pub state: ControllerState,
    /// The volume, if the kernel has it.
    pub namespace: Option<Namespace>,
}

/// All fabrics controllers of this host.
///
/// # Errors
/// If anything of sysfs cannot be read. A controller that vanishes meanwhile is left out.
pub fn controllers() -> Result<Vec<Controller>> {
    controllers_in(Path::new("/sys"))
}

pub(super) fn controllers_in(sys: &Path) -> Result<Vec<Controller>> {
    let mut found = Vec::new();
    for (name, dir) in controllers_listed(sys)? {
        if let Some(controller) = controller(sys, name, &dir)? {
            found.push(controller);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Names and directories of all controllers, ours or not.
pub(super) fn controllers_listed(sys: &Path) -> Result<Vec<(String, PathBuf)>> {
    // The class appears with the nvme_core module: without it there are no controllers.
    Ok(entries(&sys.join("class/nvme"))?.unwrap_or_default())
}

/// One controller; `None` if it is not a fabrics controller over TCP, or is gone by now.
pub(super) fn controller(sys: &Path, name: String, dir: &Path) -> Result<Option<Controller>> {
    // Only those over TCP are ever ours; PCIe ones are the host's disks.
    if attribute(dir, "transport")?.as_deref() != Some("tcp") {
        return Ok(None);
    }
    let Some(nqn) = attribute(dir, "subsysnqn")? else { return Ok(None) };
    Ok(Some(Controller {
        name,
        nqn,
        host_nqn: attribute(dir, "hostnqn")?.unwrap_or_default(),
        address: attribute(dir, "address")?.unwrap_or_default(),
        cntlid: attribute(dir, "cntlid")?.unwrap_or_default(),
        state: attribute(dir, "state")?
            .map_or(ControllerState::Unknown, |s| ControllerState::parse(&s)),
        namespace: namespace_of(sys, dir)?,
    }))
}

/// The block device of the controller's namespace 1.
///
/// Below the controller stands either the namespace itself (`nvme0n1`) or, with native
/// multipath, a hidden path (`nvme2c0n1`) of a head that is named without the `c` part;
/// the numbers of controller and head differ, so nothing is derived from them.
fn namespace_of(sys: &Path, controller: &Path) -> Result<Option<Namespace>> {
    for (name, _) in entries(controller)?.unwrap_or_default() {
        let Some(head) = head_name(&name) else { continue };
        let dir = sys.join("block").join(&head);
        // The path itself also has nsid on newer kernels; the head has it on all.
        if attribute(&dir, "nsid")?.as_deref() != Some("1") {
            continue;
        }
        let number = attribute(&dir, "dev")?.and_then(|d| DeviceNumber::parse(&d));
        let sectors = attribute(&dir, "size")?.and_then(|s| s.parse::<u64>().ok());
        // A namespace whose attributes are not complete yet, or that is being taken down
        // (size 0), is not there yet: the next scan sees it whole.
        if let (Some(number), Some(sectors @ 1..)) = (number, sectors) {
            let wwid = attribute(&dir, "wwid")?.unwrap_or_default();
            return Ok(Some(Namespace { name: head, number, size_bytes: sectors * 512, wwid }));
        }
    }
    Ok(None)
}

/// Where the controller has this namespace: the directory of the namespace itself, or with
/// native multipath that of the path to it.
pub(super) fn path_of(controller: &Path, namespace: &Namespace) -> Option<PathBuf> {
    let is_it = |name: &str| head_name(name).is_some_and(|head| head == namespace.name);
    let found = entries(controller).ok()??.into_iter().find(|(name, _)| is_it(name));
    found.map(|(_, dir)| dir)
}

/// `nvme0n1` → itself; `nvme2c0n1` → `nvme2n1`; anything else is no namespace.
fn head_name(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (numbers, namespace) = rest.rsplit_once('n')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let subsystem = match numbers.split_once('c') {
        Some((subsystem, controller)) if digits(controller) => subsystem,
        Some(_) => return None,
        None => numbers,
    };
    (digits(subsystem) && digits(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

/// What the kernel says of a thing that is not there, or not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

/// A directory's entries, `None` if there is no such directory.
fn entries(dir: &Path) -> Result<Option<Vec<(String, PathBuf)>>> {
    let named =
        |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
    match fs::read_dir(dir).and_then(|list| list.map(|e| e.map(named)).collect()) {
        Ok(list) => Ok(Some(list)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(Error::kernel("list", dir.display())(e)),
    }
}

/// An attribute's text, `None` if the attribute or its owner is not there.
fn attribute(dir: &Path, name: &str) -> Result<Option<String>> {
    let path = dir.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(Error::kernel("read", path.display())(e)),
    }
}

/// Requests in flight on a block device (reads, writes).
#[must_use]
pub fn in_flight(device: DeviceNumber) -> Option<u64> {
    let text = attribute(&device.sysfs(), "inflight").ok()??;
    Some(text.split_whitespace().filter_map(|n| n.parse::<u64>().ok()).sum())
}

/// Bytes written to a block device since it was made.
#[must_use]
pub fn bytes_written(device: DeviceNumber) -> Option<u64> {
    // Documentation/block/stat.rst: the seventh field, in sectors of 512 bytes.
    attribute(&device.sysfs(), "stat")
        .ok()??
        .split_whitespace()
        .nth(6)?
        .parse::<u64>()
        .ok()
        .map(|s| s * 512)
}

/// This boot's identity: what was true in another boot is history.
///
/// # Errors
/// If the kernel does not tell; then nothing may be assumed.
pub fn boot_id() -> Result<String> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(Error::kernel("read", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_of_namespaces() {
        assert_eq!(head_name("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(head_name("nvme12c3n2").as_deref(), Some("nvme12n2"));
        for other in ["nvme0", "ng0n1", "hwmon1", "nvme0n1p1", "nvmen1", "nvme0cn1"] {
            assert_eq!(head_name(other), None, "{other}");
        }
    }

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn controllers_with_and_without_native_multipath() {
        let sys = tempfile::tempdir().unwrap();
        let nvme = sys.path().join("class/nvme");
        let common = [("transport", "tcp"), ("hostnqn", "h"), ("address", "a"), ("cntlid", "1")];
        write(&nvme.join("nvme0"), &common);
        write(&nvme.join("nvme0"), &[("subsysnqn", "nqn.a"), ("state", "live")]);
        fs::create_dir(nvme.join("nvme0/nvme5c0n1")).unwrap();
        write(
            &sys.path().join("block/nvme5n1"),
            &[("nsid", "1"), ("dev", "259:7"), ("size", "2048")],
        );
        write(&nvme.join("nvme1"), &common);
        write(&nvme.join("nvme1"), &[("subsysnqn", "nqn.b"), ("state", "deleting (no IO)")]);
        symlink("gone", nvme.join("nvme1/nvme1n1")).unwrap();
        write(&nvme.join("nvme2"), &[("transport", "pcie"), ("subsysnqn", "nqn.disk")]);

        let found = controllers_in(sys.path()).unwrap();
        assert_eq!(found.len(), 2, "the PCIe disk is none of ours");
        let namespace = found[0].namespace.as_ref().unwrap();
        assert_eq!((namespace.name.as_str(), namespace.size_bytes), ("nvme5n1", 1 << 20));
        assert_eq!(found[1].namespace, None);
        assert!(found[1].state.is_going());
    }

    #[test]
    fn what_cannot_be_read_fails_the_scan_and_what_is_gone_does_not() {
        let sys = tempfile::tempdir().unwrap();
        let nvme = sys.path().join("class/nvme");
        write(&nvme.join("nvme0"), &[("transport", "tcp"), ("state", "live")]);
        assert_eq!(controllers_in(sys.path()).unwrap(), vec![], "it went between two reads");

        // Reading a directory as a file is an error that does not mean absent.
        for unreadable in ["transport", "subsysnqn", "hostnqn", "state"] {
            let dir = nvme.join("nvme0");
            fs::remove_dir_all(&dir).unwrap();
            let whole = ["transport", "subsysnqn", "hostnqn", "state"];
            let texts = whole.iter().filter(|name| **name != unreadable).map(|name| (*name, "tcp"));
            write(&dir, &texts.collect::<Vec<_>>());
            fs::create_dir(dir.join(unreadable)).unwrap();
            let error = controllers_in(sys.path()).unwrap_err().to_string();
            assert!(error.contains(unreadable), "{error}");
        }
    }

    #[test]
    fn a_namespace_that_cannot_be_read_is_not_taken_for_none() {
        let sys = tempfile::tempdir().unwrap();
        let nvme0 = sys.path().join("class/nvme/nvme0");
        write(&nvme0, &[("transport", "tcp"), ("subsysnqn", "nqn.a"), ("state", "live")]);
        fs::create_dir(nvme0.join("nvme0n1")).unwrap();
        let block = sys.path().join("block/nvme0n1");
        write(&block, &[("nsid", "1"), ("dev", "259:7")]);
        fs::create_dir(block.join("size")).unwrap();
        assert!(controllers_in(sys.path()).is_err());
        // A link that leads back to itself: neither a directory nor absent.
        let class = tempfile::tempdir().unwrap();
        fs::create_dir(class.path().join("class")).unwrap();
        symlink("nvme", class.path().join("class/nvme")).unwrap();
        assert!(controllers_in(class.path()).is_err());
    }
}
