//! Taking a session down: the shield, which nobody may have open, then the controllers, then
//! the record. Each step may be repeated, and the kernel is asked before and after each.

use std::time::{Duration, Instant};

use tracing::info;

use crate::crash;
use crate::error::{Error, Result};
use crate::journal::Table;
use crate::kernel::dm::DeviceMapper;
use crate::kernel::fabrics::Held;
use crate::kernel::sysfs;

use super::super::actions::DELETE_DEADLINE;
use super::super::machine::Event;
use super::super::record::Phase;
use super::super::shield;
use super::{JOURNAL_DEADLINE, Task, WORD_DEADLINE, received};

impl Task {
    /// Takes the session down: shield first, without force; then its controllers; then
    /// the record. Each step may be repeated.
    pub(super) async fn detach(&mut self, deadline: Instant) -> Result<Option<Instant>> {
        let lingering = self.machine.writes_linger_until();
        self.feed(Event::Drain { begun: true });
        let result = self.take_down(deadline).await;
        if result.is_err() && self.record.phase == Phase::Attached {
            self.feed(Event::Drain { begun: false });
            self.shared.waker.wake();
        }
        result.map(|()| lingering.map(|ms| self.shared.epoch + Duration::from_millis(ms)))
    }

    async fn take_down(&mut self, deadline: Instant) -> Result<()> {
        let volume = self.record.spec.volume.clone();
        // An action under way could make the controller that is about to be deleted.
        while self.outcome.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.beat.busy(left);
            let outcome =
                tokio::time::timeout(left, received(&mut self.outcome)).await.map_err(|_| {
                    Error::Timeout {
                        what: format!("the session's last action on {volume}"),
                        after: left,
                    }
                })?;
            if let Some(outcome) = outcome {
                self.feed(Event::Done(outcome));
            }
        }
        let left = || deadline.saturating_duration_since(Instant::now());
        let id = volume.clone();
        self.step("remove the shield", left(), move || shield::remove(&DeviceMapper::open()?, &id))
            .await?;
        crash::point("detach.unshielded");
        // From here on there is no way back: the volume has no users.
        self.record.phase = Phase::Detaching;
        self.write_record().await?;
        crash::point("detach.recorded");
        let nqn = self.record.spec.nqn.clone();
        for controller in self.controllers().await? {
            info!(%volume, controller = controller.name, "disconnecting");
            let delete = self.step(
                format!("delete {}", controller.name),
                left().min(DELETE_DEADLINE),
                move || {
                    if let Some(namespace) = &controller.namespace {
                        refuse_if_held(namespace)?;
                    }
                    let held = Held::find(&controller.name, &controller.nqn)?;
                    held.map_or(Ok(()), |c| c.delete())
                },
            );
            match delete.await {
                // It went by itself meanwhile; what is left is looked at below.
                Ok(()) | Err(Error::Kernel { action: "delete", .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(left) = self.controllers().await?.first() {
            return Err(Error::Unavailable(format!(
                "{} of {nqn} is still {:?}; try again",
                left.name, left.state
            )));
        }
        crash::point("detach.deleted");
        // Before the record: whoever finds no record has nothing more to clear away.
        self.shared.copies.remove(&volume);
        let (journal, id) = (self.shared.journal.clone(), volume.clone());
        self.step("write the journal", JOURNAL_DEADLINE, move || {
            journal.remove(Table::Sessions, id.as_str())
        })
        .await?;
        crash::point("detach.forgotten");
        self.registration.follow(None);
        info!(%volume, "detached");
        Ok(())
    }

    /// The subsystem's controllers, read now.
    async fn controllers(&self) -> Result<Vec<sysfs::Controller>> {
        let nqn = self.record.spec.nqn.clone();
        self.step("look at sysfs", WORD_DEADLINE, move || {
            Ok(sysfs::controllers()?.into_iter().filter(|c| c.nqn == nqn.as_str()).collect())
        })
        .await
    }
}

/// An exclusive open fails while the kernel itself has the device claimed: mounted, in a
/// mapping, in a RAID.
fn refuse_if_held(namespace: &sysfs::Namespace) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/dev/{}", namespace.name);
    match std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&path) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(Error::Precondition(format!(
            "{path} is mounted or otherwise held; it is not disconnected under its users"
        ))),
        // Gone: nothing that could be held.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(e) => Err(Error::kernel("see whether anybody holds", path)(e)),
    }
}
