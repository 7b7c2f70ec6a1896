//! Tells systemd that the agent is alive: this task runs, the sweeper goes round, and so does
//! the task of each volume. While one is stuck nobody brings its session back, and a restart
//! interrupts nothing.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::error;

use crate::session::beat::Board;

/// Runs for ever; returns at once where systemd does not wait for a sign of life.
pub async fn watch(board: Board) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    report(&board, limit / 4).await;
}

async fn report(board: &Board, every: Duration) {
    loop {
        let overdue = board.overdue(Instant::now());
        if overdue.is_empty() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
        for stuck in overdue {
            error!(who = stuck.who, by = ?stuck.by, "stuck; systemd is not told that the agent is alive");
        }
        tokio::time::sleep(every).await;
    }
}
