//! A second copy of each session's record, in memory-backed `/run`.
//!
//! The journal may be damaged, deleted or rolled back while volumes are in use. What it said
//! of this boot's sessions then still stands here, and goes away by itself with the boot.
//! It is only believed for a volume whose shield or controller is really there: a session
//! that was taken down properly has neither.

use std::fs;
use std::path::PathBuf;

use rds_csi_proto::ids::VolumeId;
use tracing::warn;

use super::record::SessionRecord;

/// The directory of copies. Cheap to clone; its calls touch memory only.
#[derive(Debug, Clone)]
pub struct Copies {
    dir: PathBuf,
}

impl Copies {
    /// Keeps copies below `dir`, which must not outlive the boot.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Writes one. Best effort: the journal is what counts.
    pub fn write(&self, record: &SessionRecord) {
        let path = self.path(&record.spec.volume);
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&self.dir)?;
            let temporary = path.with_extension("new");
            fs::write(&temporary, serde_json::to_vec(record)?)?;
            // Whole or not at all, also when killed here.
            fs::rename(&temporary, &path)
        };
        if let Err(error) = write() {
            warn!(path = %path.display(), %error, "a session has no second copy of its record");
            // Better none than one that is not true any more.
            self.remove(&record.spec.volume);
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn has(&self, volume: &VolumeId) -> bool {
        self.path(volume).exists()
    }

    /// Removes one.
    pub fn remove(&self, volume: &VolumeId) {
        let _ = fs::remove_file(self.path(volume));
    }

    /// All that can be read and understood.
    #[must_use]
    pub fn all(&self) -> Vec<SessionRecord> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let read = |path: PathBuf| -> Option<SessionRecord> {
            serde_json::from_slice(&fs::read(path).ok()?).ok()
        };
        entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .filter_map(read)
            .collect()
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.dir.join(format!("{volume}.json"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::content::Samples;
    use super::super::record::Phase;
    use super::super::{Content, SessionSpec};
    use super::*;

    #[test]
    fn copies_are_read_back_and_half_written_ones_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path().join("sessions"));
        assert!(copies.all().is_empty());
        let volume: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap();
        let record = SessionRecord {
            spec: SessionSpec {
                volume: volume.clone(),
                nqn: "nqn.2000-02.com.mikrotik:x".parse().unwrap(),
                host_nqn: rds_csi_proto::ids::HostNqn::random(),
                portal: rds_csi_proto::ids::Portal::parse("10.0.0.1", "4420").unwrap(),
                ctrl_loss_tmo: -1,
                reconnect_delay: 1,
                keep_alive_tmo: 5,
                nr_io_queues: 2,
                shield: true,
                io_timeout_secs: 0,
                reattach_check_secs: 60,
                arrival: None,
            },
            boot_id: "b".into(),
            phase: Phase::Attached,
            content: Content::Raw,
            samples: Samples::default(),
        };
        copies.write(&record);
        std::fs::write(dir.path().join("sessions/other.json"), "{").unwrap();
        std::fs::write(dir.path().join("sessions/cut.new"), "{}").unwrap();
        let read = copies.all();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].spec, record.spec);
        copies.remove(&volume);
        assert!(copies.all().is_empty());
    }
}
