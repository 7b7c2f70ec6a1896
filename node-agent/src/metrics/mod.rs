//! Numbers for Prometheus, and whether the agent is alive and ready.
//!
//! A scrape reads counters and the newest look at the kernel; it asks no device and waits
//! for no lock that a stuck call could hold. What is not known is not shown, since 0 would
//! be a statement. `docs/metrics.md` explains each metric, and a test holds it to this code.
//!
//! - [`labels`]: the few values that labels take;
//! - [`Metrics`]: what is counted when it happens;
//! - [`volumes`]: what is read off at a scrape: volumes, loops, the journal;
//! - [`process`]: the process itself;
//! - [`rpc`]: counts the calls on the socket;
//! - [`health`]: alive and ready, as a function of facts;
//! - [`server`]: `/metrics`, `/healthz`, `/readyz`.

pub mod health;
pub mod labels;
pub mod process;
mod reading;
pub mod rpc;
pub mod server;
pub mod volumes;

#[cfg(test)]
mod doc_test;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use rds_csi_proto::agent::State;

use crate::error::{Error, Result};
use crate::session::machine::Attachment;
use crate::session::record::state_name;

use labels::{Adopted, Attempt, Cause};

/// From a blip to a lost weekend, in seconds.
const OUTAGE_BUCKETS: &[f64] =
    &[0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];
/// From a read of some attributes to kubelet's patience, in seconds.
const RPC_BUCKETS: &[f64] =
    &[0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// A look at the kernel: a millisecond for a few volumes, in seconds.
const SWEEP_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// All that is counted when it happens.
pub struct Metrics {
    registry: Registry,
    transitions: IntCounterVec,
    outages: IntCounter,
    outage: Histogram,
    stall: Histogram,
    attempts: IntCounterVec,
    attachment_answers: IntCounterVec,
    adopted: IntGaugeVec,
    sweep: Histogram,
    sweeps_failed: IntCounter,
    udev_events: IntCounter,
    udev_restarts: IntCounter,
    rpc: HistogramVec,
}

/// A declaration that Prometheus does not accept; a mistake in this folder.
pub(crate) fn fault(error: prometheus::Error) -> Error {
    Error::Precondition(format!("a metric is declared wrongly: {error}"))
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    Histogram::with_opts(options).map_err(fault)
}

fn counter(name: &str, help: &str) -> Result<IntCounter> {
    IntCounter::new(name, help).map_err(fault)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels).map_err(fault)
}

impl Metrics {
    /// Everything at zero.
    ///
    /// # Errors
    /// If a metric is declared wrongly.
    pub fn new() -> Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            transitions: counters(
                "rds_csi_agent_transitions_total",
                "Changes of sessions' states, by the kind of cause",
                &["from", "to", "cause"],
            )?,
            outages: counter(
                "rds_csi_agent_outages_total",
                "Losses of sessions that had been live, counted when they begin",
            )?,
            outage: histogram(
                "rds_csi_agent_outage_seconds",
                "From the loss of a session until I/O could flow again, counted when it ends",
                OUTAGE_BUCKETS,
            )?,
            stall: histogram(
                "rds_csi_agent_io_stall_seconds",
                "How long a shield had requests in flight of which none completed, counted when \
                 one does. Measured by looks each second and at events: exact to a second, and \
                 stalls below two seconds may be missed",
                OUTAGE_BUCKETS,
            )?,
            attempts: counters(
                "rds_csi_agent_connect_attempts_total",
                "Attempts to make a controller, by how they ended; host_refused is NVMe status \
                 0x184, no_such_subsystem 0x182",
                &["outcome"],
            )?,
            attachment_answers: counters(
                "rds_csi_agent_attachment_answers_total",
                "Answers to whether a volume's attachment still exists",
                &["answer"],
            )?,
            adopted: IntGaugeVec::new(
                Opts::new(
                    "rds_csi_agent_adopted_sessions",
                    "What this start of the agent found, by where it knew it from",
                ),
                &["source"],
            )
            .map_err(fault)?,
            sweep: histogram(
                "rds_csi_agent_sweep_seconds",
                "How long one look at all controllers and shields took",
                SWEEP_BUCKETS,
            )?,
            sweeps_failed: counter(
                "rds_csi_agent_sweeps_failed_total",
                "Looks at the kernel that failed; nothing is decided on those",
            )?,
            udev_events: counter("rds_csi_agent_udev_events_total", "Events on devices received")?,
            udev_restarts: counter(
                "rds_csi_agent_udev_restarts_total",
                "Times that listening to device events failed and began anew",
            )?,
            rpc: HistogramVec::new(
                HistogramOpts::new(
                    "rds_csi_agent_rpc_seconds",
                    "Calls on the socket by name and gRPC code",
                )
                .buckets(RPC_BUCKETS.to_vec()),
                &["rpc", "code"],
            )
            .map_err(fault)?,
        };
        metrics.register_own()?;
        // A counter that has not counted yet is 0, not unknown: rates need the 0.
        for outcome in Attempt::ALL {
            metrics.attempts.with_label_values(&[outcome.label()]);
        }
        for answer in labels::ANSWERS {
            metrics.attachment_answers.with_label_values(&[answer]);
        }
        Ok(metrics)
    }

    fn register_own(&self) -> Result<()> {
        let build = IntGaugeVec::new(
            Opts::new("rds_csi_agent_build_info", "Always 1; the label tells the version"),
            &["version"],
        )
        .map_err(fault)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let own: [Box<dyn Collector>; 13] = [
            Box::new(build),
            Box::new(self.transitions.clone()),
            Box::new(self.outages.clone()),
            Box::new(self.outage.clone()),
            Box::new(self.stall.clone()),
            Box::new(self.attempts.clone()),
            Box::new(self.attachment_answers.clone()),
            Box::new(self.adopted.clone()),
            Box::new(self.sweep.clone()),
            Box::new(self.sweeps_failed.clone()),
            Box::new(self.udev_events.clone()),
            Box::new(self.udev_restarts.clone()),
            Box::new(self.rpc.clone()),
        ];
        own.into_iter().try_for_each(|collector| self.register(collector))
    }

    /// Adds what is read off at a scrape.
    ///
    /// # Errors
    /// If its names are taken.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<()> {
        self.registry.register(collector).map_err(fault)
    }

    /// A session changed its state.
    pub fn transition(&self, from: State, to: State, cause: Cause) {
        let labels = [state_name(from), state_name(to), cause.label()];
        self.transitions.with_label_values(&labels).inc();
    }

    /// A session that had been live is lost.
    pub fn outage_began(&self) {
        self.outages.inc();
    }

    /// I/O can flow again.
    pub fn outage_ended(&self, lasted: Duration) {
        self.outage.observe(lasted.as_secs_f64());
    }

    /// Requests complete again after none did.
    pub fn stall_ended(&self, lasted: Duration) {
        self.stall.observe(lasted.as_secs_f64());
    }

    /// An attempt to connect ended.
    pub fn attempted(&self, outcome: Attempt) {
        self.attempts.with_label_values(&[outcome.label()]).inc();
    }

    /// Somebody said, or nobody could, what became of an attachment.
    pub fn attachment_answered(&self, answer: &Attachment) {
        self.attachment_answers.with_label_values(&[labels::answer(answer)]).inc();
    }

    /// The start of the agent looks for what is there: from now on 0 means none.
    pub fn adoption_begins(&self) {
        for source in Adopted::ALL {
            self.adopted.with_label_values(&[source.label()]).set(0);
        }
    }

    /// The start of the agent found something.
    pub fn adopted(&self, source: Adopted) {
        self.adopted.with_label_values(&[source.label()]).inc();
    }

    /// A look at the kernel ended.
    pub fn swept(&self, took: Duration, succeeded: bool) {
        self.sweep.observe(took.as_secs_f64());
        if !succeeded {
            self.sweeps_failed.inc();
        }
    }

    /// An event on a device came in.
    pub fn udev_event(&self) {
        self.udev_events.inc();
    }

    /// Listening to events failed.
    pub fn udev_restart(&self) {
        self.udev_restarts.inc();
    }

    /// A call was answered, or given up by its caller.
    pub fn answered(&self, rpc: &'static str, code: tonic::Code, took: Duration) {
        let code = format!("{code:?}");
        self.rpc.with_label_values(&[rpc, code.as_str()]).observe(took.as_secs_f64());
    }

    /// What a scrape gets.
    ///
    /// # Errors
    /// If the numbers do not fit the format; a mistake in this folder.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(fault)
    }
}
