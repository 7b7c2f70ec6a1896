//! Who uses a device: processes by open files, working directories, programs and
//! mappings; mounts in any namespace; devices and swap on top of it.
//!
//! In the manner of lsof, but complete: lsof sees neither mounts nor other namespaces.
//! `stat` on a file of a dead network file system may hang, so callers bound the scan in
//! time, and every finding is handed over at once, so that an unfinished scan still tells
//! what it saw.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags};

use super::DeviceNumber;
use super::cgroup::Container;
use super::mounts::{Mount, MountTable};
use crate::error::{Error, Result};

/// One use of a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The process, unless the kernel itself is the user.
    pub pid: Option<u32>,
    /// Its command, or the kernel's part.
    pub command: String,
    /// Where it runs.
    pub container: Container,
    /// What it holds, for people.
    pub holds: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) if self.container == Container::default() => {
                write!(f, "pid {pid} ({}): {}", self.command, self.holds)
            }
            Some(pid) => {
                write!(f, "pid {pid} ({}, {}): {}", self.command, self.container, self.holds)
            }
            None => write!(f, "{}: {}", self.command, self.holds),
        }
    }
}

/// What to look for.
#[derive(Debug, Clone)]
pub struct Search {
    /// The block device.
    pub device: DeviceNumber,
    /// Mounts that are not a use: the one that is about to be removed, and all that goes
    /// with it by propagation.
    pub expected_mount: Option<PathBuf>,
}

/// Looks everywhere, and tells each finding to `found` as it comes.
///
/// # Errors
/// If a part of the system cannot be read, so that the search is not complete.
pub fn scan(search: &Search, mut found: impl FnMut(Holder)) -> Result<()> {
    let mut devices = partitions(search.device)?;
    devices.insert(search.device);
    kernel_users(search.device, &devices, &mut found)?;

    let own = MountTable::read()?;
    // btrfs shows an anonymous number, which is the same in every namespace.
    let mut shown: HashSet<DeviceNumber> = devices.clone();
    for number in &devices {
        shown.extend(own.of_device(*number).iter().map(|m| m.device));
    }
    let pids = pids()?;
    let tables = namespaces(&pids)?;
    let mounts = mounted(search, &own, &tables, &shown, &mut found);
    let me = std::process::id();
    let others: Vec<u32> = pids.into_iter().filter(|p| *p != me).collect();
    for_each(&others, |pid, found| open_files(pid, &devices, &shown, &mounts, found), &mut found);
    // Last, because reading the mappings of a process that is stuck in a fault can hang.
    for_each(&others, |pid, found| mappings(pid, &shown, found), &mut found);
    Ok(())
}

/// Threads of a search: nearly all of it is system calls, which the kernel answers side by
/// side. More would only hold more of a host that is busy enough to be searched.
const SEARCHERS: usize = 4;

/// Looks at each process, by a few threads; one that hangs does not keep the others from
/// telling what they find.
fn for_each(
    pids: &[u32],
    look: impl Fn(u32, &mut dyn FnMut(Holder)) + Sync,
    found: &mut impl FnMut(Holder),
) {
    let next = AtomicUsize::new(0);
    let (send, findings) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..SEARCHERS {
            let send = send.clone();
            let (next, look) = (&next, &look);
            scope.spawn(move || {
                while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // It fails only if nobody listens any more.
                    look(*pid, &mut |holder| drop(send.send(holder)));
                }
            });
        }
        drop(send);
        findings.into_iter().for_each(&mut *found);
    });
}

/// Partitions that the kernel made of the device (on a bare namespace without a shield).
fn partitions(device: DeviceNumber) -> Result<HashSet<DeviceNumber>> {
    let dir = device.sysfs();
    let mut numbers = HashSet::new();
    for entry in entries(&dir)? {
        if entry.join("partition").exists()
            && let Ok(text) = fs::read_to_string(entry.join("dev"))
        {
            numbers.extend(DeviceNumber::parse(&text));
        }
    }
    Ok(numbers)
}

/// Devices on top, loop devices and swap: users without a process.
fn kernel_users(
    device: DeviceNumber,
    devices: &HashSet<DeviceNumber>,
    found: &mut impl FnMut(Holder),
) -> Result<()> {
    for entry in entries(&device.sysfs().join("holders"))? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found(kernel("device on top of it", &format!("/dev/{name}")));
    }
    let is_ours = |path: &Path| DeviceNumber::of_path(path).is_ok_and(|n| devices.contains(&n));
    for entry in entries(Path::new("/sys/block"))? {
        // Kubelet keeps a loop device over every raw block volume that a pod uses.
        if let Ok(backing) = fs::read_to_string(entry.join("loop/backing_file"))
            && is_ours(Path::new(backing.trim_end()))
        {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found(kernel("loop device over it", &format!("/dev/{name}")));
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").map_err(Error::kernel("read", "/proc/swaps"))?;
    for area in swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next()) {
        let path = Path::new(area);
        let on_it = fs::metadata(path).is_ok_and(|m| {
            !m.file_type().is_block_device() && devices.contains(&DeviceNumber::from_raw(m.dev()))
        });
        if is_ours(path) || on_it {
            found(kernel("swap", area));
        }
    }
    Ok(())
}

fn kernel(part: &str, holds: &str) -> Holder {
    Holder {
        pid: None,
        command: part.to_owned(),
        container: Container::default(),
        holds: holds.to_owned(),
    }
}

fn process(pid: u32, holds: String) -> Holder {
    Holder { pid: Some(pid), command: command(pid), container: Container::of(pid), holds }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(list) => list
            .map(|e| e.map(|e| e.path()))
            .collect::<io::Result<_>>()
            .map_err(Error::kernel("list", dir.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::kernel("list", dir.display())(e)),
    }
}

fn pids() -> Result<Vec<u32>> {
    let names = entries(Path::new("/proc"))?;
    Ok(names.iter().filter_map(|p| p.file_name()?.to_str()?.parse().ok()).collect())
}

/// One mount table for each mount namespace that a process lives in. (A namespace that is
/// only kept by an open file is not found; the kernel's own guard remains.)
fn namespaces(pids: &[u32]) -> Result<Vec<(u32, MountTable)>> {
    let mut seen = HashMap::new();
    for pid in pids {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.contains_key(&namespace) {
            continue;
        }
        // A process that ends meanwhile is no obstacle; another may stand for the same
        // namespace.
        match MountTable::read_from(Path::new(&format!("/proc/{pid}/mountinfo"))) {
            Ok(table) => {
                seen.insert(namespace, (*pid, table));
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::kernel("read the mounts of", format!("pid {pid}"))(e));
            }
            Err(_) => {}
        }
    }
    Ok(seen.into_values().collect())
}

/// Tells of mounts that are a use, and returns the ids of all mounts of the device.
fn mounted(
    search: &Search,
    own: &MountTable,
    tables: &[(u32, MountTable)],
    shown: &HashSet<DeviceNumber>,
    found: &mut impl FnMut(Holder),
) -> HashSet<u64> {
    let expected: Vec<&Mount> = match &search.expected_mount {
        Some(path) => own.at(path).into_iter().filter(|m| shown.contains(&m.device)).collect(),
        None => Vec::new(),
    };
    // Copies that follow ours by propagation vanish with it, also through a chain of
    // namespaces.
    let mut groups: HashSet<u64> = expected.iter().filter_map(|m| m.shared).collect();
    while tables.iter().any(|(_, table)| table.follows(&mut groups)) {}
    let follows = |m: &Mount| {
        m.shared.is_some_and(|g| groups.contains(&g))
            || m.master.is_some_and(|g| groups.contains(&g))
    };
    let mut ids: HashSet<u64> = HashSet::new();
    for (pid, table) in tables {
        for mount in table.iter().filter(|m| shown.contains(&m.device)) {
            let is_new = ids.insert(mount.id);
            let is_expected = expected.iter().any(|e| e.id == mount.id);
            if is_new && !is_expected && !follows(mount) {
                let at = mount.mount_point.display();
                found(process(*pid, format!("mount at {at} in its namespace")));
            }
        }
    }
    ids
}

fn open_files(
    pid: u32,
    devices: &HashSet<DeviceNumber>,
    shown: &HashSet<DeviceNumber>,
    mounts: &HashSet<u64>,
    found: &mut dyn FnMut(Holder),
) {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let mut check = |path: &Path, what: &str| {
        if look(path).is_some_and(|s| is_use(&s, devices, shown, mounts)) {
            let target = fs::read_link(path).unwrap_or_default();
            found(process(pid, format!("{what} {}", target.display())));
        }
    };
    check(&base.join("cwd"), "working directory");
    check(&base.join("root"), "root directory");
    check(&base.join("exe"), "program");
    // A process that has ended has no files any more.
    for fd in fs::read_dir(base.join("fd")).into_iter().flatten().flatten() {
        check(&fd.path(), "open file");
    }
}

/// Attributes as they are in memory: nothing is asked of a server or a device.
fn look(path: &Path) -> Option<Statx> {
    let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
    rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted).ok()
}

fn is_use(
    stat: &Statx,
    devices: &HashSet<DeviceNumber>,
    shown: &HashSet<DeviceNumber>,
    mounts: &HashSet<u64>,
) -> bool {
    let rdev = DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
    let dev = DeviceNumber { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
    let is_block = rustix::fs::FileType::from_raw_mode(u32::from(stat.stx_mode)).is_block_device();
    let has_mount = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    (is_block && devices.contains(&rdev))
        || shown.contains(&dev)
        || (has_mount && mounts.contains(&stat.stx_mnt_id))
}

/// Files that are mapped but no longer open.
fn mappings(pid: u32, shown: &HashSet<DeviceNumber>, found: &mut dyn FnMut(Holder)) {
    let Ok(maps) = fs::read(format!("/proc/{pid}/maps")) else { return };
    let hit = maps.split(|b| *b == b'\n').find_map(|line| mapped_file(line, shown));
    if let Some(file) = hit {
        found(process(pid, format!("mapped file {file}")));
    }
}

/// `start-end perms offset MAJOR:MINOR inode path`, the device in hexadecimal.
fn mapped_file(line: &[u8], shown: &HashSet<DeviceNumber>) -> Option<String> {
    let mut fields = line.split(|b| *b == b' ').filter(|f| !f.is_empty());
    let device = std::str::from_utf8(fields.nth(3)?).ok()?;
    let inode = fields.next()?;
    let (major, minor) = device.split_once(':')?;
    let hex = |t| u32::from_str_radix(t, 16).ok();
    let number = DeviceNumber { major: hex(major)?, minor: hex(minor)? };
    if inode == b"0" || !shown.contains(&number) {
        return None;
    }
    Some(fields.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" "))
}

fn command(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(name.trim_ascii()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mapping_is_recognised_by_its_device_in_hexadecimal() {
        let shown = HashSet::from([DeviceNumber { major: 252, minor: 16 }]);
        let line = b"7f0c1000-7f0c2000 r-xp 00000000 fc:10 131   /data/lib x.so";
        assert_eq!(mapped_file(line, &shown).unwrap(), "/data/lib x.so");
        assert_eq!(mapped_file(b"7f-80 r-xp 0000 fd:10 131 /x", &shown), None);
        assert_eq!(mapped_file(b"7f-80 rw-p 0000 00:00 0", &shown), None);
    }

    /// What a scan says of one process that is started by `spawn` around a fresh directory.
    fn seen_of(spawn: impl FnOnce(&Path) -> std::process::Command) -> (String, Vec<Holder>) {
        let dir = tempfile::tempdir().unwrap();
        let device = DeviceNumber::from_raw(fs::metadata(dir.path()).unwrap().dev());
        let mut child = spawn(dir.path()).spawn().unwrap();
        let mut seen = Vec::new();
        let result = scan(&Search { device, expected_mount: None }, |h| seen.push(h));
        child.kill().unwrap();
        child.wait().unwrap();
        result.unwrap();
        seen.retain(|h| h.pid == Some(child.id()));
        (dir.path().display().to_string(), seen)
    }

    #[test]
    fn a_scan_of_this_host_finds_a_working_directory() {
        let (dir, seen) = seen_of(|dir| {
            let mut sleep = std::process::Command::new("sleep");
            sleep.arg("60").current_dir(dir).stdin(std::process::Stdio::null());
            sleep
        });
        let cwd = format!("working directory {dir}");
        assert!(seen.iter().any(|h| h.holds == cwd), "{seen:?}");
    }

    #[test]
    fn a_scan_of_this_host_finds_an_open_file() {
        let (dir, seen) = seen_of(|dir| {
            let mut sleep = std::process::Command::new("sleep");
            sleep.arg("60").current_dir("/").stdin(fs::File::create(dir.join("file")).unwrap());
            sleep
        });
        let file = format!("open file {dir}/file");
        assert!(seen.iter().any(|h| h.holds == file), "{seen:?}");
    }
}
