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
        expect_none(&self.controllers().await?)?;
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

/// The kernel said that it deletes them, or that they went; it is believed when they are gone.
fn expect_none(left: &[sysfs::Controller]) -> Result<()> {
    match left.first() {
        None => Ok(()),
        Some(left) => Err(Error::Unavailable(format!(
            "{} of {} is still {:?}; try again",
            left.name, left.nqn, left.state
        ))),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kernel::sysfs::ControllerState;

    #[test]
    fn a_controller_that_survives_its_deletion_is_no_success() {
        assert!(expect_none(&[]).is_ok());
        for state in
            [ControllerState::Live, ControllerState::DeletingNoIo, ControllerState::Unknown]
        {
            let left = sysfs::Controller {
                name: "nvme3".into(),
                nqn: "nqn.2000-02.com.mikrotik:x".into(),
                host_nqn: String::new(),
                address: String::new(),
                cntlid: "1".into(),
                state,
                namespace: None,
            };
            let error = expect_none(&[left]).unwrap_err();
            assert_eq!(error.code(), tonic::Code::Unavailable);
            assert!(error.to_string().contains("nvme3 of nqn.2000-02"), "{error}");
        }
    }
}

#[cfg(all(test, feature = "kernel-tests"))]
mod kernel_tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;
    use crate::kernel::DeviceNumber;

    fn run(line: &str) -> String {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// With `shield: "false"` this is all that stands between a mounted device and its end.
    #[test]
    fn what_the_kernel_holds_is_not_disconnected() {
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        let (image, mount) = (image.to_str().unwrap(), mount.to_str().unwrap());
        run(&format!("truncate -s 64M {image}; mkfs.ext4 -q {image}; mkdir {mount}"));
        let device = run(&format!("losetup -f --show {image}"));
        let namespace = sysfs::Namespace {
            name: device.trim_start_matches("/dev/").into(),
            number: DeviceNumber::of_path(device.as_ref()).unwrap(),
            size_bytes: 64 << 20,
            wwid: String::new(),
        };
        refuse_if_held(&namespace).unwrap();
        run(&format!("mount {device} {mount}"));
        let mounted = refuse_if_held(&namespace);
        // Also when the mount is in no namespace that anybody can see any more.
        let open = std::fs::File::create(format!("{mount}/file")).unwrap();
        run(&format!("umount --lazy {mount}"));
        let detached = refuse_if_held(&namespace);
        drop(open);
        let held_by_mapping = {
            run(&format!(
                "udevadm settle; dmsetup create held --noudevsync --table '0 8 linear {device} 0'"
            ));
            let held = refuse_if_held(&namespace);
            run("dmsetup remove --retry --noudevsync held");
            held
        };
        let free = refuse_if_held(&namespace);
        run(&format!("losetup -d {device}"));
        for held in [mounted, detached, held_by_mapping] {
            let error = held.unwrap_err();
            assert_eq!(error.code(), tonic::Code::FailedPrecondition);
            assert!(error.to_string().contains("not disconnected under its users"), "{error}");
        }
        free.unwrap();
        let gone = sysfs::Namespace { name: "nvme77n1".into(), ..namespace };
        refuse_if_held(&gone).unwrap();
    }
}
