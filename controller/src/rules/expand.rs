//! What an expansion has to do, from what the appliance shows.
//!
//! nvmet takes a namespace's size when it is enabled: hosts see a grown file only once the
//! export has been off and on. For the node that drops its session, which the shield holds
//! I/O through. That it has to be done still is recorded with the growth itself
//! (`opt=g` in the owner tag): a size that reads as it should says nothing of the hosts.

use super::owner::{Attachment, OwnerTag, Stage};
use super::size::SizePlan;
use crate::error::Error;
use crate::routeros::DiskItem;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expand {
    /// Nothing.
    Nothing,
    /// The file grows; nobody has the volume.
    Grow,
    /// The file grows, and the export goes off and on.
    GrowAndToggle,
    /// Grown before; the export goes off and on.
    Toggle,
}

/// Decides it.
///
/// # Errors
/// For what must not be done now, and for a size that cannot be.
pub fn decide(item: &DiskItem, tag: &OwnerTag, plan: &SizePlan) -> Result<Expand, Error> {
    let volume = &tag.volume;
    if tag.stage == Stage::Deleting {
        return Err(Error::Refused(format!("volume {volume} is being deleted")));
    }
    if let Stage::Filling(source) = &tag.stage {
        return Err(Error::Refused(format!(
            "volume {volume} is being filled from {source}; expand it when CreateVolume is done"
        )));
    }
    let Some(size) = item.size else {
        return Err(Error::NotConfirmed { what: format!("creation of {volume}"), seconds: 0 });
    };
    if size > plan.size && !plan.admits(size) {
        return Err(Error::OutOfRange(format!(
            "volume {volume} has {size} bytes already, which is more than limit_bytes; volumes are \
             never made smaller"
        )));
    }
    let enough = plan.admits(size);
    match (&tag.stage, item.export) {
        (Stage::Attached(_), _) if enough && !tag.notes.growing => Ok(Expand::Nothing),
        (Stage::Attached(_), _) => {
            may_toggle(tag)?;
            Ok(if enough { Expand::Toggle } else { Expand::GrowAndToggle })
        }
        (_, true) => Err(Error::Refused(format!(
            "volume {volume} is exported while nobody is on record as holding it; detach it first \
             (ControllerUnpublishVolume)"
        ))),
        (_, false) if enough => Ok(Expand::Nothing),
        (_, false) => Ok(Expand::Grow),
    }
}

/// Whether the export may be turned off and on under whoever has the volume.
fn may_toggle(tag: &OwnerTag) -> Result<(), Error> {
    let volume = &tag.volume;
    if let Stage::Attached(Attachment { node, migration: Some(migration), .. }) = &tag.stage {
        return Err(Error::Refused(format!(
            "volume {volume} is in a live migration from {node} to {}: to grow it would drop the \
             sessions of both. Expand it when the migration has ended",
            migration.target
        )));
    }
    if tag.notes.bare {
        return Err(Error::Refused(format!(
            "volume {volume} is attached and has no shield (StorageClass parameter shield: \
             \"false\"): to grow it online would fail its I/O. End the pods that use it, expand \
             it, and start them again"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::owner::{NodeKey, Notes, Sharing};
    use tonic::Code;

    fn tag(attached: bool, notes: Notes) -> OwnerTag {
        let volume = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
        let stage = match attached {
            false => "ready".to_owned(),
            true => {
                "attached node=a host=3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11 mode=rwo since=1".into()
            }
        };
        let tag = OwnerTag::parse(&format!("rds-csi v1 cluster=lab vol={volume} stage={stage}"));
        OwnerTag { notes, ..tag.unwrap() }
    }

    fn item(size: u64, export: bool) -> DiskItem {
        DiskItem { export, ..DiskItem::sample("pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11", size) }
    }

    #[test]
    fn the_rules() {
        let plan = SizePlan::new(Some((8192, 16384))).unwrap();
        let none = Notes::default();
        let growing = Notes { growing: true, ..none };
        let decide = |size, export, attached, notes| {
            decide(&item(size, export), &tag(attached, notes), &plan)
        };
        for (size, export, attached, notes, want) in [
            (4096, false, false, none, Expand::Grow),
            (8192, false, false, none, Expand::Nothing),
            (12288, false, false, growing, Expand::Nothing),
            (4096, true, true, none, Expand::GrowAndToggle),
            (4096, false, true, growing, Expand::GrowAndToggle),
            (8192, true, true, none, Expand::Nothing),
            (8192, true, true, growing, Expand::Toggle),
            (8192, false, true, growing, Expand::Toggle),
        ] {
            assert_eq!(decide(size, export, attached, notes).unwrap(), want, "{size} {export}");
        }
        let code = |r: Result<Expand, Error>| r.unwrap_err().code();
        assert_eq!(code(decide(20480, true, true, none)), Code::OutOfRange);
        assert_eq!(code(decide(4096, true, false, none)), Code::FailedPrecondition);
        let bare = Notes { bare: true, ..none };
        assert_eq!(code(decide(4096, true, true, bare)), Code::FailedPrecondition);
        assert_eq!(decide(4096, false, false, bare).unwrap(), Expand::Grow);
        let deleting = tag(false, none).at(Stage::Deleting);
        assert!(super::decide(&item(4096, false), &deleting, &plan).is_err());

        // A live migration: both nodes would lose their sessions.
        let Stage::Attached(one) = tag(true, none).stage else { unreachable!() };
        let one = Attachment { sharing: Sharing::Shared, ..one };
        let two = one.joined_by(NodeKey::of(&"b".parse().unwrap()), 300, 1);
        let two = tag(true, none).at(Stage::Attached(two));
        let refused = super::decide(&item(4096, true), &two, &plan);
        assert_eq!(code(refused), Code::FailedPrecondition);
        assert_eq!(super::decide(&item(8192, true), &two, &plan).unwrap(), Expand::Nothing);
    }
}
