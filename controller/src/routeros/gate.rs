//! Until when changes may be sent: as long as this controller leads.
//!
//! The appliance has no conditional change, so nothing there tells an old leader's from a new
//! one's. What can be done is done here: a change is not sent once the time is over, and one
//! that is under way is not waited for any longer than until others may lead. A change that the
//! appliance carries out later than that cannot be excluded (docs/rwx.md).

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::error::ApplianceError;

/// Open, until some time, or shut.
#[derive(Debug)]
pub struct Gate(Mutex<Option<Until>>);

/// The times after which no change is sent, and none waited for.
#[derive(Debug, Clone, Copy)]
struct Until {
    send: Instant,
    answer: Instant,
}

impl Gate {
    /// For a controller that is alone.
    #[must_use]
    pub fn open() -> Self {
        Self(Mutex::new(None))
    }

    /// Shut until it is opened for some time.
    #[must_use]
    pub fn shut() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Some(Until { send: now, answer: now })))
    }

    /// Changes may be sent before `send`, and waited for until `answer`.
    pub(crate) fn open_until(&self, send: Instant, answer: Instant) {
        self.set(Until { send, answer });
    }

    /// No change is sent any more; what is under way may end.
    pub(crate) fn close(&self) {
        if let Some(until) = self.until() {
            self.set(Until { send: Instant::now(), ..until });
        }
    }

    /// Whether a change would be sent now.
    pub(crate) fn is_open(&self) -> bool {
        self.until().is_none_or(|until| Instant::now() < until.send)
    }

    fn set(&self, until: Until) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn until(&self) -> Option<Until> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a change, if it may be, and waits for its answer.
    pub(super) async fn carry<T>(
        &self,
        action: &impl ToString,
        change: impl Future<Output = Result<T, ApplianceError>>,
    ) -> Result<T, ApplianceError> {
        if !self.is_open() {
            return Err(ApplianceError::NotLeading { action: action.to_string() });
        }
        tokio::select! {
            result = change => result,
            () = self.over() => Err(ApplianceError::Ambiguous {
                action: action.to_string(),
                cause: "this controller does not lead any more".into(),
            }),
        }
    }

    /// Returns when others may lead; the time may be put off meanwhile.
    pub(crate) async fn over(&self) {
        while let Some(until) = self.until() {
            if until.answer <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until.answer).await;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::time::Duration;

    #[tokio::test]
    async fn nothing_is_sent_after_the_end_nor_waited_for() {
        let second = Duration::from_millis(100);
        let started = Instant::now();
        let gate = Gate::shut();
        let refused = gate.carry(&"set", ready(Ok(()))).await;
        assert!(matches!(refused, Err(ApplianceError::NotLeading { .. })), "{refused:?}");
        gate.open_until(started + second, started + second * 2);
        assert!(gate.carry(&"set", ready(Ok(()))).await.is_ok());
        let extended = async {
            tokio::time::sleep(second / 2).await;
            gate.open_until(started + second * 3, started + second * 4);
        };
        let hangs = gate.carry(&"set", pending::<Result<(), _>>());
        let (hung, ()) = tokio::join!(hangs, extended);
        assert!(matches!(hung, Err(ApplianceError::Ambiguous { .. })), "{hung:?}");
        assert!(started.elapsed() >= second * 4, "not waited for as long as it may be");
        assert!(!gate.is_open());
    }

    #[tokio::test]
    async fn alone_there_is_no_end() {
        let gate = Gate::open();
        gate.close();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(gate.carry(&"set", ready(Ok(()))).await.is_ok());
    }
}
