//! What to do with a device's content: use it, or make a file system, or neither.
//!
//! The decision is a pure function of what was found and what the journal proves. Making a
//! file system needs a proof that the device is blank, or that what is on it is our own
//! unfinished work.

use std::io;
use std::path::Path;

use rds_csi_proto::params::FsType;

use crate::error::{Error, Result};
use crate::kernel::probe::Found;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Mount what is there.
    Use {
        /// Of the file system.
        uuid: String,
    },
    /// Make a file system.
    Format(Blank),
}

/// Why a device may be formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blank {
    /// Nothing was ever written to it.
    Proven,
    /// Our own unfinished file system is on it.
    OwnUnfinished,
}

/// Decides. `interrupted` is the UUID of a file system that the journal says we were
/// making in this same attachment.
///
/// # Errors
/// If there is something that is not ours to overwrite and not what was asked for.
pub(crate) fn decide(
    device: &Path,
    found: &Found,
    wanted: FsType,
    interrupted: Option<&str>,
    read_only: bool,
) -> Result<Content> {
    let refuse = |why: String| {
        Err(Error::Precondition(format!(
            "{} {why}; it is not overwritten. If that content is worthless, delete the volume and \
             create it anew; else copy it away, or use the volume as what it is",
            device.display()
        )))
    };
    let format = |blank| match read_only {
        false => Ok(Content::Format(blank)),
        true => Err(Error::Precondition(format!(
            "{} holds no file system yet, and a volume that is used read-only is not formatted",
            device.display()
        ))),
    };
    match (found, interrupted) {
        (Found::Blank, None) => format(Blank::Proven),
        (Found::Blank | Found::Unrecognised, Some(_)) => format(Blank::OwnUnfinished),
        // Complete by its looks, but the journal never saw mkfs succeed.
        (Found::Filesystem { fs_type, uuid }, Some(ours))
            if fs_type == wanted.as_str() && uuid == ours =>
        {
            format(Blank::OwnUnfinished)
        }
        (Found::Filesystem { fs_type, uuid }, None) if fs_type == wanted.as_str() => {
            Ok(Content::Use { uuid: uuid.clone() })
        }
        (Found::Filesystem { fs_type, uuid }, Some(_)) => refuse(format!(
            "holds {fs_type} {uuid}, although the journal says that {} was being made",
            wanted.as_str()
        )),
        (Found::Filesystem { fs_type, .. }, None) => {
            refuse(format!("holds {fs_type}, but {} was asked for", wanted.as_str()))
        }
        (Found::Foreign(what), _) => refuse(format!("holds {what} instead of a file system")),
        (Found::Unrecognised, None) => {
            refuse("holds data that is no known file system (or an unfinished one)".to_owned())
        }
    }
}

/// The program that makes a file system, and its arguments.
///
/// # Errors
/// If the volume's own options cannot be used with this file system.
pub(crate) fn mkfs(
    fs_type: FsType,
    uuid: &str,
    options: &[String],
    blank: Blank,
    device: &Path,
) -> Result<(String, Vec<String>)> {
    let mut arguments: Vec<String> = vec!["-q".into()];
    // Force only over our own unfinished work. Without it, mkfs itself refuses what it
    // recognises: one more guard. (mke2fs asks only when it has a terminal.)
    let again = blank == Blank::OwnUnfinished;
    match fs_type {
        FsType::Ext4 | FsType::Ext3 => {
            let (extended, rest) = split_extended(options);
            arguments.extend(["-U".into(), uuid.into()]);
            if !rest.iter().any(|o| o == "-m") {
                // Reserved blocks protect a root file system, not a data volume.
                arguments.extend(["-m".into(), "0".into()]);
            }
            arguments.extend(["-E".into(), extended]);
            arguments.extend(rest);
        }
        FsType::Xfs => {
            let names_uuid = |o: &String| o.split(',').any(|part| part.starts_with("uuid="));
            if options.iter().any(names_uuid) {
                return Err(Error::Invalid(
                    "mkfsOptions: uuid= cannot be given, the driver chooses it".into(),
                ));
            }
            // -K: see `nodiscard` below.
            arguments.extend(["-K".into(), "-m".into(), format!("uuid={uuid}")]);
            arguments.extend(again.then(|| "-f".to_owned()));
            arguments.extend(options.iter().cloned());
        }
        FsType::Btrfs => {
            arguments.extend(["-K".into(), "-U".into(), uuid.into()]);
            arguments.extend(again.then(|| "-f".to_owned()));
            arguments.extend(options.iter().cloned());
        }
    }
    arguments.push(device.display().to_string());
    Ok((format!("mkfs.{}", fs_type.as_str()), arguments))
}

/// mke2fs takes the last `-E` only, so the volume's own are merged with ours.
fn split_extended(options: &[String]) -> (String, Vec<String>) {
    // lazy_itable_init: writing every inode table of a large volume at once takes minutes.
    // nodiscard: the device is proven blank, and discarding a whole file-backed export
    // keeps the appliance busy for nothing.
    const OURS: [(&str, &str); 2] =
        [("lazy_itable_init", "lazy_itable_init=1"), ("discard", "nodiscard")];
    let mut given: Vec<String> = Vec::new();
    let mut rest = Vec::new();
    for pair in options.chunks(2) {
        match pair {
            [flag, value] if flag == "-E" => given.extend(value.split(',').map(str::to_owned)),
            other => rest.extend(other.iter().cloned()),
        }
    }
    for (name, ours) in OURS {
        let is_given = given.iter().any(|g| {
            let key = g.split('=').next().unwrap_or_default();
            key.trim_start_matches("no") == name
        });
        if !is_given {
            given.push(ours.to_owned());
        }
    }
    (given.join(","), rest)
}

/// What to do about a file system that the kernel does not mount. Mending is for people: what
/// it throws away may be what they would have kept.
pub(crate) fn mount_advice(fs_type: FsType, device: &Path, error: &io::Error) -> String {
    use rustix::io::Errno;
    const LOG: &str = "the kernel log tells why";
    // Also what a damaged superblock gives, beside options that do not fit.
    let damaged = [Errno::UCLEAN, Errno::BADMSG, Errno::INVAL];
    if !Errno::from_io_error(error).is_some_and(|errno| damaged.contains(&errno)) {
        return LOG.to_owned();
    }
    let (look, mend) = match fs_type {
        FsType::Ext4 | FsType::Ext3 => ("e2fsck -fn", "e2fsck -f"),
        FsType::Xfs => ("xfs_repair -n", "xfs_repair"),
        FsType::Btrfs => ("btrfs check --readonly", "btrfs rescue, on a copy"),
    };
    let device = device.display();
    format!(
        "{LOG}; if it tells of damage, nothing is repaired by itself: look at it on this node with \
         `{look} {device}`, which writes nothing, save what can be saved, and mend it with `{mend}`; \
         it is mounted at the next retry"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn ask(found: Found, interrupted: Option<&str>) -> Result<Content> {
        decide(Path::new("/dev/dm-1"), &found, FsType::Ext4, interrupted, false)
    }

    fn ext4(uuid: &str) -> Found {
        Found::Filesystem { fs_type: "ext4".into(), uuid: uuid.into() }
    }

    #[test]
    fn the_table_of_decisions() {
        assert_eq!(ask(Found::Blank, None).unwrap(), Content::Format(Blank::Proven));
        assert_eq!(ask(ext4("a"), None).unwrap(), Content::Use { uuid: "a".into() });
        for unfinished in [Found::Blank, Found::Unrecognised, ext4("ours")] {
            let action = ask(unfinished, Some("ours")).unwrap();
            assert_eq!(action, Content::Format(Blank::OwnUnfinished));
        }
        let xfs = Found::Filesystem { fs_type: "xfs".into(), uuid: "x".into() };
        for (found, interrupted) in [
            (Found::Unrecognised, None),
            (Found::Foreign("a partition table (gpt)".into()), None),
            (Found::Foreign("a partition table (gpt)".into()), Some("ours")),
            (xfs.clone(), None),
            (xfs, Some("ours")),
            (ext4("someone else's"), Some("ours")),
        ] {
            let error = ask(found, interrupted).unwrap_err();
            assert_eq!(error.code(), tonic::Code::FailedPrecondition);
            assert!(error.to_string().contains("not overwritten"), "{error}");
        }
        let blank = decide(Path::new("/d"), &Found::Blank, FsType::Ext4, None, true);
        assert_eq!(blank.unwrap_err().code(), tonic::Code::FailedPrecondition);
    }

    fn any_found() -> impl Strategy<Value = Found> {
        prop_oneof![
            Just(Found::Blank),
            Just(Found::Unrecognised),
            "[a-z]{1,8}".prop_map(Found::Foreign),
            ("(ext4|ext3|xfs|btrfs|vfat)", "[ab]")
                .prop_map(|(fs_type, uuid)| Found::Filesystem { fs_type, uuid }),
        ]
    }

    proptest! {
        /// The rule that data depends on.
        #[test]
        fn nothing_is_formatted_that_is_not_blank_or_ours(
            found in any_found(),
            ours in proptest::option::of("[ab]"),
            read_only: bool,
        ) {
            let action = decide(Path::new("/d"), &found, FsType::Ext4, ours.as_deref(), read_only);
            if let Ok(Content::Format(blank)) = action {
                prop_assert!(!read_only);
                let is_own = match &found {
                    Found::Blank => true,
                    Found::Unrecognised => ours.is_some(),
                    Found::Filesystem { uuid, .. } => ours.as_ref() == Some(uuid),
                    Found::Foreign(_) => false,
                };
                prop_assert!(is_own);
                prop_assert_eq!(blank == Blank::Proven, ours.is_none());
            }
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn arguments_of_mkfs() {
        let line = |fs, options: &str, blank| {
            let (program, arguments) =
                mkfs(fs, "UUID", &words(options), blank, Path::new("/dev/dm-1")).unwrap();
            format!("{program} {}", arguments.join(" "))
        };
        assert_eq!(
            line(FsType::Ext4, "", Blank::Proven),
            "mkfs.ext4 -q -U UUID -m 0 -E lazy_itable_init=1,nodiscard /dev/dm-1"
        );
        assert_eq!(
            line(FsType::Ext4, "-m 1 -E stride=4,lazy_itable_init=0 -i 8192", Blank::Proven),
            "mkfs.ext4 -q -U UUID -E stride=4,lazy_itable_init=0,nodiscard -m 1 -i 8192 /dev/dm-1"
        );
        assert_eq!(
            line(FsType::Xfs, "-m reflink=0", Blank::Proven),
            "mkfs.xfs -q -K -m uuid=UUID -m reflink=0 /dev/dm-1"
        );
        assert_eq!(
            line(FsType::Btrfs, "", Blank::OwnUnfinished),
            "mkfs.btrfs -q -K -U UUID -f /dev/dm-1"
        );
        assert!(
            mkfs(FsType::Xfs, "U", &words("-m uuid=x"), Blank::Proven, Path::new("/d")).is_err()
        );
    }
}
