//! Each volume that is not live: why, and what to do.

use rds_csi_proto::agent::{State, Volume};

use crate::error::Result;
use crate::journal::now_unix_ms;
use crate::session::record::state_name;

use super::Finding;
use super::context::Context;

/// A session that is being brought back has this long before it is more than an outage.
const PATIENCE_MS: i64 = 60_000;

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let Some(volumes) = context.volumes() else {
        return Ok(vec![Finding::unknown("volumes", "without an agent there is nobody to ask")]);
    };
    let now = now_unix_ms();
    let mut findings: Vec<_> = volumes.iter().filter_map(|v| judge(v, now)).collect();
    if findings.is_empty() {
        findings.push(Finding::ok("volumes", format!("all {} are live", volumes.len())));
    }
    Ok(findings)
}

fn judge(v: &Volume, now_unix_ms: i64) -> Option<Finding> {
    let check = format!("volume.{}", v.volume_id);
    let id = &v.volume_id;
    let state = v.state();
    let waiting = match v.io_in_flight {
        0 => String::new(),
        n => format!("; {n} requests wait"),
    };
    let seen = format!("{}: {}{waiting}", state_name(state), v.reason);
    if v.failing_io && state != State::Fenced {
        let seen = format!("{seen}; its I/O fails until the session is back");
        let mend = format!(
            "rds-node-agent reconnect {id}; then delete its pod, whose file system has seen errors"
        );
        return Some(Finding::problem(check, seen, mend));
    }
    match state {
        State::Live => None,
        State::Blocked => Some(Finding::problem(
            check,
            format!("{seen}. I/O waits rather than go to what may be another volume"),
            format!(
                "see on the appliance what is exported as {}; once it is right: rds-node-agent \
                 reconnect {id}; to give up: rds-node-agent fail {id}, and delete the pod",
                v.nqn
            ),
        )),
        State::Fenced => Some(Finding::problem(
            check,
            format!("{seen}. The volume belongs to another attachment now"),
            format!(
                "rds-node-agent fail {id}, and delete the pod; it is attached anew where it is started"
            ),
        )),
        State::Degraded | State::Lost | State::Connecting | State::Backoff => {
            let mend = format!(
                "see the portal's check; rds-node-agent reconnect {id} tries at once, \
                 rds-node-agent fail {id} lets waiting I/O fail"
            );
            let late = now_unix_ms.saturating_sub(v.since_unix_ms) > PATIENCE_MS;
            Some(if late {
                Finding::problem(check, seen, mend)
            } else {
                Finding::warning(check, format!("{seen}. The agent is bringing it back"), mend)
            })
        }
        State::Draining => Some(Finding::warning(
            check,
            format!("{seen}. It is being taken down"),
            format!("if it stays so: fuser -vm {}, and end what holds it", v.device),
        )),
        State::Absent => Some(Finding::warning(
            check,
            seen,
            format!("rds-node-agent history {id} tells what happened"),
        )),
        State::Unspecified => {
            Some(Finding::unknown(check, "the agent named a state that this version does not know"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    fn volume(state: State) -> Volume {
        Volume {
            volume_id: "pvc-1".into(),
            state: state.into(),
            reason: "why".into(),
            ..Volume::default()
        }
    }

    #[test]
    fn each_state_has_its_advice() {
        assert_eq!(judge(&volume(State::Live), 0), None);
        for (state, says) in [
            (State::Blocked, "reconnect pvc-1"),
            (State::Fenced, "fail pvc-1"),
            (State::Backoff, "reconnect pvc-1"),
            (State::Degraded, "reconnect pvc-1"),
            (State::Draining, "fuser"),
        ] {
            let finding = judge(&volume(state), 0).unwrap();
            assert!(finding.seen.contains("why"), "{state:?}");
            assert!(finding.mend.unwrap().contains(says), "{state:?}");
        }
    }

    #[test]
    fn an_outage_becomes_a_problem_when_it_lasts() {
        let lost = volume(State::Lost);
        assert_eq!(judge(&lost, PATIENCE_MS).unwrap().verdict, Verdict::Warning);
        assert_eq!(judge(&lost, PATIENCE_MS + 1).unwrap().verdict, Verdict::Problem);
        let failing = Volume { failing_io: true, ..lost };
        assert_eq!(judge(&failing, 0).unwrap().verdict, Verdict::Problem);
        let strange = Volume { state: 99, ..volume(State::Live) };
        assert_eq!(judge(&strange, 0).unwrap().verdict, Verdict::Unknown);
    }
}
