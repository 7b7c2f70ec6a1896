//! Asks each appliance for its readings, in the background and in nobody's way: only while no
//! call uses the connection, one short question at a time, each with a deadline of its own.
//! What a scrape shows is what was found here.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::routeros::Appliance;
use crate::routeros::readings::round;

/// A reading is not worth more: it holds up a call that comes meanwhile.
const QUESTION_LIMIT: Duration = Duration::from_secs(5);
/// How soon a busy appliance is looked at again.
const BUSY_GAP: Duration = Duration::from_millis(500);
/// How often, before the question is left for the next round.
const BUSY_TRIES: u32 = 20;

/// Until told to stop. Values are shown for three rounds, so that one that failed is no gap.
pub(crate) async fn watch(
    appliance: Arc<Appliance>,
    metrics: Arc<Metrics>,
    every: Duration,
    stop: CancellationToken,
) {
    let stale_after = every * 3;
    let rounds = async {
        let mut clock = tokio::time::interval(every);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            for (number, (request, read)) in round().into_iter().enumerate() {
                for _ in 0..BUSY_TRIES {
                    match appliance.when_idle(&request, QUESTION_LIMIT).await {
                        None => tokio::time::sleep(BUSY_GAP).await,
                        Some(Ok(rows)) => {
                            let name = appliance.name();
                            metrics.readings().put(name, number, read(&rows), stale_after);
                            break;
                        }
                        Some(Err(e)) => {
                            tracing::debug!(%request, "no readings: {e}");
                            break;
                        }
                    }
                }
            }
        }
    };
    tokio::select! {
        () = rounds => {}
        () = stop.cancelled() => {}
    }
}
