//! What to do about a mount point, given what is mounted there: pure functions.

use std::path::Path;

use super::record::Publish;
use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::mounts::Mount;

/// One mount at the path in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer {
    /// Whether it shows this volume, and all of it.
    pub(crate) ours: bool,
    /// Whether writing through it is refused.
    pub(crate) read_only: bool,
}

impl Layer {
    /// A file system's layer.
    pub(crate) fn of_filesystem(mount: &Mount, volume: DeviceNumber) -> Self {
        Self {
            ours: mount.is_of(volume) && mount.root == Path::new("/"),
            read_only: mount.is_read_only(),
        }
    }
}

/// What to do at a staging path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StageAction {
    /// It is mounted.
    Done,
    /// Nothing is there.
    Mount,
}

/// Decides over a staging path, the lowest layer first.
///
/// # Errors
/// If something else is there, or the volume more than once.
pub(crate) fn stage(path: &Path, layers: &[Layer]) -> Result<StageAction> {
    match layers {
        [] => Ok(StageAction::Mount),
        [Layer { ours: true, .. }] => Ok(StageAction::Done),
        _ => Err(in_the_way(path, layers)),
    }
}

/// What to do at a target path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublishAction {
    /// It is published as asked.
    Done,
    /// Nothing is there.
    Bind,
    /// A bind mount of ours, made just before a crash, still lacks its read-only flag.
    MakeReadOnly,
}

/// Decides over a target path. `noted` is what the journal says of it.
///
/// # Errors
/// If it is published otherwise, something else is there, or the volume more than once:
/// a second mount is never stacked on a first.
pub(crate) fn publish(
    path: &Path,
    layers: &[Layer],
    read_only: bool,
    noted: Option<&Publish>,
) -> Result<PublishAction> {
    match layers {
        [] => Ok(PublishAction::Bind),
        [Layer { ours: true, read_only: found }] if *found == read_only => Ok(PublishAction::Done),
        [Layer { ours: true, read_only: false }]
            if noted.is_some_and(|p| p.read_only && !p.confirmed) =>
        {
            Ok(PublishAction::MakeReadOnly)
        }
        [Layer { ours: true, .. }] => Err(Error::Conflict(format!(
            "the volume is already published at {} {}; unpublish it there first",
            path.display(),
            if read_only { "for writing" } else { "read-only" }
        ))),
        _ => Err(in_the_way(path, layers)),
    }
}

fn in_the_way(path: &Path, layers: &[Layer]) -> Error {
    let what = if layers.iter().all(|l| l.ours) {
        format!("the volume is mounted {} times on top of itself", layers.len())
    } else {
        "something else is mounted".to_owned()
    };
    Error::Precondition(format!("{what} at {}; unmount it there first", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const OURS: Layer = Layer { ours: true, read_only: false };
    const OURS_RO: Layer = Layer { ours: true, read_only: true };
    const FOREIGN: Layer = Layer { ours: false, read_only: false };

    #[test]
    fn staging() {
        let at = |layers: &[Layer]| stage(Path::new("/s"), layers);
        assert_eq!(at(&[]).unwrap(), StageAction::Mount);
        assert_eq!(at(&[OURS]).unwrap(), StageAction::Done);
        for bad in [&[FOREIGN][..], &[OURS, OURS], &[OURS, FOREIGN], &[FOREIGN, OURS]] {
            assert_eq!(at(bad).unwrap_err().code(), tonic::Code::FailedPrecondition);
        }
    }

    #[test]
    fn publishing() {
        let note = |confirmed| Publish { target: "/t".into(), read_only: true, confirmed };
        let at = |layers: &[Layer], ro, noted: Option<&Publish>| {
            publish(Path::new("/t"), layers, ro, noted)
        };
        assert_eq!(at(&[], true, None).unwrap(), PublishAction::Bind);
        assert_eq!(at(&[OURS_RO], true, None).unwrap(), PublishAction::Done);
        assert_eq!(at(&[OURS], true, Some(&note(false))).unwrap(), PublishAction::MakeReadOnly);
        for conflict in [
            at(&[OURS], true, Some(&note(true))),
            at(&[OURS], true, None),
            at(&[OURS_RO], false, None),
        ] {
            assert_eq!(conflict.unwrap_err().code(), tonic::Code::AlreadyExists);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_ever_stacked(layers in proptest::collection::vec(
            (any::<bool>(), any::<bool>()).prop_map(|(ours, read_only)| Layer { ours, read_only }),
            0..4,
        ), read_only: bool) {
            let path = Path::new("/x");
            let mounts = matches!(stage(path, &layers), Ok(StageAction::Mount))
                || matches!(publish(path, &layers, read_only, None), Ok(PublishAction::Bind));
            prop_assert_eq!(mounts, layers.is_empty());
        }
    }
}
