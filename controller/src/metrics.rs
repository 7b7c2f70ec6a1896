//! Numbers for Prometheus, on `/metrics`; `/healthz` says that the process runs,
//! `/readyz` whether it leads or stands by.
//!
//! A scrape never touches the appliance: it shows what the last requests found.

mod readings;
mod role;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::readings::Readings;
pub(crate) use self::role::Role;
use crate::volumes::Attachments;

/// From a quick read to the longest request, in seconds.
const BUCKETS: &[f64] =
    &[0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// All metrics of the controller. Labels take few, fixed values.
pub struct Metrics {
    registry: Registry,
    rpc: HistogramVec,
    appliance: HistogramVec,
    errors: IntCounterVec,
    up: IntGaugeVec,
    leader: IntGauge,
    reconciles: IntCounterVec,
    role: watch::Sender<Role>,
    readings: Readings,
    attachments: Arc<Attachments>,
}

impl Metrics {
    /// # Errors
    /// If a metric is declared wrongly.
    pub fn new() -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)
        };
        let registry = Registry::new();
        let metrics = Self {
            attachments: Arc::new(Attachments::new(&registry)?),
            registry,
            rpc: histogram(
                "rds_csi_controller_rpc_seconds",
                "CSI calls by name and gRPC code",
                &["rpc", "code"],
            )?,
            appliance: histogram(
                "rds_csi_controller_appliance_request_seconds",
                "Requests to the RDS by kind, answered or not",
                &["request"],
            )?,
            errors: IntCounterVec::new(
                Opts::new(
                    "rds_csi_controller_appliance_errors_total",
                    "Failed requests to the RDS by kind of error",
                ),
                &["kind"],
            )?,
            up: IntGaugeVec::new(
                Opts::new(
                    "rds_csi_controller_appliance_up",
                    "1 if the last request to the RDS was answered, 0 if not; absent before the first",
                ),
                &["rds"],
            )?,
            leader: IntGauge::new(
                "rds_csi_leader",
                "1 if this replica leads, or is alone; 0 while another one does",
            )?,
            reconciles: IntCounterVec::new(
                Opts::new(
                    "rds_csi_reconciles_total",
                    "Comparisons of what is attached with what Kubernetes asks for: ok, failed; and \
                     attachments found that nothing asked for: detached, or kept for a reason that \
                     is logged",
                ),
                &["result"],
            )?,
            role: watch::Sender::new(Role::Unknown),
            readings: Readings::default(),
        };
        metrics.registry.register(Box::new(metrics.rpc.clone()))?;
        metrics.registry.register(Box::new(metrics.appliance.clone()))?;
        metrics.registry.register(Box::new(metrics.errors.clone()))?;
        metrics.registry.register(Box::new(metrics.up.clone()))?;
        metrics.registry.register(Box::new(metrics.leader.clone()))?;
        metrics.registry.register(Box::new(metrics.readings.clone()))?;
        for result in ["ok", "failed", "detached", "kept"] {
            metrics.reconciles.with_label_values(&[result]);
        }
        metrics.registry.register(Box::new(metrics.reconciles.clone()))?;
        Ok(metrics)
    }

    /// What is counted of attachments.
    pub(crate) fn attachments(&self) -> Arc<Attachments> {
        Arc::clone(&self.attachments)
    }

    pub(crate) fn rpc_done(&self, rpc: &str, code: tonic::Code, taken: Duration) {
        let code = format!("{code:?}");
        self.rpc.with_label_values(&[rpc, code.as_str()]).observe(taken.as_secs_f64());
    }

    pub(crate) fn appliance_request(&self, request: &str, taken: Duration) {
        self.appliance.with_label_values(&[request]).observe(taken.as_secs_f64());
    }

    pub(crate) fn appliance_failed(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    pub(crate) fn appliance_up(&self, rds: &str, up: bool) {
        self.up.with_label_values(&[rds]).set(i64::from(up));
    }

    pub(crate) fn reconciles(&self) -> IntCounterVec {
        self.reconciles.clone()
    }

    /// What this replica is, among several.
    pub(crate) fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    pub(crate) fn set_role(&self, role: Role) {
        self.leader.set(i64::from(matches!(role, Role::Alone | Role::Leading)));
        self.role.send_if_modified(|now| {
            let differs = *now != role;
            *now = role;
            differs
        });
    }

    pub(crate) fn readings(&self) -> &Readings {
        &self.readings
    }

    fn text(&self) -> Result<String, prometheus::Error> {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }
}

/// Serves until told to stop.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let scrape = |State(metrics): State<Arc<Metrics>>| async move {
        metrics.text().map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
    };
    let ready =
        |State(metrics): State<Arc<Metrics>>| async move { metrics.role().borrow().ready() };
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(metrics);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(e) = served {
        tracing::error!("metrics server ended: {e}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_happened_is_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.rpc_done("CreateVolume", tonic::Code::InvalidArgument, Duration::from_millis(3));
        metrics.appliance_failed("unreachable");
        let text = metrics.text().unwrap();
        assert!(text.contains(r#"rds_csi_controller_rpc_seconds_count{code="InvalidArgument",rpc="CreateVolume"} 1"#), "{text}");
        assert!(text.contains(r#"appliance_errors_total{kind="unreachable"} 1"#), "{text}");
    }
}
