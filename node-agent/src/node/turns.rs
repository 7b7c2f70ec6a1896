//! Looking at a volume that may hang: one look at a time, and never waited for for long.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;

use crate::error::{Error, Result};
use crate::kernel::blocking;

/// Volumes at which is being looked: a second look would only be stuck beside the first.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashSet<VolumeId>>>);

struct Turn {
    turns: Turns,
    volume: VolumeId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}

impl Turns {
    fn take(&self, volume: &VolumeId) -> Option<Turn> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.insert(volume.clone()).then(|| Turn { turns: self.clone(), volume: volume.clone() })
    }

    /// `None` if the volume does not answer, to this look or to one before it.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        volume: &VolumeId,
        what: impl Into<String>,
        deadline: Duration,
        look: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(turn) = self.take(volume) else { return Ok(None) };
        let answer = blocking(what, deadline, move || {
            let answer = look();
            drop(turn);
            answer
        });
        match answer.await {
            Ok(seen) => Ok(Some(seen)),
            Err(Error::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
