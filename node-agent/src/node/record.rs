//! What the journal knows of a staged volume: written before each step, confirmed after.
//!
//! The kernel is the truth; the record explains it. One field decides over data: a record
//! that says `Formatting` proves that an unfinished file system is our own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rds_csi_proto::ids::HostNqn;
use serde::{Deserialize, Serialize};

use super::locks::Operation;
use crate::error::{Error, Result};
use crate::journal::{Journal, Table};

/// The state directory is on a local disk; one that takes longer is broken.
const JOURNAL: Duration = Duration::from_secs(15);

/// A volume on this node, under its volume id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    /// The boot it is about: after a reboot nothing is mounted any more.
    pub(crate) boot_id: String,
    /// The attachment's epoch. As long as it is the same, nobody else has written.
    pub(crate) host_nqn: HostNqn,
    /// Where it is staged, as the kernel names the path.
    pub(crate) staging: PathBuf,
    /// As what.
    pub(crate) access: Access,
    /// Whether the volume may not be written.
    pub(crate) read_only: bool,
    /// How far it got.
    pub(crate) step: Step,
    /// Where it is published.
    pub(crate) publishes: Vec<Publish>,
}

/// How a volume is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Access {
    /// As a raw block device.
    Block,
    /// With a file system.
    Filesystem {
        /// `ext4`
        fs_type: String,
        /// Mount flags as they were asked for.
        flags: Vec<String>,
    },
}

/// The steps of staging and unstaging. Each is written before it is begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Connecting, examining.
    Attaching,
    /// A file system with this UUID is being made on a device that was proven blank.
    Formatting {
        /// Chosen by us beforehand.
        uuid: String,
    },
    /// The file system is complete; it is being mounted. From here on it may hold data.
    Mounting,
    /// Done.
    Staged,
    /// Being unmounted and disconnected.
    Unstaging,
}

/// One target path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publish {
    /// As the kernel names the path.
    pub(crate) target: PathBuf,
    /// Whether this one may not write.
    pub(crate) read_only: bool,
    /// False while it is being made.
    pub(crate) confirmed: bool,
}

impl StageRecord {
    /// The UUID of a file system that we were making when we were interrupted. A reboot
    /// in between does not matter, but another attachment does: somebody else may have
    /// finished it and written since.
    pub(crate) fn interrupted_format(&self, host_nqn: &HostNqn) -> Option<&str> {
        match &self.step {
            Step::Formatting { uuid } if self.host_nqn == *host_nqn => Some(uuid),
            _ => None,
        }
    }

    /// The publish at a path, if any.
    pub(crate) fn publish_at(&self, target: &Path) -> Option<&Publish> {
        self.publishes.iter().find(|p| p.target == target)
    }

    /// Notes a publish, in place of an older note on the same path.
    pub(crate) fn note_publish(&mut self, publish: Publish) {
        self.publishes.retain(|p| p.target != publish.target);
        self.publishes.push(publish);
    }
}

/// The records, and which boot this is.
#[derive(Clone)]
pub(crate) struct Records {
    journal: Journal,
    boot_id: String,
}

impl Records {
    pub(crate) fn new(journal: Journal) -> Result<Self> {
        const PATH: &str = "/proc/sys/kernel/random/boot_id";
        let boot_id = std::fs::read_to_string(PATH).map_err(Error::kernel("read", PATH))?;
        Ok(Self { journal, boot_id: boot_id.trim().to_owned() })
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The record of any boot.
    pub(crate) async fn load(&self, operation: &Operation) -> Result<Option<StageRecord>> {
        let (journal, key) = (self.journal.clone(), operation.volume().clone());
        operation
            .run("reading the journal", JOURNAL, move || journal.get(Table::Stages, key.as_str()))
            .await
    }

    /// Whether a record speaks of this boot. An older one says nothing of mounts.
    pub(crate) fn is_current(&self, record: &StageRecord) -> bool {
        record.boot_id == self.boot_id
    }

    pub(crate) async fn save(&self, operation: &Operation, record: &StageRecord) -> Result<()> {
        let (journal, key) = (self.journal.clone(), operation.volume().clone());
        let record = record.clone();
        operation
            .run("writing the journal", JOURNAL, move || {
                journal.put(Table::Stages, key.as_str(), &record)
            })
            .await
    }

    pub(crate) async fn forget(&self, operation: &Operation) -> Result<()> {
        let (journal, key) = (self.journal.clone(), operation.volume().clone());
        operation
            .run("writing the journal", JOURNAL, move || {
                journal.remove(Table::Stages, key.as_str())
            })
            .await
    }

    /// A snapshot without a lock, for calls that only look.
    pub(crate) async fn peek(&self, key: &str) -> Result<Option<StageRecord>> {
        let (journal, key) = (self.journal.clone(), key.to_owned());
        crate::kernel::blocking("reading the journal", JOURNAL, move || {
            journal.get(Table::Stages, &key)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_system_is_ours_only_within_the_attachment() {
        let epoch = HostNqn::random();
        let mut record = StageRecord {
            boot_id: "b".into(),
            host_nqn: epoch.clone(),
            staging: "/s".into(),
            access: Access::Block,
            read_only: false,
            step: Step::Formatting { uuid: "u".into() },
            publishes: Vec::new(),
        };
        assert_eq!(record.interrupted_format(&epoch), Some("u"));
        assert_eq!(record.interrupted_format(&HostNqn::random()), None);
        record.step = Step::Mounting;
        assert_eq!(record.interrupted_format(&epoch), None);
    }
    /// The status shows them without knowing the type.
    #[test]
    fn the_status_finds_path_and_file_system() {
        let record = StageRecord {
            boot_id: "b".into(),
            host_nqn: HostNqn::random(),
            staging: "/s".into(),
            access: Access::Filesystem { fs_type: "xfs".into(), flags: Vec::new() },
            read_only: false,
            step: Step::Staged,
            publishes: Vec::new(),
        };
        let value = serde_json::to_value(record).unwrap_or_default();
        let noted = |pointer| crate::session::rpc::noted(&value, pointer);
        assert_eq!(
            (noted("/staging"), noted("/access/Filesystem/fs_type")),
            ("/s".into(), "xfs".into())
        );
    }
}
