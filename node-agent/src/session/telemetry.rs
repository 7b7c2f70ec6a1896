//! What metrics and people learn of one session, from what goes into its machine and what comes
//! out.

use std::sync::Arc;
use std::time::Duration;

use rds_csi_proto::agent::{NoticeKind, State};
use rds_csi_proto::ids::VolumeId;

use crate::metrics::Metrics;
use crate::metrics::labels::Cause;
use crate::notices::Notices;

use super::SessionSpec;
use super::cause;
use super::machine::{Change, Event, Machine};

/// One session's.
pub(super) struct Telemetry {
    metrics: Arc<Metrics>,
    notices: Notices,
    volume: VolumeId,
    portal: String,
    shield: bool,
    host_nqn: String,
    /// What the newest look said.
    seen: Cause,
    operator: bool,
    outages: u32,
    /// An outage has begun and not ended.
    lost: bool,
}

impl Telemetry {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        notices: Notices,
        spec: &SessionSpec,
        machine: &Machine,
    ) -> Self {
        Self {
            metrics,
            notices,
            volume: spec.volume.clone(),
            portal: spec.portal.to_string(),
            shield: spec.shield,
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
            let kind = match change.to {
                State::Blocked => NoticeKind::VolumeBlocked,
                State::Fenced => NoticeKind::VolumeFenced,
                _ => continue,
            };
            self.notices.happened(&self.volume, kind, change.cause.clone());
        }
        if machine.outages() != self.outages {
            self.outages = machine.outages();
            self.lost = true;
            self.metrics.outage_began();
            self.notices.happened(&self.volume, NoticeKind::SessionLost, self.lost_text(changes));
        }
        if self.lost && machine.state() == State::Live {
            self.lost = false;
            let lasted = Duration::from_millis(machine.last_outage());
            self.metrics.outage_ended(lasted);
            self.notices.happened(
                &self.volume,
                NoticeKind::SessionRestored,
                format!(
                    "the session to {} is back after {:.1} s",
                    self.portal,
                    lasted.as_secs_f64()
                ),
            );
        }
    }

    fn lost_text(&self, changes: &[Change]) -> String {
        let cause = changes.last().map_or("no cause is known", |c| c.cause.as_str());
        let meanwhile = match self.shield {
            true => "reads and writes wait until it is back",
            false => "without a shield, reads and writes may fail",
        };
        format!("the session to {} is lost: {cause}; {meanwhile}", self.portal)
    }
}
