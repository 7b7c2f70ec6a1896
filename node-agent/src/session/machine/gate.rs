//! Whether a session that comes back is still this node's to have.
//!
//! The target enforces most of that: an attachment's host NQN is worth nothing once it was
//! replaced. Two things it cannot know. Nodes that share a volume share its host NQN, so one
//! that was detached while it was cut off connects as well as the other. And an export that
//! stays away says nothing of why. So the attachment itself is asked for, by the shim, which
//! knows Kubernetes.
//!
//! What has to be asked was found by searching all orders of events (docs/rwx.md): whether
//! that very attachment, by what it was given, is complete and not being ended; and after the
//! new connection is made, so that an export toggled in between ends that connection.

use rds_csi_proto::agent::State;

use crate::kernel::sysfs::Controller;

use super::{Attachment, Machine, Millis};

/// How old an answer may be when I/O is given back: mapping takes its time as well.
const FRESH: Millis = 10_000;
/// Pause after an answer that did not help.
const ASK_AGAIN: Millis = 5_000;
/// How often it is asked while the export is away.
const ASK_WHILE_AWAY: Millis = 30_000;

/// What is known, and of which connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    /// Name and number of the controller that was there when it was asked.
    asked_on: Option<(String, String)>,
    answer: Option<(Attachment, Millis)>,
    ask_at: Millis,
}

impl Gate {
    /// An answer serves one connection. Its name and number do not tell it from the next one:
    /// the kernel reuses the first, and a target whose export was made anew the second.
    pub(super) fn forget(&mut self) {
        (self.asked_on, self.answer) = (None, None);
    }
}

/// Whether I/O may be given back.
pub(super) enum Pass {
    Open,
    Ask,
    Closed,
}

impl Machine {
    /// Decides on the way back over this controller. `first`: nothing was ever written by
    /// this session or the one before it, and the volume was staged for an attachment that
    /// was complete. Where others connect as the same host even that may be long ago.
    pub(super) fn gate(&mut self, on: &Controller, first: bool, now: Millis) -> Pass {
        let long = !first && self.lost_for(now).is_some_and(|lost| lost >= self.config.gate_after);
        if !self.config.shared && !long {
            return Pass::Open;
        }
        let on = (on.name.clone(), on.cntlid.clone());
        if self.gate.asked_on.as_ref() != Some(&on) {
            self.gate = Gate { asked_on: Some(on), answer: None, ask_at: now };
            return Pass::Ask;
        }
        match &self.gate.answer {
            Some((Attachment::Exists, at)) if now.saturating_sub(*at) <= FRESH => Pass::Open,
            // Its host NQN proves the claim, unless others have the same.
            Some((Attachment::Unknown(_), _)) if !self.config.shared => Pass::Open,
            answer => {
                // Also while it is asked again.
                if let Some((Attachment::Unknown(why), _)) = answer {
                    self.reason = format!(
                        "connected, but whether this node may still have the volume is not \
                         known: {why}"
                    );
                }
                if now >= self.gate.ask_at { Pass::Ask } else { Pass::Closed }
            }
        }
    }

    fn lost_for(&self, now: Millis) -> Option<Millis> {
        self.lost_at.map(|at| now.saturating_sub(at))
    }

    /// While there is nothing to connect to.
    pub(super) fn should_ask_while_away(&mut self, now: Millis) -> bool {
        let long = self.lost_for(now).is_some_and(|lost| lost >= self.config.gate_after);
        if !long || now < self.gate.ask_at {
            return false;
        }
        self.gate.asked_on = None;
        self.gate.ask_at = now + ASK_WHILE_AWAY;
        true
    }

    pub(super) fn gate_answered(&mut self, answer: Attachment, now: Millis) {
        if let Attachment::Gone(why) = &answer {
            let cause = format!("this node does not have the volume any more: {why}");
            self.enter(State::Fenced, &cause);
        }
        let pause = if self.gate.asked_on.is_some() { ASK_AGAIN } else { ASK_WHILE_AWAY };
        self.gate.ask_at = now + pause;
        self.gate.answer = Some((answer, now));
    }
}
