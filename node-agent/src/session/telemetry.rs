//! What metrics learn of one session, from what goes into its machine and what comes out.

use std::sync::Arc;
use std::time::Duration;

use rds_csi_proto::agent::State;

use crate::metrics::Metrics;
use crate::metrics::labels::Cause;

use super::SessionSpec;
use super::cause;
use super::machine::{Change, Event, Machine};

/// One session's.
pub(super) struct Telemetry {
    metrics: Arc<Metrics>,
    host_nqn: String,
    /// What the newest look said.
    seen: Cause,
    operator: bool,
    outages: u32,
    /// An outage has begun and not ended.
    lost: bool,
}

impl Telemetry {
    pub(super) fn new(metrics: Arc<Metrics>, spec: &SessionSpec, machine: &Machine) -> Self {
        Self {
            metrics,
            host_nqn: spec.host_nqn.to_string(),
            seen: Cause::Other,
            operator: false,
            outages: machine.outages(),
            lost: false,
        }
    }

    /// Before the machine gets an event.
    pub(super) fn before(&mut self, event: &Event) {
        self.operator = cause::is_operator(event);
        if let Event::Observed(look) = event {
            self.seen = cause::of_look(look, &self.host_nqn);
        }
    }

    /// After it.
    pub(super) fn after(&mut self, changes: &[Change], machine: &Machine) {
        for change in changes {
            let cause = cause::of_change(change, self.operator, self.seen);
            self.metrics.transition(change.from, change.to, cause);
        }
        if machine.outages() != self.outages {
            self.outages = machine.outages();
            self.lost = true;
            self.metrics.outage_began();
        }
        if self.lost && machine.state() == State::Live {
            self.lost = false;
            self.metrics.outage_ended(Duration::from_millis(machine.last_outage()));
        }
    }
}
