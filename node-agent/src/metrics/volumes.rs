//! What is read off the sessions, the newest look and the journal at a scrape. A volume is
//! in here for as long as it is attached, and no longer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use rds_csi_proto::agent::State;
use rds_csi_proto::ids::VolumeId;

use super::labels::STATES;
use super::reading::Reading;
use crate::error::Result;
use crate::journal::Journal;
use crate::session::SessionView;
use crate::session::beat::Board;
use crate::session::keeper::Keeper;
use crate::session::record::state_name;
use crate::session::stalls::Io;

/// A look that is older than this says nothing about now.
const STALE: Duration = Duration::from_secs(5);

const SESSIONS: Reading = Reading::gauge("rds_csi_agent_sessions", "Attached volumes by state");
const STATE: Reading = Reading::gauge(
    "rds_csi_agent_volume_state",
    "1 for the state that the volume's session is in, 0 for all others",
);
const SINCE: Reading = Reading::gauge(
    "rds_csi_agent_volume_state_since_timestamp_seconds",
    "When the session came into its present state, in seconds of Unix time",
);
const FAILING: Reading = Reading::gauge(
    "rds_csi_agent_volume_failing_io",
    "1 while I/O that finds no path fails instead of waiting; not shown without a shield",
);
const IN_FLIGHT: Reading = Reading::gauge(
    "rds_csi_agent_volume_io_in_flight",
    "Requests on the shield that wait for an answer; those that a suspended device holds back \
     are not among them",
);
const STALLED: Reading = Reading::gauge(
    "rds_csi_agent_volume_io_stalled_seconds",
    "For how long requests on the shield have been in flight without any of them completing; \
     0 while I/O flows or there is none",
);
const LAST_OUTAGE: Reading = Reading::gauge(
    "rds_csi_agent_volume_last_outage_seconds",
    "How long the last loss of the session took; not shown before there was one",
);
const ATTEMPTS: Reading = Reading::gauge(
    "rds_csi_agent_volume_connect_attempts",
    "Attempts to connect since the session was last live",
);
const SIZE: Reading =
    Reading::gauge("rds_csi_agent_volume_size_bytes", "Size of the device that users have");
const CONNECTS: Reading =
    Reading::gauge("rds_csi_agent_connects_under_way", "Volumes that are connecting at present");
const SWEEP_AGE: Reading =
    Reading::gauge("rds_csi_agent_sweep_age_seconds", "Age of the newest look at the kernel");
const OVERDUE: Reading = Reading::gauge(
    "rds_csi_agent_overdue_loops",
    "Loops (the sweeper, one for each volume) that are not back when they said they would be",
);
const JOURNAL_ERRORS: Reading =
    Reading::counter("rds_csi_agent_journal_errors_total", "Reads and writes that failed");

const ALL: [&Reading; 13] = [
    &SESSIONS,
    &STATE,
    &SINCE,
    &FAILING,
    &IN_FLIGHT,
    &STALLED,
    &LAST_OUTAGE,
    &ATTEMPTS,
    &SIZE,
    &CONNECTS,
    &SWEEP_AGE,
    &OVERDUE,
    &JOURNAL_ERRORS,
];

/// Everything that a scrape shows, at one moment.
pub(super) struct Moment {
    pub(super) views: Vec<SessionView>,
    /// How old the newest look is, and what it said of I/O.
    pub(super) look: Option<(Duration, HashMap<VolumeId, Io>)>,
    pub(super) now: Instant,
    pub(super) connects: usize,
    pub(super) overdue: usize,
    pub(super) journal_errors: u64,
}

/// Reads the moment at each scrape. All of it lies in memory, and none of it behind a lock
/// that is held across a call to the kernel.
pub struct Volumes {
    descs: Vec<Desc>,
    moment: Box<dyn Fn() -> Moment + Send + Sync>,
}

impl Volumes {
    /// Of these sessions.
    ///
    /// # Errors
    /// If a metric is declared wrongly.
    pub fn new(keeper: Keeper, journal: Journal, board: Board) -> Result<Self> {
        Self::reading(move || {
            let now = Instant::now();
            Moment {
                views: keeper.views(),
                look: keeper
                    .sweep()
                    .map(|s| (now.saturating_duration_since(s.taken_at), s.io.clone())),
                now,
                connects: keeper.connects_under_way(),
                overdue: board.overdue(now).len(),
                journal_errors: journal.health().errors,
            }
        })
    }

    pub(super) fn reading(moment: impl Fn() -> Moment + Send + Sync + 'static) -> Result<Self> {
        let descs = ALL.iter().map(|reading| reading.desc()).collect::<Result<_>>()?;
        Ok(Self { descs, moment: Box::new(moment) })
    }
}

impl Collector for Volumes {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let moment = (self.moment)();
        let mut families = agent(&moment).to_vec();
        families.extend(sessions(&moment.views));
        families.extend(io(&moment));
        families
    }
}

fn agent(moment: &Moment) -> [MetricFamily; 4] {
    [
        CONNECTS.one(Some(moment.connects as f64)),
        SWEEP_AGE.one(moment.look.as_ref().map(|(age, _)| age.as_secs_f64())),
        OVERDUE.one(Some(moment.overdue as f64)),
        JOURNAL_ERRORS.one(Some(moment.journal_errors as f64)),
    ]
}

fn sessions(views: &[SessionView]) -> [MetricFamily; 7] {
    let in_state = |state| views.iter().filter(|v| v.state == state).count() as f64;
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    let is_in = |view: &SessionView, state: State| flag(view.state == state);
    let each = |value: fn(&SessionView) -> Option<f64>| {
        views.iter().filter_map(move |v| Some((volume(&v.spec.volume), value(v)?)))
    };
    let states = views.iter().flat_map(|view| {
        STATES.into_iter().map(move |state| {
            let mut labels = volume(&view.spec.volume);
            labels.push(("state", state_name(state)));
            (labels, is_in(view, state))
        })
    });
    [
        SESSIONS.each(STATES.map(|s| (vec![("state", state_name(s))], in_state(s)))),
        STATE.each(states),
        SINCE.each(each(|v| Some(v.since_unix_ms as f64 / 1000.0))),
        FAILING.each(each(|v| v.spec.shield.then_some(f64::from(u8::from(v.failing_io))))),
        LAST_OUTAGE
            .each(each(|v| (v.last_outage_ms > 0).then_some(v.last_outage_ms as f64 / 1000.0))),
        ATTEMPTS.each(each(|v| Some(f64::from(v.attempts)))),
        SIZE.each(each(|v| v.device.as_ref().map(|d| d.size_bytes as f64))),
    ]
}

fn io(moment: &Moment) -> [MetricFamily; 2] {
    let fresh = moment.look.as_ref().filter(|(age, _)| *age < STALE).map(|(_, io)| io);
    let attached = |volume: &VolumeId| moment.views.iter().any(|v| v.spec.volume == *volume);
    let seen: Vec<_> = fresh.into_iter().flatten().filter(|(id, _)| attached(id)).collect();
    let stalled = |io: &Io| {
        io.stalled_since.map_or(0.0, |at| moment.now.saturating_duration_since(at).as_secs_f64())
    };
    [
        IN_FLIGHT.each(seen.iter().map(|(id, io)| (volume(id), io.in_flight as f64))),
        STALLED.each(seen.iter().map(|(id, io)| (volume(id), stalled(io)))),
    ]
}

fn volume(id: &VolumeId) -> Vec<(&'static str, &str)> {
    vec![("volume", id.as_str())]
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::kernel::DeviceNumber;
    use crate::metrics::Metrics;
    use crate::session::{Attached, SessionSpec};

    pub(in crate::metrics) fn view(id: &str, state: State) -> SessionView {
        SessionView {
            spec: SessionSpec {
                volume: id.parse().unwrap(),
                nqn: "nqn.2000-02.com.mikrotik:x".parse().unwrap(),
                host_nqn: rds_csi_proto::ids::HostNqn::random(),
                portal: rds_csi_proto::ids::Portal::parse("10.0.0.1", "4420").unwrap(),
                ctrl_loss_tmo: -1,
                reconnect_delay: 1,
                keep_alive_tmo: 5,
                nr_io_queues: 2,
                shield: true,
                io_timeout_secs: 0,
                reattach_check_secs: 60,
                arrival: None,
            },
            state,
            since_unix_ms: 1_700_000_000_500,
            reason: "free text".into(),
            device: Some(Attached {
                path: "/dev/dm-0".into(),
                number: DeviceNumber { major: 254, minor: 0 },
                size_bytes: 1 << 30,
            }),
            namespace: None,
            controller: None,
            failing_io: false,
            outages: 1,
            last_outage_ms: 1_500,
            attempts: 3,
        }
    }

    pub(in crate::metrics) const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    pub(in crate::metrics) fn moment() -> Moment {
        let now = Instant::now();
        let stalled_since = now.checked_sub(Duration::from_secs(7));
        let io = HashMap::from([(
            VOLUME.parse().unwrap(),
            Io { in_flight: 4, stalled_since, changes: 0 },
        )]);
        Moment {
            views: vec![view(VOLUME, State::Degraded)],
            look: Some((Duration::from_millis(300), io)),
            now,
            connects: 2,
            overdue: 0,
            journal_errors: 5,
        }
    }

    #[test]
    fn a_volume_is_shown_while_it_is_attached_and_only_then() {
        let shared = Arc::new(Mutex::new(Some(moment())));
        let metrics = Metrics::new().unwrap();
        let source = shared.clone();
        let volumes = Volumes::reading(move || source.lock().unwrap().take().unwrap()).unwrap();
        metrics.register(Box::new(volumes)).unwrap();
        let text = metrics.text().unwrap();
        for line in [
            r#"rds_csi_agent_sessions{state="Degraded"} 1"#,
            r#"rds_csi_agent_sessions{state="Live"} 0"#,
            r#"_volume_state{volume="pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11",state="Degraded"} 1"#,
            r#"_volume_state{volume="pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11",state="Live"} 0"#,
            r#"timestamp_seconds{volume="pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11"} 1700000000.5"#,
            r#"stalled_seconds{volume="pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11"} 7"#,
            r#"io_in_flight{volume="pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11"} 4"#,
            "rds_csi_agent_journal_errors_total 5",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("free text"));

        *shared.lock().unwrap() = Some(Moment { views: vec![], ..moment() });
        let text = metrics.text().unwrap();
        assert!(!text.contains("pvc-"), "a detached volume is still shown:\n{text}");
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let stale = |m: Moment| Moment { look: m.look.map(|(_, io)| (STALE, io)), ..m };
        for (moment, age) in [(Moment { look: None, ..moment() }, false), (stale(moment()), true)] {
            let metrics = Metrics::new().unwrap();
            let once = Mutex::new(Some(moment));
            let volumes = Volumes::reading(move || once.lock().unwrap().take().unwrap()).unwrap();
            metrics.register(Box::new(volumes)).unwrap();
            let text = metrics.text().unwrap();
            assert!(!text.contains("volume_io_in_flight"), "{text}");
            assert!(!text.contains("volume_io_stalled_seconds"), "{text}");
            assert_eq!(text.contains("sweep_age_seconds"), age, "{text}");
        }
    }
}
