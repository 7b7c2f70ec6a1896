//! What to do next, by what was seen last.

use rds_csi_proto::agent::State;

use crate::kernel::sysfs::{Controller, ControllerState, Namespace};

use super::gate::Pass;
use super::{Action, Machine, Millis, Observation, PortalSeen};

/// Pause between two rescans of a live controller without its namespace.
pub(super) const RESCAN_EVERY: Millis = 1_000;
/// Rescans without a result after which the controller is replaced.
pub(super) const RESCANS: u32 = 5;
/// How long the kernel may be reconnecting before the session is taken out of its hands.
/// Older kernels (6.1) retry a refused connection for ever and tell nobody of the refusal;
/// and its pause between attempts is whatever the volume's parameters say.
pub(super) const TAKE_OVER: Millis = 5_000;
/// Without a shield the kernel's controller is all that users have: then it is left, and
/// the target only asked why, so often.
pub(super) const ASK_EVERY: Millis = 5_000;
/// A path that has not failed is mapped without a wait only on a look this fresh: the
/// kernel needs at least a second to lose a connection and make another.
const FRESH: Millis = 500;
/// How long a controller may be on its way out before people should hear of it.
const DELETE_PATIENCE: Millis = 30_000;

impl Machine {
    pub(super) fn decide(&mut self, now: Millis) -> Option<Action> {
        if matches!(self.state, State::Draining | State::Fenced | State::Blocked) {
            return self.give_up(now).or_else(|| self.fail_overdue_io(now));
        }
        let seen = self.seen.take()?;
        let action = self.decide_on(&seen, now);
        // I/O whose time is over waits for nothing but the path that is about to be given back.
        let overdue = match action {
            Some(Action::Map(_)) => None,
            _ => self.fail_overdue_io(now),
        };
        self.seen = Some(seen);
        overdue.or(action)
    }

    fn decide_on(&mut self, seen: &Observation, now: Millis) -> Option<Action> {
        let (going, standing): (Vec<_>, Vec<_>) =
            seen.controllers.iter().partition(|c| c.state.is_going());
        // An earlier attachment's controller has no right to the volume any more.
        let foreign = |c: &&&Controller| !self.is_ours(c) && !c.host_nqn.is_empty();
        if let Some(old) = standing.iter().find(foreign) {
            return self.delete(&old.name, now);
        }
        let mut ours: Vec<_> = standing.into_iter().filter(|c| self.is_ours(c)).collect();
        // Two controllers for one volume are never wanted; keep the one that is live, and of
        // two such the one that carries the I/O: another was made by hand, with other
        // timeouts, and to take the path away is an outage.
        let path = seen.shield.as_ref().and_then(|s| s.path);
        let carries =
            |c: &Controller| path.is_some() && path == c.namespace.as_ref().map(|n| n.number);
        // With native multipath both have the same path; then it is the one that was here first.
        let first =
            |c: &Controller| self.live_on.as_ref() == Some(&(c.name.clone(), c.cntlid.clone()));
        ours.sort_by_key(|c| {
            (c.state != ControllerState::Live, !carries(c), !first(c), c.name.as_str())
        });
        if let Some(extra) = ours.get(1) {
            return self.delete(&extra.name, now);
        }
        if ours.first().is_none_or(|c| c.state == ControllerState::Live) {
            (self.reconnecting_since, self.told) = (None, None);
        }
        match ours.first() {
            Some(c) if c.state == ControllerState::Live => match &c.namespace {
                Some(namespace) => {
                    let action = self.with_namespace(c, namespace, seen, now);
                    if self.state == State::Live {
                        self.live_on = Some((c.name.clone(), c.cntlid.clone()));
                    }
                    action
                }
                None => self.without_namespace(&c.name, now),
            },
            Some(c) => self.reconnecting(c, now),
            None => self.without_controller(&going, now),
        }
    }

    fn delete(&self, controller: &str, now: Millis) -> Option<Action> {
        (!self.deleted_just_now(controller, now)).then(|| Action::Delete(controller.to_owned()))
    }

    fn deleted_just_now(&self, controller: &str, now: Millis) -> bool {
        self.deleted.as_ref().is_some_and(|(name, until)| name == controller && now < *until)
    }

    fn with_namespace(
        &mut self,
        controller: &Controller,
        namespace: &Namespace,
        seen: &Observation,
        now: Millis,
    ) -> Option<Action> {
        self.rescans = 0;
        if !self.config.shield {
            return if self.mapped_wwid.is_none() {
                (now >= self.map_at).then(|| Action::Map(namespace.clone()))
            } else {
                self.live(now);
                None
            };
        }
        let shield = seen.shield.as_ref();
        // A write that is lost fails its path: none was lost while the path is active.
        let held = shield.filter(|s| s.path == Some(namespace.number) && s.path_active);
        let flows = held.is_some_and(|s| !s.suspended);
        let whole = flows && held.is_some_and(|s| s.size_bytes >= namespace.size_bytes);
        // A shield that fails I/O does so at the next loss too: it has to queue again.
        if whole && held.is_some_and(|s| s.queueing) {
            self.mapped_wwid = Some(namespace.wwid.clone());
            self.live(now);
            return None;
        }
        if !flows {
            let cause = format!("{} is there, I/O does not go to it yet", namespace.name);
            self.lose(self.waiting(), &cause, now);
        }
        // A new export means that the target let go of the old one and all its I/O.
        let new_export = self.mapped_wwid.as_ref().is_some_and(|w| *w != namespace.wwid);
        // Nothing was ever written by this session; perhaps by the one before it.
        let first = shield.is_none() && !self.inherits_writes;
        let fresh = now.saturating_sub(seen.taken_at) <= FRESH;
        let old_writes_gone =
            first || (held.is_some() && fresh) || new_export || now >= self.old_writes_until;
        if !old_writes_gone || now < self.map_at {
            return None;
        }
        match self.gate(controller, first, now) {
            Pass::Open => Some(Action::Map(namespace.clone())),
            Pass::Ask => Some(Action::AskAttachment),
            Pass::Closed => None,
        }
    }

    /// The kernel is at it. Whether it can succeed only the target knows.
    fn reconnecting(&mut self, controller: &Controller, now: Millis) -> Option<Action> {
        let mut cause = format!("{} is {:?}", controller.name, controller.state).to_lowercase();
        if let Some(told) = &self.told {
            cause = format!("{cause}: {told}");
        }
        self.lose(self.waiting(), &cause, now);
        let lasts = now.saturating_sub(*self.reconnecting_since.get_or_insert(now));
        self.take_over(&controller.name, lasts, now)
    }

    /// While the portal does not answer, the kernel's attempts are in vain, and the one
    /// under way when it answers again is stuck in its handshake for seconds. Without a
    /// controller this session connects at once: the shield holds what its users wait for.
    fn take_over(&mut self, controller: &str, lasts: Millis, now: Millis) -> Option<Action> {
        if self.config.shield {
            let in_vain = self.portal.is_some_and(|(seen, _)| seen != PortalSeen::Answers);
            // A shared one may come back only by our hand, and after a question.
            let over = in_vain || self.config.shared || lasts >= TAKE_OVER;
            return (over && !self.deleted_just_now(controller, now))
                .then(|| Action::GiveUp(controller.to_owned()));
        }
        let pause = now.saturating_sub(self.asked_at);
        (lasts >= ASK_EVERY && pause >= ASK_EVERY).then(|| {
            self.asked_at = now;
            Action::AskTarget
        })
    }

    /// Nothing of a fenced session may ever reach the volume: its queue fails first, since
    /// its users must hear of it and deleting can take long. Its controller would be
    /// retried by the kernel for ever, and the I/O inside it could not be failed.
    fn give_up(&self, now: Millis) -> Option<Action> {
        let seen = self.seen.as_ref().filter(|_| self.state == State::Fenced)?;
        if seen.shield.as_ref().is_some_and(|s| s.queueing) && now >= self.fail_at {
            return Some(Action::FailIo);
        }
        let ours = seen.controllers.iter().find(|c| self.is_ours(c) && !c.state.is_going())?;
        self.delete(&ours.name, now)
    }

    /// Not there yet, or not there any more.
    fn waiting(&self) -> State {
        if self.last_live.is_some() { State::Degraded } else { State::Connecting }
    }

    fn without_namespace(&mut self, controller: &str, now: Millis) -> Option<Action> {
        let cause = format!("{controller} is live without its namespace");
        self.lose(State::Lost, &cause, now);
        if now < self.retry_at {
            return None;
        }
        if self.rescans >= RESCANS {
            self.rescans = 0;
            return self.delete(controller, now);
        }
        self.rescans += 1;
        self.retry_at = now + RESCAN_EVERY;
        Some(Action::Rescan(controller.to_owned()))
    }

    fn without_controller(&mut self, going: &[&Controller], now: Millis) -> Option<Action> {
        if let Some(old) = going.first() {
            let since = *self.going_since.get_or_insert(now);
            if now.saturating_sub(since) > DELETE_PATIENCE {
                self.reason =
                    format!("{} has been on its way out for too long; another is made", old.name);
            }
        } else {
            self.going_since = None;
        }
        if self.state != State::Backoff {
            self.lose(State::Lost, "no controller", now);
        }
        // An export that stays away may be one that was taken from us.
        if self.should_ask_while_away(now) {
            return Some(Action::AskAttachment);
        }
        (now >= self.retry_at).then_some(Action::Connect)
    }

    fn fail_overdue_io(&mut self, now: Millis) -> Option<Action> {
        let limit = self.config.io_timeout?;
        let since = self.lost_at.map(|at| at.max(self.flowed_at));
        let overdue = since.is_some_and(|at| now.saturating_sub(at) >= limit);
        (overdue
            && !self.failing_io
            && now >= self.fail_at
            && self.config.shield
            && self.state != State::Draining)
            .then_some(Action::FailIo)
    }
}
