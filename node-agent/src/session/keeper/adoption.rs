//! Taking sessions over: those that an earlier agent has left, those that the journal or the
//! kernel still knows of, and those whose task has failed.

use std::collections::HashSet;

use rds_csi_proto::ids::VolumeId;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::journal::Table;
use crate::kernel::dm::DeviceMapper;
use crate::kernel::{blocking, sysfs};
use crate::metrics::labels::Adopted;

use super::super::record::SessionRecord;
use super::super::shield;
use super::super::task::Command;
use super::{Handle, JOURNAL_DEADLINE, Keeper, LOOK_DEADLINE, REVIVE_AFTER};

impl Keeper {
    /// What a journal says that could not be read at the start, and what one has missed.
    pub(super) async fn adopt_when_the_journal_is_back(self) {
        let mut progress = self.inner.shared.journal.progress();
        let mut known = progress.borrow_and_update().openings;
        loop {
            let Ok(now) = progress.wait_for(|p| p.openings > known).await.map(|p| p.openings)
            else {
                return;
            };
            known = now;
            self.adopt().await;
        }
    }

    /// Takes over what this agent does not have yet. Without a journal, what the kernel has
    /// is taken over all the same: its users do not care why there is none.
    pub(super) async fn adopt(&self) {
        let _beginning = self.inner.beginning.lock().await;
        let metrics = &self.inner.shared.metrics;
        metrics.adoption_begins();
        let journal = self.inner.shared.journal.clone();
        let records = blocking("read the journal", JOURNAL_DEADLINE, move || {
            journal.all::<SessionRecord>(Table::Sessions)
        });
        let records = records.await.unwrap_or_else(|error| {
            warn!(%error, "sessions are taken over without the journal");
            Vec::new()
        });
        let mut known = HashSet::new();
        for (key, record) in records {
            let journal = &self.inner.shared.journal;
            // Runs already, or was taken down since the records were read.
            if self.handle(&record.spec.volume).is_some()
                || matches!(journal.get::<SessionRecord>(Table::Sessions, &key), Ok(None))
            {
                continue;
            }
            known.insert(record.spec.volume.clone());
            if record.boot_id == self.inner.boot_id {
                info!(volume = %record.spec.volume, "taking over a session");
                metrics.adopted(Adopted::Journal);
                self.spawn(record);
            } else {
                info!(volume = %record.spec.volume, "forgetting a session of an earlier boot");
                metrics.adopted(Adopted::EarlierBoot);
                let journal = self.inner.shared.journal.clone();
                let forgotten = blocking("write the journal", JOURNAL_DEADLINE, move || {
                    journal.remove(Table::Sessions, &key)
                });
                if let Err(error) = forgotten.await {
                    warn!(%error, "it is forgotten at a later start");
                }
            }
        }
        self.adopt_from_kernel(&known).await;
    }

    /// Takes over what the journal does not know any more but the kernel still has: its
    /// journal was lost or rolled back.
    async fn adopt_from_kernel(&self, known: &HashSet<VolumeId>) {
        let seen = blocking("look at the kernel", LOOK_DEADLINE, || {
            let shields = shield::list(&DeviceMapper::open()?)?;
            let shields: HashSet<_> = shields.into_iter().map(|(volume, _)| volume).collect();
            Ok((shields, sysfs::controllers()?))
        });
        let (shields, controllers) = match seen.await {
            Ok(seen) => seen,
            // Without device-mapper there are no shields to find; the sweeper says so too.
            Err(error) => {
                warn!(%error, "the kernel cannot be searched for sessions that the journal lacks");
                return;
            }
        };
        let copies = self.inner.shared.copies.all();
        for record in copies.into_iter().filter(|r| r.boot_id == self.inner.boot_id) {
            let spec = &record.spec;
            let is_its = |c: &sysfs::Controller| {
                c.nqn == spec.nqn.as_str() && c.host_nqn == spec.host_nqn.as_str()
            };
            let there = shields.contains(&spec.volume) || controllers.iter().any(is_its);
            if !there || known.contains(&spec.volume) {
                continue;
            }
            let volume = spec.volume.clone();
            if self.handle(&volume).is_none() {
                if !self.inner.shared.copies.has(&volume) {
                    continue;
                }
                warn!(%volume, "the journal lacks this session; it is taken over from its copy");
                self.inner.shared.metrics.adopted(Adopted::Copy);
                self.spawn(record);
            }
            // By its task, which alone knows what is true by now.
            if let Err(error) = self.ask(&volume, Command::WriteRecord).await {
                warn!(%volume, %error, "the journal lacks this session for now");
            }
        }
        for volume in shields.iter().filter(|v| self.handle(v).is_none()) {
            self.inner.shared.metrics.adopted(Adopted::UnknownShield);
            error!(%volume, "a shield of which nothing is known: I/O on it works while its session does, but nobody reconnects it; unmount it and stage the volume anew");
        }
    }

    /// Until a session's task has ended. One that panicked has left its volume to nobody: as
    /// long as another has not taken it over, it is neither gone nor to be believed gone.
    pub(super) async fn supervise(self, volume: VolumeId, handle: Handle, task: JoinHandle<()>) {
        let Err(failed) = task.await else {
            return self.forget(&volume, &handle);
        };
        error!(%volume, %failed, "the session's task failed; another takes over");
        tokio::time::sleep(REVIVE_AFTER).await;
        let _beginning = self.inner.beginning.lock().await;
        match self.record_of(&volume) {
            Some(record) => drop(self.spawn(record)),
            None => self.forget(&volume, &handle),
        }
    }

    /// As it was written down last.
    fn record_of(&self, volume: &VolumeId) -> Option<SessionRecord> {
        let journal = &self.inner.shared.journal;
        match journal.get(Table::Sessions, volume.as_str()) {
            Ok(record) => record,
            Err(_) => self.inner.shared.copies.all().into_iter().find(|r| r.spec.volume == *volume),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use rds_csi_proto::ids::{HostNqn, Portal};

    use super::super::super::beat::Board;
    use super::super::super::copy::Copies;
    use super::super::super::record::Phase;
    use super::super::super::{Content, SessionSpec};
    use super::*;
    use crate::journal::Journal;
    use crate::metrics::Metrics;

    fn record(volume: &VolumeId, boot_id: &str) -> SessionRecord {
        let spec = SessionSpec {
            volume: volume.clone(),
            nqn: format!("nqn.2000-02.com.mikrotik:{volume}").parse().unwrap(),
            host_nqn: HostNqn::random(),
            // Nobody listens there, so nothing is ever connected.
            portal: Portal::parse("127.0.0.1", "9").unwrap(),
            ctrl_loss_tmo: -1,
            reconnect_delay: 1,
            keep_alive_tmo: 5,
            nr_io_queues: 1,
            shield: true,
            io_timeout_secs: 0,
            reattach_check_secs: 60,
            arrival: None,
        };
        SessionRecord {
            spec,
            boot_id: boot_id.to_owned(),
            phase: Phase::Attached,
            content: Content::Unknown,
            samples: Default::default(),
        }
    }

    /// The volume may live on another node by now.
    #[tokio::test(flavor = "multi_thread")]
    async fn sessions_of_an_earlier_boot_are_history() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&dir.path().join("state")).unwrap();
        let boot_id = sysfs::boot_id().unwrap();
        let earlier: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e21".parse().unwrap();
        let current: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e22".parse().unwrap();
        let copies = Copies::new(dir.path().join("sessions"));
        for (volume, boot_id) in [(&earlier, "an earlier boot"), (&current, boot_id.as_str())] {
            let record = record(volume, boot_id);
            copies.write(&record);
            journal.put(Table::Sessions, volume.as_str(), &record).unwrap();
        }
        let metrics = Arc::new(Metrics::new().unwrap());
        let keeper =
            Keeper::start(journal.clone(), copies, metrics, Board::default()).await.unwrap();
        let kept: Vec<VolumeId> = keeper.views().into_iter().map(|v| v.spec.volume).collect();
        assert_eq!(kept, std::slice::from_ref(&current));
        let known = |volume: &VolumeId| {
            journal.get::<SessionRecord>(Table::Sessions, volume.as_str()).unwrap().is_some()
        };
        assert!(known(&current) && !known(&earlier));
    }

    /// After a rollback (docs/install.md).
    #[test]
    fn what_a_newer_agent_adds_to_a_record_is_read_over() {
        let volume: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e23".parse().unwrap();
        let mut newer = serde_json::to_value(record(&volume, "this boot")).unwrap();
        newer["of a later release"] = 1.into();
        newer["spec"]["of a later release"] = "too".into();
        let read: SessionRecord = serde_json::from_value(newer).unwrap();
        assert_eq!(read.spec.volume, volume);
    }
}
