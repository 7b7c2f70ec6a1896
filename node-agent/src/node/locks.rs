//! One operation at a time for each volume.
//!
//! An operation lasts until its last blocking call has really returned, not until its
//! caller gave up: an unmount that sleeps on a dead device is still an unmount, and a
//! stage beside it would meet a half-removed file system.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rds_csi_proto::ids::VolumeId;

use crate::error::{Error, Result};
use crate::kernel::blocking;

#[derive(Debug, Clone, Copy)]
struct Running {
    what: &'static str,
    since: Instant,
}

/// Which volumes are being worked on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Locks {
    running: Arc<Mutex<HashMap<VolumeId, Running>>>,
}

impl Locks {
    /// Begins an operation.
    pub(crate) fn begin(&self, volume: &VolumeId, what: &'static str) -> Result<Operation> {
        match self.lock().entry(volume.clone()) {
            Entry::Occupied(entry) => {
                let Running { what: running, since } = *entry.get();
                Err(Error::Busy { volume: volume.clone(), running, since: since.elapsed() })
            }
            Entry::Vacant(entry) => {
                entry.insert(Running { what, since: Instant::now() });
                let held = Held { locks: self.clone(), volume: volume.clone() };
                Ok(Operation { held: Arc::new(held) })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Running>> {
        // Entries are put in and taken out whole, so a panic elsewhere leaves it true.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Held {
    locks: Locks,
    volume: VolumeId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.lock().remove(&self.volume);
    }
}

/// An operation that is going on. Every clone keeps the volume locked.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    held: Arc<Held>,
}

impl Operation {
    pub(crate) fn volume(&self) -> &VolumeId {
        &self.held.volume
    }

    /// Runs a blocking call, which keeps the volume locked even when it is given up on.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let held = self.clone();
        let what = format!("{what} of volume {}", self.volume());
        blocking(what, deadline, move || {
            let result = call();
            drop(held);
            result
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn volume() -> VolumeId {
        VolumeId::from_request_name("a")
    }

    #[test]
    fn a_second_operation_is_told_what_runs() {
        let locks = Locks::default();
        let first = locks.begin(&volume(), "NodeStageVolume").unwrap();
        let error = locks.begin(&volume(), "NodeUnstageVolume").unwrap_err();
        assert_eq!(error.code(), tonic::Code::Aborted);
        assert!(error.to_string().contains("NodeStageVolume"), "{error}");
        locks.begin(&VolumeId::from_request_name("b"), "NodeStageVolume").unwrap();
        drop(first);
        locks.begin(&volume(), "NodeUnstageVolume").unwrap();
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_on_keeps_the_volume_locked() {
        let locks = Locks::default();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let operation = locks.begin(&volume(), "NodeUnstageVolume").unwrap();
        let stuck = operation.run("unmount", Duration::from_millis(20), move || {
            let _ = wait.recv();
            Ok(())
        });
        assert!(matches!(stuck.await, Err(Error::Timeout { .. })));
        drop(operation);
        assert!(locks.begin(&volume(), "NodeStageVolume").is_err());
        drop(release);
        let begun = Instant::now();
        while locks.begin(&volume(), "NodeStageVolume").is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
