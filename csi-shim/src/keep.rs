//! A stream from the agent that is to be open for as long as the shim runs.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

/// Between two attempts: an agent that is restarted is back within a second.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// While there is no stream: how often to say so.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// When to open it again.
pub struct Keep {
    /// What is amiss while there is none.
    lack: &'static str,
    began: Instant,
    pause: Duration,
    complain_at: Instant,
}

impl Keep {
    /// For a stream that is about to be opened. `lack` says what is amiss while there is none.
    #[must_use]
    pub fn new(lack: &'static str) -> Self {
        let began = Instant::now();
        Self { lack, began, pause: AGAIN_FIRST, complain_at: began + COMPLAIN_EVERY / 6 }
    }

    /// Returns when it is to be opened again. An error means that it was never open.
    pub async fn after(&mut self, outcome: Result<(), Status>) {
        match outcome {
            Ok(()) => *self = Self::new(self.lack),
            Err(status) if self.began >= self.complain_at => {
                tracing::warn!("{}: {}", self.lack, explain(&status));
                self.complain_at = self.began + COMPLAIN_EVERY;
            }
            Err(_) => {}
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(AGAIN_LAST);
        self.began = Instant::now();
    }
}

fn explain(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => "it is of an older release; upgrade rds-node-agent".to_owned(),
        _ => status.message().to_owned(),
    }
}
