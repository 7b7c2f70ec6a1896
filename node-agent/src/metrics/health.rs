//! Alive: all loops go round. Ready: what was there is taken over, the kernel has been
//! looked at, and what is done next can be written down. Both are functions of facts, and
//! say in plain words what is wrong.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;

use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::session::beat::{Board, Overdue};
use crate::session::keeper::Keeper;

/// How often the journal is asked whether a change would reach the disk.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// The same while it would not: somebody may be mending that disk.
const PROBE_AGAIN: Duration = Duration::from_secs(5);
/// An answer that has not come by then: the disk hangs.
const ANSWER: Duration = Duration::from_secs(30);
/// A look at the kernel that is older than this says nothing about now.
const LOOK: Duration = Duration::from_secs(10);

/// How far the start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The journal is being opened.
    Journal,
    /// Sessions are being taken over.
    Adoption,
    /// Done.
    Done,
}

/// What the journal last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Why a change would not reach the disk, if so.
    pub failed: Option<String>,
    /// When it was asked.
    asked_at: Instant,
    answered: bool,
}

/// All that health depends on.
#[derive(Debug, Clone)]
pub struct Facts {
    /// How far the start has come.
    pub start: Start,
    /// How old the newest look at the kernel is, if there is one.
    pub look: Option<Duration>,
    /// The journal's last answer, and how long an open question has waited for one.
    pub journal: Option<(Option<String>, Duration)>,
    /// Loops that hang.
    pub overdue: Vec<Overdue>,
}

impl Facts {
    /// Whether the agent is alive.
    ///
    /// # Errors
    /// What hangs.
    pub fn alive(&self) -> Result<(), String> {
        let late = |o: &Overdue| format!("{} is overdue by {:.0?}", o.who, o.by);
        match self.overdue.as_slice() {
            [] => Ok(()),
            overdue => Err(overdue.iter().map(late).collect::<Vec<_>>().join("\n")),
        }
    }

    /// Whether the agent can do all that it is there for.
    ///
    /// # Errors
    /// Each thing that is in the way, one a line.
    pub fn ready(&self) -> Result<(), String> {
        let mut missing = Vec::new();
        match self.start {
            Start::Journal => missing.push("the journal is being opened".to_owned()),
            Start::Adoption => missing.push("sessions are being taken over".to_owned()),
            Start::Done => {
                missing.extend(self.look_missing());
                missing.extend(self.journal_missing());
            }
        }
        missing.extend(self.alive().err());
        if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
    }

    fn look_missing(&self) -> Option<String> {
        match self.look {
            None => Some("the kernel has not been looked at yet; see the log".into()),
            Some(age) if age > LOOK => {
                Some(format!("the newest look at the kernel is {age:.0?} old; see the log"))
            }
            Some(_) => None,
        }
    }

    fn journal_missing(&self) -> Option<String> {
        match &self.journal {
            None => Some("the journal has not been written to yet".into()),
            Some((_, waited)) if *waited > ANSWER => {
                Some(format!("the journal has not answered for {waited:.0?}; its disk hangs"))
            }
            Some((failed, _)) => failed.clone(),
        }
    }
}

/// Collects the facts. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    start: watch::Sender<Start>,
    probe: watch::Sender<Option<Probe>>,
    keeper: Arc<OnceLock<Keeper>>,
    board: Board,
}

impl Health {
    /// At the very beginning.
    #[must_use]
    pub fn new(board: Board) -> Self {
        let (start, _) = watch::channel(Start::Journal);
        let (probe, _) = watch::channel(None);
        Self { start, probe, keeper: Arc::default(), board }
    }

    /// The journal is open. It is asked from now on, on a thread of its own: it may hang.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn journal_opened(&self, journal: Journal) -> Result<()> {
        self.start.send_replace(Start::Adoption);
        let probe = self.probe.clone();
        thread::Builder::new()
            .name("journal-probe".into())
            .spawn(move || keep_asking(&journal, &probe))
            .map_err(Error::kernel("start", "the thread that probes the journal"))?;
        Ok(())
    }

    /// Sessions are taken over.
    pub fn adopted(&self, keeper: Keeper) {
        let _ = self.keeper.set(keeper);
        self.start.send_replace(Start::Done);
    }

    /// As it stands.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let now = Instant::now();
        let since = |at| now.saturating_duration_since(at);
        let look = self.keeper.get().and_then(Keeper::sweep).map(|sweep| since(sweep.taken_at));
        let journal = self.probe.borrow().as_ref().map(|probe| {
            let waited = if probe.answered { Duration::ZERO } else { since(probe.asked_at) };
            (probe.failed.clone(), waited)
        });
        Facts { start: *self.start.borrow(), look, journal, overdue: self.board.overdue(now) }
    }
}

fn keep_asking(journal: &Journal, show: &watch::Sender<Option<Probe>>) {
    loop {
        let asked_at = Instant::now();
        show.send_modify(|probe| {
            if let Some(probe) = probe {
                (probe.asked_at, probe.answered) = (asked_at, false);
            }
        });
        let failed = journal.probe().err().map(|error| error.to_string());
        let pause = if failed.is_some() { PROBE_AGAIN } else { PROBE_EVERY };
        let before =
            show.send_replace(Some(Probe { failed: failed.clone(), asked_at, answered: true }));
        if let Some(error) = failed.filter(|_| before.is_none_or(|p| p.failed.is_none())) {
            warn!(error, "nothing new can be begun");
        }
        thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn good() -> Facts {
        Facts {
            start: Start::Done,
            look: Some(Duration::from_secs(1)),
            journal: Some((None, Duration::ZERO)),
            overdue: Vec::new(),
        }
    }

    #[test]
    fn ready_needs_everything_and_says_what_is_missing() {
        assert_eq!(good().ready(), Ok(()));
        let reason = |facts: Facts| facts.ready().unwrap_err();
        assert!(reason(Facts { start: Start::Journal, ..good() }).contains("being opened"));
        assert!(reason(Facts { start: Start::Adoption, ..good() }).contains("taken over"));
        assert!(reason(Facts { look: None, ..good() }).contains("not been looked at"));
        let old = Some(Duration::from_secs(11));
        assert!(reason(Facts { look: old, ..good() }).contains("11s old"));
        assert!(reason(Facts { journal: None, ..good() }).contains("not been written"));
        let full = Some((Some("the disk is full".to_owned()), Duration::ZERO));
        assert_eq!(reason(Facts { journal: full, ..good() }), "the disk is full");
        let hangs = Some((None, Duration::from_secs(31)));
        assert!(reason(Facts { journal: hangs, ..good() }).contains("hangs"));
        let overdue = vec![Overdue { who: "pvc-1".into(), by: Duration::from_secs(9) }];
        let hung = Facts { overdue, look: None, ..good() };
        assert_eq!(hung.alive().unwrap_err(), "pvc-1 is overdue by 9s");
        assert_eq!(reason(hung).lines().count(), 2);
    }

    #[test]
    fn a_start_that_takes_long_is_alive() {
        let facts = Facts { start: Start::Adoption, look: None, journal: None, ..good() };
        assert_eq!(facts.alive(), Ok(()));
    }

    #[test]
    fn the_journal_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        let health = Health::new(Board::default());
        assert_eq!(health.facts().start, Start::Journal);
        health.journal_opened(journal).unwrap();
        let began = Instant::now();
        while health.facts().journal.is_none() {
            assert!(began.elapsed() < Duration::from_secs(20), "it has not answered");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(health.facts().journal, Some((None, Duration::ZERO)));
    }
}
