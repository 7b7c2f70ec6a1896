//! One operation at a time per volume, and each runs to its end.
//!
//! A caller may hang up in the middle (kubelet and the sidecars do, at their deadline). An
//! operation dropped at that point would leave the appliance half changed with nobody
//! looking; so it runs in a task of its own, holding the volume, and the repeated call is
//! told that it is still running.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::Error;

/// The longest that a caller is kept waiting without a deadline of its own. Longer than any
/// operation is expected to take, shorter than the sidecars' usual patience.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

type Running = Arc<Mutex<HashMap<String, (&'static str, Instant)>>>;

/// The operations that run now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operations {
    running: Running,
    tasks: TaskTracker,
}

/// Holds a volume or a snapshot until it is dropped.
struct Claim {
    running: Running,
    subject: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.subject);
    }
}

/// The map is whole after any panic: each use is a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Operations {
    fn claim(&self, subject: &str, rpc: &'static str) -> Result<Claim, Error> {
        let mut map = lock(&self.running);
        if let Some((running, since)) = map.get(subject) {
            return Err(Error::Busy {
                subject: subject.to_owned(),
                running,
                seconds: since.elapsed().as_secs(),
            });
        }
        map.insert(subject.to_owned(), (rpc, Instant::now()));
        Ok(Claim { running: Arc::clone(&self.running), subject: subject.to_owned() })
    }

    /// Runs `work` as the only operation on `subject` (a volume or a snapshot), to its end; waits for it at most
    /// `wait` (the caller's own deadline).
    ///
    /// # Errors
    /// [`Error::Busy`] if one runs already, [`Error::StillRunning`] if it takes too long,
    /// or whatever `work` returns.
    pub(crate) async fn run<T, W>(
        &self,
        rpc: &'static str,
        subject: &(impl AsRef<str> + ?Sized),
        wait: Option<Duration>,
        work: W,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let claim = self.claim(subject.as_ref(), rpc)?;
        let started = Instant::now();
        let task = self.tasks.spawn(
            async move {
                let result = work.await;
                drop(claim);
                tracing::debug!(ms = started.elapsed().as_millis(), ok = result.is_ok(), "done");
                result
            }
            .in_current_span(),
        );
        let wait = wait.map_or(LONGEST_WAIT, |w| w.min(LONGEST_WAIT));
        match tokio::time::timeout(wait, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(join)) => Err(Error::Internal(format!("{rpc} ended abnormally: {join}"))),
            Err(_) => Err(Error::StillRunning { rpc, seconds: wait.as_secs() }),
        }
    }

    /// Waits for what runs, up to `limit`; whether all is done.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rds_csi_proto::ids::VolumeId;

    fn volume() -> VolumeId {
        VolumeId::from_request_name("v")
    }

    #[tokio::test]
    async fn a_second_operation_is_told_what_runs() {
        let operations = Operations::default();
        let (release, held) = tokio::sync::oneshot::channel::<()>();
        let volume = volume();
        let short = Some(Duration::from_millis(20));
        let first = operations.run("DeleteVolume", &volume, short, async {
            held.await.ok();
            Ok(())
        });
        // The caller goes away; the operation does not.
        assert!(matches!(first.await, Err(Error::StillRunning { .. })));
        let second = operations.run("CreateVolume", &volume, None, async { Ok(()) }).await;
        let message = second.unwrap_err().to_string();
        assert!(message.contains("DeleteVolume"), "{message}");
        assert!(!operations.clone().drain(Duration::from_millis(20)).await);
        release.send(()).unwrap();
        assert!(operations.drain(Duration::from_secs(5)).await);
        assert!(operations.claim(volume.as_str(), "CreateVolume").is_ok());
    }

    #[tokio::test]
    async fn a_panic_gives_the_volume_back() {
        let operations = Operations::default();
        let result: Result<(), _> =
            operations.run("CreateVolume", &volume(), None, async { panic!("boom") }).await;
        assert!(matches!(result, Err(Error::Internal(_))));
        assert!(operations.run("CreateVolume", &volume(), None, async { Ok(()) }).await.is_ok());
    }
}
