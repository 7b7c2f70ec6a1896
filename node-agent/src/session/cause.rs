//! Which kind of cause a change of state had, and which kind of end an attempt to connect,
//! for metrics. The text that people read comes from the machine; kinds are few, and follow
//! from what went into it.

use std::io::ErrorKind;

use rds_csi_proto::agent::State;

use crate::error::Error;
use crate::kernel::refusal::Answer;
use crate::kernel::sysfs::ControllerState;
use crate::metrics::labels::{Attempt, Cause};

use super::machine::{Change, Event, Observation};

/// What a look says about where a session is broken, if it is.
#[must_use]
pub(super) fn of_look(look: &Observation, host_nqn: &str) -> Cause {
    let ours = look.controllers.iter().filter(|c| c.host_nqn == host_nqn && !c.state.is_going());
    let (live, other): (Vec<_>, Vec<_>) = ours.partition(|c| c.state == ControllerState::Live);
    match live.first() {
        Some(controller) if controller.namespace.is_some() => Cause::PathFailed,
        Some(_) => Cause::NamespaceGone,
        None if other.is_empty() => Cause::ControllerGone,
        None => Cause::LinkLost,
    }
}

/// The kind of a change. `seen` is what the newest look said.
#[must_use]
pub(super) fn of_change(change: &Change, operator: bool, seen: Cause) -> Cause {
    match (change.from, change.to) {
        (State::Draining, _) => Cause::UnstageRefused,
        (_, State::Draining) => Cause::Unstage,
        (_, State::Live) => Cause::IoFlows,
        (_, State::Connecting) => Cause::Attempt,
        (_, State::Backoff) => Cause::ConnectFailed,
        (_, State::Fenced) => Cause::ClaimLost,
        (_, State::Blocked) => Cause::OtherContent,
        (_, State::Degraded | State::Lost) if operator => Cause::Operator,
        (_, State::Degraded | State::Lost) => seen,
        (_, State::Absent | State::Unspecified) => Cause::Other,
    }
}

/// Whether a person asked for what follows.
#[must_use]
pub(super) fn is_operator(event: &Event) -> bool {
    matches!(event, Event::Reconnect)
}

/// An attempt of which the target said why it refuses, if it did.
#[must_use]
pub(super) fn of_answer(answer: Option<Answer>) -> Attempt {
    match answer {
        Some(Answer::HostRefused) => Attempt::HostRefused,
        Some(Answer::NoSuchSubsystem) => Attempt::NoSuchSubsystem,
        // Admitted by now: what it had been is not known any more.
        Some(Answer::Other(_) | Answer::Admitted) | None => Attempt::OtherStatus,
    }
}

/// An attempt that did not get as far as the target's answer.
#[must_use]
pub(super) fn of_error(error: &Error) -> Attempt {
    match error {
        Error::Timeout { .. } => Attempt::Timeout,
        Error::Kernel { source, .. } => match source.kind() {
            ErrorKind::ConnectionRefused => Attempt::PortClosed,
            ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::ConnectionReset => Attempt::Unreachable,
            _ => Attempt::Error,
        },
        _ => Attempt::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::DeviceNumber;
    use crate::kernel::sysfs::{Controller, Namespace};

    fn controller(host_nqn: &str, state: ControllerState, namespace: bool) -> Controller {
        let namespace = namespace.then(|| Namespace {
            name: "nvme0n1".into(),
            number: DeviceNumber { major: 259, minor: 0 },
            size_bytes: 1 << 20,
            wwid: "uuid.1".into(),
        });
        Controller {
            name: "nvme0".into(),
            nqn: "nqn.a".into(),
            host_nqn: host_nqn.into(),
            address: String::new(),
            cntlid: "1".into(),
            state,
            namespace,
        }
    }

    #[test]
    fn a_loss_is_told_by_what_is_left() {
        let kind =
            |controllers| of_look(&Observation { taken_at: 1, controllers, shield: None }, "ours");
        assert_eq!(kind(vec![]), Cause::ControllerGone);
        assert_eq!(
            kind(vec![controller("other", ControllerState::Live, true)]),
            Cause::ControllerGone
        );
        assert_eq!(
            kind(vec![controller("ours", ControllerState::Deleting, false)]),
            Cause::ControllerGone
        );
        assert_eq!(
            kind(vec![controller("ours", ControllerState::Connecting, true)]),
            Cause::LinkLost
        );
        assert_eq!(
            kind(vec![controller("ours", ControllerState::Live, false)]),
            Cause::NamespaceGone
        );
        assert_eq!(kind(vec![controller("ours", ControllerState::Live, true)]), Cause::PathFailed);
    }

    #[test]
    fn errors_of_the_kernel_are_told_apart() {
        let kernel =
            |errno| Error::kernel("connect to", "x")(std::io::Error::from_raw_os_error(errno));
        assert_eq!(of_error(&kernel(libc::ECONNREFUSED)), Attempt::PortClosed);
        assert_eq!(of_error(&kernel(libc::ETIMEDOUT)), Attempt::Unreachable);
        assert_eq!(of_error(&kernel(libc::EINVAL)), Attempt::Error);
        let late = Error::Timeout { what: "x".into(), after: std::time::Duration::ZERO };
        assert_eq!(of_error(&late), Attempt::Timeout);
    }

    #[test]
    fn a_change_by_hand_is_not_taken_for_a_loss() {
        let change =
            Change { from: State::Blocked, to: State::Lost, cause: "an operator asked".into() };
        assert_eq!(of_change(&change, true, Cause::ControllerGone), Cause::Operator);
        assert_eq!(of_change(&change, false, Cause::ControllerGone), Cause::ControllerGone);
    }
}
