//! Where requests of both transports queue up.
//!
//! A request runs in a task of its own: it goes on when its client went away, when REST cuts it
//! after a minute, and it is never answered when the appliance rebooted in between.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use crate::appliance::core::Appliance;
use crate::clock;
use crate::journal::{Record, micros};
use crate::ros::error::Refusal;
use crate::sim::Sim;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Rest,
    Ssh,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Transport::Rest => "rest",
            Transport::Ssh => "ssh",
        }
    }
}

/// What a request is called in the log and matched by in faults.
#[derive(Debug, Clone)]
pub struct Label {
    pub transport: Transport,
    pub verb: String,
    pub path: String,
    pub item: Option<String>,
}

/// What the transport tells its client.
#[derive(Debug)]
pub enum Outcome<T> {
    Done(Result<T, Refusal>),
    /// Still running, but the time is up.
    Cut,
    /// The connection closes without an answer.
    Lost,
    /// No answer ever comes.
    Hung,
}

/// One queue per transport: there is one user, and REST runs a user's requests one at a time.
#[derive(Debug, Default)]
pub struct Desk {
    rest: Arc<Mutex<()>>,
    ssh: Arc<Mutex<()>>,
}

/// A request's turn, for as long as it holds it.
type Turn = Arc<std::sync::Mutex<Option<OwnedMutexGuard<()>>>>;

fn set(turn: &Turn, guard: Option<OwnedMutexGuard<()>>) {
    *turn.lock().unwrap_or_else(PoisonError::into_inner) = guard;
}

/// Runs `work` on the appliance in its turn.
pub async fn submit<T: Send + 'static>(
    sim: &Arc<Sim>,
    label: Label,
    cut: Option<Duration>,
    work: impl FnOnce(&Appliance) -> Result<T, Refusal> + Send + 'static,
) -> Outcome<T> {
    let (answer, result) = oneshot::channel();
    let task_sim = sim.clone();
    let turn = Turn::default();
    let task_turn = turn.clone();
    tokio::spawn(async move {
        let outcome = run(&task_sim, label, &task_turn, work).await;
        // The client may be gone: the work is done all the same.
        let _ = answer.send(outcome);
    });
    let outcome = match cut {
        Some(cut) => match tokio::time::timeout(cut, result).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if sim.config.switches.cut_frees_queue {
                    set(&turn, None);
                }
                return Outcome::Cut;
            }
        },
        None => result.await,
    };
    outcome.unwrap_or(Outcome::Lost)
}

async fn run<T: Send + 'static>(
    sim: &Arc<Sim>,
    label: Label,
    turn: &Turn,
    work: impl FnOnce(&Appliance) -> Result<T, Refusal> + Send + 'static,
) -> Outcome<T> {
    let arrived = Instant::now();
    let boots = sim.appliance.boots();
    let queue = match label.transport {
        Transport::Rest => &sim.desk.rest,
        Transport::Ssh => &sim.desk.ssh,
    };
    set(turn, Some(queue.clone().lock_owned().await));
    let request =
        format!("{} {} {}", label.verb, label.path, label.item.as_deref().unwrap_or_default());
    let verdict = sim.faults.judge(request.trim_end());
    tokio::time::sleep(verdict.delay + Duration::from_millis(sim.config.switches.latency_ms)).await;
    if sim.appliance.boots() != boots {
        return Outcome::Lost;
    }
    let result = match verdict.reject {
        Some((status, detail)) => Err(Refusal::Fault { status, detail }),
        None => {
            let appliance = sim.appliance.clone();
            tokio::task::spawn_blocking(move || work(&appliance))
                .await
                .unwrap_or_else(|e| Err(Refusal::Guess(format!("failure: {e}"))))
        }
    };
    set(turn, None);
    let status = result.as_ref().map_or_else(Refusal::status, |_| 200);
    sim.journal.write(&Record {
        time: clock::unix_ms(),
        transport: label.transport.name(),
        verb: &label.verb,
        path: &label.path,
        item: label.item.as_deref(),
        status,
        us: micros(arrived.elapsed()),
    });
    if verdict.hang {
        Outcome::Hung
    } else if verdict.lose_answer || sim.appliance.boots() != boots {
        Outcome::Lost
    } else {
        Outcome::Done(result)
    }
}
