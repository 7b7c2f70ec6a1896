//! Mount options: names that StorageClasses and PersistentVolumes may use.
//!
//! An allow list. An option that is not on it could name another device (`journal_path`),
//! weaken what the volume promises (`nobarrier`), or bring the node down (`errors=panic`).

use rds_csi_proto::params::FsType;
use rustix::mount::MountFlags;

use super::selinux::Context;
use crate::error::{Error, Result};
use crate::kernel::mounts::split_options;

/// Options as mount(2) takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Those that the kernel knows for every file system.
    pub(crate) flags: MountFlags,
    /// Those of the file system, separated by commas.
    pub(crate) data: String,
    /// Whether `ro` was among them.
    pub(crate) read_only: bool,
    /// The SELinux label of all files; it is in `data` too.
    pub(crate) context: Option<Context>,
}

/// What an option does to the common flags.
enum Common {
    Set(MountFlags),
    Clear(MountFlags),
    Nothing,
}

fn common(name: &str) -> Option<Common> {
    use Common::{Clear, Nothing, Set};
    Some(match name {
        "ro" => Set(MountFlags::RDONLY),
        "rw" => Clear(MountFlags::RDONLY),
        "noatime" => Set(MountFlags::NOATIME),
        "atime" => Clear(MountFlags::NOATIME),
        "nodiratime" => Set(MountFlags::NODIRATIME),
        "diratime" => Clear(MountFlags::NODIRATIME),
        "relatime" => Set(MountFlags::RELATIME),
        "norelatime" => Clear(MountFlags::RELATIME),
        "strictatime" => Set(MountFlags::STRICTATIME),
        "lazytime" => Set(MountFlags::LAZYTIME),
        "nolazytime" => Clear(MountFlags::LAZYTIME),
        "nosuid" => Set(MountFlags::NOSUID),
        "suid" => Clear(MountFlags::NOSUID),
        "nodev" => Set(MountFlags::NODEV),
        "dev" => Clear(MountFlags::NODEV),
        "noexec" => Set(MountFlags::NOEXEC),
        "exec" => Clear(MountFlags::NOEXEC),
        "nosymfollow" => Set(MountFlags::NOSYMFOLLOW),
        "sync" => Set(MountFlags::SYNCHRONOUS),
        "async" => Clear(MountFlags::SYNCHRONOUS),
        "dirsync" => Set(MountFlags::DIRSYNC),
        // Words for /etc/fstab that say nothing to the kernel.
        "defaults" | "_netdev" | "nofail" => Nothing,
        _ => return None,
    })
}

/// What may follow the equals sign.
#[derive(Clone, Copy)]
enum Value {
    None,
    Number,
    /// A number with an optional k, m or g.
    Size,
    OneOf(&'static [&'static str]),
    /// A word, or several, such as `zstd:3`.
    Word,
}

const EXT: &[(&str, Value)] = &[
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("acl", Value::None),
    ("noacl", Value::None),
    ("user_xattr", Value::None),
    ("grpid", Value::None),
    ("quota", Value::None),
    ("usrquota", Value::None),
    ("grpquota", Value::None),
    ("prjquota", Value::None),
    ("delalloc", Value::None),
    ("nodelalloc", Value::None),
    ("auto_da_alloc", Value::None),
    ("journal_checksum", Value::None),
    ("dioread_nolock", Value::None),
    ("dioread_lock", Value::None),
    ("i_version", Value::None),
    ("init_itable", Value::None),
    ("noinit_itable", Value::None),
    ("commit", Value::Number),
    ("stripe", Value::Number),
    ("inode_readahead_blks", Value::Number),
    ("max_batch_time", Value::Number),
    ("min_batch_time", Value::Number),
    ("data", Value::OneOf(&["ordered", "journal", "writeback"])),
    // Not `panic`: one volume's trouble is not the node's.
    ("errors", Value::OneOf(&["remount-ro", "continue"])),
];

const XFS: &[(&str, Value)] = &[
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("inode32", Value::None),
    ("inode64", Value::None),
    ("largeio", Value::None),
    ("nolargeio", Value::None),
    ("swalloc", Value::None),
    ("wsync", Value::None),
    ("attr2", Value::None),
    ("filestreams", Value::None),
    ("noquota", Value::None),
    ("quota", Value::None),
    ("uquota", Value::None),
    ("usrquota", Value::None),
    ("gquota", Value::None),
    ("grpquota", Value::None),
    ("pquota", Value::None),
    ("prjquota", Value::None),
    ("allocsize", Value::Size),
    ("logbufs", Value::Number),
    ("logbsize", Value::Size),
    ("sunit", Value::Number),
    ("swidth", Value::Number),
];

const BTRFS: &[(&str, Value)] = &[
    ("discard", Value::None),
    ("discard", Value::OneOf(&["sync", "async"])),
    ("nodiscard", Value::None),
    ("ssd", Value::None),
    ("nossd", Value::None),
    ("autodefrag", Value::None),
    ("noautodefrag", Value::None),
    ("datacow", Value::None),
    ("nodatacow", Value::None),
    ("compress", Value::None),
    ("compress", Value::Word),
    ("compress-force", Value::Word),
    ("space_cache", Value::OneOf(&["v1", "v2"])),
    ("commit", Value::Number),
    ("thread_pool", Value::Number),
    ("max_inline", Value::Size),
];

impl MountOptions {
    /// For a volume that was made from another one, and has its file system's UUID: XFS
    /// refuses to mount two with one UUID unless it is told (Linux, `fs/xfs/xfs_mount.c`,
    /// `xfs_uuid_mount`). Not for others: there the refusal is a safeguard.
    pub(crate) fn admit_same_uuid(&mut self, fs_type: FsType) {
        if fs_type == FsType::Xfs {
            let comma = if self.data.is_empty() { "" } else { "," };
            self.data = format!("{}{comma}nouuid", self.data);
        }
    }

    /// Reads the mount flags of a request.
    ///
    /// # Errors
    /// Names the option that is refused, and what is accepted.
    pub(crate) fn parse(fs_type: FsType, given: &[String]) -> Result<Self> {
        let table = match fs_type {
            FsType::Ext4 | FsType::Ext3 => EXT,
            FsType::Xfs => XFS,
            FsType::Btrfs => BTRFS,
        };
        let mut flags = MountFlags::empty();
        let mut data: Vec<&str> = Vec::new();
        let mut context = None;
        // People write several in one string, as in /etc/fstab.
        for option in given.iter().flat_map(|text| split_options(text)).map(str::trim) {
            if option.is_empty() {
                continue;
            }
            if let Some(value) = option.strip_prefix("context=") {
                if context.replace(Context::parse(value)?).is_some() {
                    return Err(Error::Invalid(
                        "mount option context is given more than once; a file system has one \
                         SELinux label"
                            .to_owned(),
                    ));
                }
                continue;
            }
            match common(option) {
                Some(Common::Set(flag)) => flags |= flag,
                Some(Common::Clear(flag)) => flags -= flag,
                Some(Common::Nothing) => {}
                None if is_allowed(table, option) => data.push(option),
                None => return Err(refused(fs_type, option, table)),
            }
        }
        let read_only = flags.contains(MountFlags::RDONLY);
        let label = context.as_ref().map(Context::option);
        data.extend(label.as_deref());
        Ok(Self { flags, data: data.join(","), read_only, context })
    }
}

fn is_allowed(table: &[(&str, Value)], option: &str) -> bool {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let digits = |v: &str| !v.is_empty() && v.len() < 12 && v.bytes().all(|b| b.is_ascii_digit());
    table.iter().filter(|(known, _)| *known == name).any(|(_, accepts)| match (accepts, value) {
        (Value::None, None) => true,
        (Value::Number, Some(v)) => digits(v),
        (Value::Size, Some(v)) => digits(v.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G'])),
        (Value::OneOf(words), Some(v)) => words.contains(&v),
        (Value::Word, Some(v)) => {
            !v.is_empty() && v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b':')
        }
        _ => false,
    })
}

fn refused(fs_type: FsType, option: &str, table: &[(&str, Value)]) -> Error {
    let mut names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
    names.dedup();
    let shown: String = option.chars().take(80).collect();
    Error::Invalid(format!(
        "mount option {shown:?} is not accepted for {}; accepted are ro, noatime, nodiratime, relatime, \
         strictatime, lazytime, nosuid, nodev, noexec, sync, dirsync, context (SELinux; none of \
         its relatives) and: {}",
        fs_type.as_str(),
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn parse(fs_type: FsType, options: &[&str]) -> Result<MountOptions> {
        let owned: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        MountOptions::parse(fs_type, &owned)
    }

    #[test]
    fn common_flags_and_those_of_the_file_system_are_told_apart() {
        let o = parse(FsType::Ext4, &["noatime,discard", "errors=remount-ro", "_netdev"]).unwrap();
        assert_eq!(o.flags, MountFlags::NOATIME);
        assert_eq!(o.data, "discard,errors=remount-ro");
        assert!(parse(FsType::Xfs, &["ro"]).unwrap().read_only);
        assert!(!parse(FsType::Xfs, &["ro", "rw"]).unwrap().read_only);
        // Nothing is forced on anybody.
        assert_eq!(parse(FsType::Ext4, &[]).unwrap().flags, MountFlags::empty());
    }

    /// As kubelet gives it, among others.
    #[test]
    fn a_label_reaches_the_kernel_in_its_quotes() {
        let label = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let whole = format!("noatime,{label},discard");
        for given in [&["discard", label, "noatime"][..], &[&whole]] {
            let options = parse(FsType::Ext4, given).unwrap();
            assert_eq!(options.data, format!("discard,{label}"));
            assert_eq!(options.flags, MountFlags::NOATIME);
            assert!(options.context.is_some());
        }
        assert_eq!(parse(FsType::Xfs, &[label]).unwrap().data, label);
        let twice = parse(FsType::Xfs, &[label, label]).unwrap_err();
        assert_eq!(twice.code(), tonic::Code::InvalidArgument);
        assert!(parse(FsType::Ext4, &["context=u:r:t:s0:c1,c2"]).is_err());
    }

    #[test]
    fn only_xfs_is_told_of_a_uuid_that_is_there_twice() {
        for (fs, given, want) in [
            (FsType::Xfs, "", "nouuid"),
            (FsType::Xfs, "discard", "discard,nouuid"),
            (FsType::Ext4, "discard", "discard"),
        ] {
            let mut options = parse(fs, &[given]).unwrap();
            options.admit_same_uuid(fs);
            assert_eq!(options.data, want);
        }
    }

    #[test]
    fn a_refused_option_is_named() {
        for (fs, option) in [
            (FsType::Ext4, "errors=panic"),
            (FsType::Ext4, "nobarrier"),
            (FsType::Ext4, "journal_path=/dev/sda"),
            (FsType::Ext4, "bind"),
            (FsType::Ext4, "remount"),
            (FsType::Ext4, "commit=1e3"),
            (FsType::Xfs, "nouuid"),
            (FsType::Xfs, "logdev=/dev/sda"),
            (FsType::Xfs, "norecovery"),
            (FsType::Btrfs, "device=/dev/sda"),
            (FsType::Btrfs, "subvol=/x"),
            (FsType::Btrfs, "compress=../x"),
            (FsType::Ext4, "fscontext=u:r:t:s0"),
            (FsType::Xfs, "defcontext=u:r:t:s0"),
            (FsType::Btrfs, "rootcontext=u:r:t:s0"),
            (FsType::Ext4, "seclabel"),
            (FsType::Ext4, "context"),
            (FsType::Ext4, "context=\"u:r:t\"x"),
            // Only in quotes: without them it is the option "c2".
            (FsType::Ext4, "c2"),
        ] {
            let error = parse(fs, &[option]).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.to_string().contains(option), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_reaches_the_kernel_is_always_on_the_list(option in "[a-z_=,.:/0-9-]{0,30}|context=[a-z:,\"]{0,20}") {
            for (fs, table) in [(FsType::Ext4, EXT), (FsType::Xfs, XFS), (FsType::Btrfs, BTRFS)] {
                if let Ok(options) = parse(fs, &[&option]) {
                    let label = options.context.as_ref().map(Context::option);
                    for one in split_options(&options.data).iter().filter(|o| !o.is_empty()) {
                        let is_label = label.as_deref() == Some(*one);
                        prop_assert!(is_label || is_allowed(table, one) && !one.contains('/'));
                    }
                }
            }
        }
    }
}
