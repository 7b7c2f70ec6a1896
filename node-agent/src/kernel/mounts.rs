//! The mount table, read exactly, and the calls that change it.
//!
//! A mount is found by its device number and its mount point, never by the text of its
//! source: names of devices change and some are merely what somebody passed to mount(2).

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::DeviceNumber;
use crate::error::{Error, Result};

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Unique among all mounts of the host, whatever their namespace.
    pub id: u64,
    /// The mount below it.
    pub parent: u64,
    /// The file system's device: the block device's own number, or an anonymous one
    /// (major 0) for btrfs and for file systems without a device.
    pub device: DeviceNumber,
    /// Which part of the file system is mounted; `/` for all of it.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Flags of this mount alone: `rw`, `noatime` ...
    pub options: Vec<String>,
    /// Its peer group, when mounts below it propagate.
    pub shared: Option<u64>,
    /// The peer group that it receives mounts from.
    pub master: Option<u64>,
    /// `ext4`
    pub fs_type: String,
    /// What was mounted, as the file system tells it.
    pub source: PathBuf,
    /// Flags of the whole file system: `rw`, `errors=remount-ro` ...
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether writing through this mount is refused (the file system may refuse it too).
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }

    /// Whether the file system itself takes no writes, for instance after an I/O error.
    #[must_use]
    pub fn is_superblock_read_only(&self) -> bool {
        // Since Linux 6.15 ext4 stays "rw" after an error and adds a word of its own
        // (fs/ext4/super.c, `_ext4_show_options`).
        let stopped = |o: &String| matches!(o.as_str(), "ro" | "emergency_ro" | "shutdown");
        self.super_options.iter().any(stopped)
    }

    /// Whether it shows a file system that lives on this block device.
    #[must_use]
    pub fn is_of(&self, number: DeviceNumber) -> bool {
        // btrfs spans devices, so its device number is anonymous. Its source is told by
        // the file system itself (btrfs_show_devname), not by whoever mounted it.
        self.device == number
            || (self.fs_type == "btrfs"
                && DeviceNumber::of_path(&self.source).is_ok_and(|n| n == number))
    }
}

/// The mounts of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// The mounts that this process sees.
    ///
    /// # Errors
    /// If the table cannot be read or understood in full: then nothing is known of what
    /// is mounted.
    pub fn read() -> Result<Self> {
        Self::read_from(Path::new("/proc/self/mountinfo"))
            .map_err(Error::kernel("read", "/proc/self/mountinfo"))
    }

    /// The mounts of another process's namespace.
    ///
    /// # Errors
    /// If its table cannot be read or understood.
    pub fn read_from(path: &Path) -> io::Result<Self> {
        // Since Linux 5.8 the kernel keeps a cursor in the list, so that a table that
        // changes between two reads loses no entry that was there all the time.
        let mut text = Vec::with_capacity(64 << 10);
        File::open(path)?.read_to_end(&mut text)?;
        Self::parse(&text).map_err(|line| {
            io::Error::new(io::ErrorKind::InvalidData, format!("cannot understand {line:?}"))
        })
    }

    /// Parses a whole table.
    ///
    /// # Errors
    /// The first line that is not of the documented form.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        let mounts = lines
            .map(|l| parse_line(l).ok_or_else(|| String::from_utf8_lossy(l).into_owned()))
            .collect::<Result<_, _>>()?;
        Ok(Self { mounts })
    }

    /// Every mount.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// All layers at one mount point, the lowest first: the last one is what is seen.
    #[must_use]
    pub fn at(&self, mount_point: &Path) -> Vec<&Mount> {
        let here: Vec<&Mount> =
            self.mounts.iter().filter(|m| m.mount_point == mount_point).collect();
        // The order of the table is that of creation, which moving a mount does not
        // change; what lies on what is told by the parents.
        let by_id: HashMap<u64, &Mount> = here.iter().map(|m| (m.id, *m)).collect();
        let depth = |mount: &Mount| {
            let mut depth = 0;
            let mut at = mount;
            // Bounded, should the kernel ever show a circle.
            while let Some(below) = by_id.get(&at.parent).filter(|_| depth < here.len()) {
                depth += 1;
                at = below;
            }
            depth
        };
        let mut layers: Vec<(usize, &Mount)> = here.iter().map(|m| (depth(m), *m)).collect();
        layers.sort_by_key(|(depth, _)| *depth);
        layers.into_iter().map(|(_, mount)| mount).collect()
    }

    /// All mounts of the file system on a block device.
    #[must_use]
    pub fn of_device(&self, number: DeviceNumber) -> Vec<&Mount> {
        self.mounts.iter().filter(|m| m.is_of(number)).collect()
    }

    /// A mount of all of a device's file system that may write, and that can be seen: nothing
    /// is mounted on top of it. One that was mounted read-only has none, one that became so
    /// by an error keeps its own.
    #[must_use]
    pub fn writable(&self, number: DeviceNumber) -> Option<&Mount> {
        let is_seen = |m: &Mount| self.at(&m.mount_point).last().is_some_and(|top| top.id == m.id);
        self.of_device(number)
            .into_iter()
            .find(|m| m.root == Path::new("/") && !m.is_read_only() && is_seen(m))
    }

    /// Bind mounts of the device's node itself, as raw block volumes are published.
    #[must_use]
    pub fn of_node(&self, kernel_name: &str) -> Vec<&Mount> {
        let root = Path::new("/").join(kernel_name);
        let is_node = |m: &&Mount| m.fs_type == "devtmpfs" && m.root == root;
        self.mounts.iter().filter(is_node).collect()
    }

    /// Whether `other` is `mount` seen in another place: what lies below a directory that was
    /// bound elsewhere (`mount --bind /data/kubelet /var/lib/kubelet`, with / shared, as systemd
    /// has it) shows there as well, and goes from there when it goes from here
    /// (mount_namespaces(7), "peer group").
    #[must_use]
    pub fn is_echo(&self, mount: &Mount, other: &Mount) -> bool {
        let by_id = |id: u64| self.mounts.iter().find(|m| m.id == id);
        let (Some(below), Some(there)) = (by_id(mount.parent), by_id(other.parent)) else {
            return false;
        };
        let Some(group) = below.shared else { return false };
        let mut groups = HashSet::from([group]);
        while self.follows(&mut groups) {}
        let receives =
            [there.shared, there.master].into_iter().flatten().any(|g| groups.contains(&g));
        let inside = |parent: &Mount, child: &Mount| {
            let rest = child.mount_point.strip_prefix(&parent.mount_point).ok()?;
            Some(parent.root.join(rest))
        };
        mount.id != other.id
            && mount.device == other.device
            && below.device == there.device
            && receives
            && inside(below, mount).is_some_and(|at| inside(there, other) == Some(at))
    }

    /// The peer groups to which an unmount of `mount` propagates.
    #[must_use]
    pub fn follows(&self, groups: &mut HashSet<u64>) -> bool {
        let before = groups.len();
        for mount in &self.mounts {
            if let (Some(master), Some(shared)) = (mount.master, mount.shared)
                && groups.contains(&master)
            {
                groups.insert(shared);
            }
        }
        groups.len() > before
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // Blanks inside of fields are escaped, so a blank always separates.
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = DeviceNumber::parse(std::str::from_utf8(fields.next()?).ok()?)?;
    let root = path(fields.next()?)?;
    let mount_point = path(fields.next()?)?;
    let options = list(fields.next()?)?;
    let (mut shared, mut master) = (None, None);
    loop {
        match fields.next()? {
            b"-" => break,
            // Unknown optional fields are to be passed over, says the manual page.
            tag => {
                if let Some(group) = tag.strip_prefix(b"shared:") {
                    shared = Some(number(group)?);
                } else if let Some(group) = tag.strip_prefix(b"master:") {
                    master = Some(number(group)?);
                }
            }
        }
    }
    let fs_type = String::from_utf8(unescape(fields.next()?)?).ok()?;
    let source = path(fields.next()?)?;
    let super_options = list(fields.next()?)?;
    let rest_is_empty = fields.next().is_none();
    rest_is_empty.then_some(Mount {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        shared,
        master,
        fs_type,
        source,
        super_options,
    })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn path(text: &[u8]) -> Option<PathBuf> {
    unescape(text).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
}

fn list(text: &[u8]) -> Option<Vec<String>> {
    let text = String::from_utf8_lossy(&unescape(text)?).into_owned();
    Some(split_options(&text).into_iter().map(str::to_owned).collect())
}

/// Options as they stand in one string: separated by commas, except for those inside of double
/// quotes, as in `rw,context="u:r:t:s0:c1,c2",discard`. So does the kernel (`opt_len` in
/// security/selinux/hooks.c), which knows no escaped quotes there.
pub fn split_options(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .collect()
}

/// Undoes the kernel's octal escapes (`mangle` in fs/seq_file.c).
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if *first == b'\\' {
            let (code, after) = after.split_at_checked(3)?;
            let octal =
                |n: u32, d: &u8| (b'0'..=b'7').contains(d).then(|| n * 8 + u32::from(d - b'0'));
            bytes.push(u8::try_from(code.iter().try_fold(0, octal)?).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    Some(bytes)
}

/// Opens what is at a path without following a link in its last component and without
/// touching it: enough to mount on, and to look at what it is.
///
/// # Errors
/// If there is nothing.
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Mounts a file system from a device.
///
/// # Errors
/// What the kernel says.
pub fn mount_filesystem(
    device: &Path,
    target: BorrowedFd<'_>,
    fs_type: &str,
    flags: MountFlags,
    data: &str,
) -> io::Result<()> {
    let data = CString::new(data)?;
    // Through the descriptor: what was looked at is what is mounted on.
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    Ok(rustix::mount::mount(device, target, fs_type, flags, data.as_c_str())?)
}

/// Makes what `source` refers to appear at `target` as well.
///
/// # Errors
/// What the kernel says.
pub fn bind(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", flags)?;
    let by_descriptor =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&tree, "", target, "", by_descriptor)?)
}

/// Makes one mount read-only and keeps its other flags, which a remount would clear.
///
/// # Errors
/// What the kernel says.
pub fn make_read_only(mount: &Mount) -> io::Result<()> {
    let flags = mount
        .options
        .iter()
        .filter_map(|o| kept_flag(o))
        .fold(MountFlags::BIND | MountFlags::RDONLY, |flags, flag| flags | flag);
    Ok(rustix::mount::mount_remount(&mount.mount_point, flags, "")?)
}

fn kept_flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "nosymfollow" => MountFlags::NOSYMFOLLOW,
        _ => return None,
    })
}

/// Removes the uppermost mount at a path. Never by force and never lazily: both would
/// report success while somebody still writes.
///
/// # Errors
/// What the kernel says; EBUSY if it is in use, EINVAL if nothing is mounted there.
pub fn unmount(mount_point: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(mount_point, UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        97 27 252:3 / /var/lib/kubelet/a\\040b rw,noatime shared:5 - ext4 /dev/dm-3 rw,errors=remount-ro\n\
        98 97 252:3 / /var/lib/kubelet/a\\040b ro master:5 unbindable - ext4 /dev/dm-3 rw\n\
        99 27 0:6 /dm-3 /publish/x rw - devtmpfs devtmpfs rw,size=1k\n";

    #[test]
    fn fields_and_layers() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let layers = table.at(Path::new("/var/lib/kubelet/a b"));
        assert_eq!(layers.iter().map(|m| m.id).collect::<Vec<_>>(), [97, 98]);
        assert_eq!((layers[0].shared, layers[1].master), (Some(5), Some(5)));
        assert!(layers[1].is_read_only() && !layers[1].is_superblock_read_only());
        let number = DeviceNumber { major: 252, minor: 3 };
        assert_eq!(table.of_device(number).len(), 2);
        assert_eq!(table.of_node("dm-3").len(), 1);
        assert_eq!(table.of_node("dm-30").len(), 0);
    }

    #[test]
    fn what_shows_below_a_bound_directory_is_the_same_mount() {
        // kubelet's directory is a bind mount of one on a data disk, as that disk's peer.
        let echoes = |shared: &str| {
            let text = format!(
                "30 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                 40 30 8:2 / /data rw shared:2 - ext4 /dev/b rw\n\
                 50 30 8:2 /kubelet /var/lib/kubelet rw {shared} - ext4 /dev/b rw\n\
                 60 50 252:0 / /var/lib/kubelet/p/globalmount rw shared:9 - ext4 /dev/c rw\n\
                 61 40 252:0 / /data/kubelet/p/globalmount rw shared:9 - ext4 /dev/c rw\n\
                 62 40 252:0 / /data/kubelet/q rw shared:9 - ext4 /dev/c rw\n\
                 63 30 252:0 / /p/globalmount rw shared:9 - ext4 /dev/c rw\n"
            );
            let table = MountTable::parse(text.as_bytes()).unwrap();
            let all: Vec<_> = table.iter().collect();
            let staged = all.iter().find(|m| m.id == 60).unwrap();
            let found = all.iter().filter(|m| table.is_echo(staged, m));
            found.map(|m| m.id).collect::<Vec<_>>()
        };
        assert_eq!(echoes("shared:2"), [61]);
        // Without propagation the other one stays when this one goes: another mount.
        assert!(echoes("shared:3").is_empty());
        assert!(echoes("master:2").is_empty());
        assert!(echoes("").is_empty());
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error_not_an_absence() {
        for bad in [
            "x",
            "22 27 0:21 / /proc rw,relatime proc proc rw",
            "22 27 021 / /proc rw - proc proc rw",
            "22 27 0:21 / /a\\04 rw - proc proc rw",
            "22 27 0:21 / /a\\999 rw - proc proc rw",
        ] {
            assert!(MountTable::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_are_split_outside_of_quotes() {
        let split = split_options("rw,context=\"u:r:t:s0:c1,c2\",discard");
        assert_eq!(split, ["rw", "context=\"u:r:t:s0:c1,c2\"", "discard"]);
        assert_eq!(split_options("a,,\"b,c"), ["a", "", "\"b,c"]);
    }

    #[test]
    fn this_hosts_own_table_is_understood() {
        assert!(MountTable::read().unwrap().iter().any(|m| m.fs_type == "proc"));
    }

    /// As the kernel writes it: blanks, tabs, line ends and backslashes, and `#` since 6.x.
    fn escape(bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                b => vec![*b],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_path_survives(name in proptest::collection::vec(1u8.., 1..40)) {
            let mut path = b"/".to_vec();
            path.extend(&name);
            let mut line = b"1 2 252:7 / ".to_vec();
            line.extend(escape(&path));
            line.extend(b" rw - ext4 /dev/dm-7 rw\n");
            let table = MountTable::parse(&line).unwrap();
            let found = &table.mounts[0].mount_point;
            prop_assert_eq!(found.as_os_str().as_bytes(), &path[..]);
        }

        #[test]
        fn no_input_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = MountTable::parse(&text);
        }
    }
}
