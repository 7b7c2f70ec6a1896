//! What is done, drawn from a seed alone, and the model: what must be true afterwards.
//!
//! No answer has a part in it, so a seed gives the same steps whatever the system does.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tonic::Code;

/// Paths at which a volume may be published.
pub(super) const TARGETS: usize = 2;
/// The longest time into a step at which something happens to it. Most calls have ended by
/// then in an emulated guest, and staging has just mounted.
const LATEST_MS: f64 = 4000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Ext4,
    Xfs,
    Raw,
    /// An ext4 that is published read-only.
    ReadOnly,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Ext4, Kind::Xfs, Kind::Raw, Kind::ReadOnly];

/// Where statistics are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Staging,
    Target(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Call {
    Attach,
    Stage,
    Publish(usize),
    Expand(usize),
    Stats(Place),
    Unpublish(usize),
    Unstage,
    Detach,
    /// To another node, while it is attached to this one.
    AttachElsewhere,
    /// At another staging path, while it is staged.
    StageElsewhere,
    /// For writing what is read-only there, or the other way round.
    PublishOtherwise(usize),
}

const CALLS: [Call; 17] = [
    Call::Attach,
    Call::Stage,
    Call::Publish(0),
    Call::Publish(1),
    Call::Expand(0),
    Call::Expand(1),
    Call::Stats(Place::Staging),
    Call::Stats(Place::Target(0)),
    Call::Stats(Place::Target(1)),
    Call::Unpublish(0),
    Call::Unpublish(1),
    Call::Unstage,
    Call::Detach,
    Call::AttachElsewhere,
    Call::StageElsewhere,
    Call::PublishOtherwise(0),
    Call::PublishOtherwise(1),
];

/// How a call must be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Refused(Code),
    /// Not for this story: it would take the volume away from under its users, or what comes
    /// of it is not specified.
    Avoided,
}

/// How far a volume has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) attached: bool,
    pub(super) staged: bool,
    pub(super) published: [bool; TARGETS],
}

impl State {
    fn is_published(self) -> bool {
        self.published.contains(&true)
    }

    fn is_at(self, kind: Kind, place: Place) -> bool {
        match place {
            // Nothing is mounted at the staging path of a raw volume.
            Place::Staging => self.staged && kind != Kind::Raw,
            Place::Target(n) => self.published[n],
        }
    }

    /// The answer that CSI and Kubernetes rely on.
    pub(super) fn answer(self, kind: Kind, call: Call) -> Answer {
        let refused = Answer::Refused;
        match call {
            Call::Attach | Call::Unpublish(_) => Answer::Done,
            // Without a publish context.
            Call::Stage if !self.attached => refused(Code::InvalidArgument),
            Call::Publish(_) if !self.staged => refused(Code::FailedPrecondition),
            Call::Unstage if self.is_published() => refused(Code::FailedPrecondition),
            Call::Stage | Call::Publish(_) | Call::Unstage => Answer::Done,
            Call::Expand(n) if self.published[n] => Answer::Done,
            Call::Expand(_) => refused(Code::NotFound),
            Call::Stats(place) if self.is_at(kind, place) => Answer::Done,
            Call::Stats(_) => refused(Code::NotFound),
            Call::Detach if self.staged => Answer::Avoided,
            Call::Detach => Answer::Done,
            Call::AttachElsewhere if self.attached => refused(Code::FailedPrecondition),
            Call::StageElsewhere if self.staged => refused(Code::AlreadyExists),
            // A device is read-only for all of its users or for none.
            Call::PublishOtherwise(n) if kind == Kind::Raw && self.published[1 - n] => {
                refused(Code::FailedPrecondition)
            }
            Call::PublishOtherwise(n) if self.published[n] => refused(Code::AlreadyExists),
            Call::AttachElsewhere | Call::StageElsewhere | Call::PublishOtherwise(_) => {
                Answer::Avoided
            }
        }
    }

    /// After the call was done.
    pub(super) fn after(mut self, call: Call) -> Self {
        match call {
            Call::Attach => self.attached = true,
            Call::Stage => self.staged = true,
            Call::Publish(n) => self.published[n] = true,
            Call::Unpublish(n) => self.published[n] = false,
            Call::Unstage => self.staged = false,
            Call::Detach => self.attached = false,
            _ => {}
        }
        self
    }

    /// Whether both calls may be made at once, with the same end in either order.
    fn commute(self, kind: Kind, one: Call, two: Call) -> bool {
        let done = |state: Self, call| state.answer(kind, call) == Answer::Done;
        let (first, second) = (self.after(one), self.after(two));
        done(self, one)
            && done(self, two)
            && done(first, two)
            && done(second, one)
            && first.after(two) == second.after(one)
    }
}

fn opposite(call: Call) -> Option<Call> {
    Some(match call {
        Call::Attach => Call::Detach,
        Call::Detach => Call::Attach,
        Call::Stage => Call::Unstage,
        Call::Unstage => Call::Stage,
        Call::Publish(n) => Call::Unpublish(n),
        Call::Unpublish(n) => Call::Publish(n),
        _ => return None,
    })
}

/// What is done to one volume in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Once(Call),
    /// And once more when it is done.
    Again(Call),
    /// Both at once, until both are done.
    Both(Call, Call),
    /// Both at once; then the second until it is done.
    Against(Call, Call),
    /// Twice: what was refused once must not have prepared its own success.
    Refused(Call, Code),
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    Nothing,
    /// SIGKILL, and another agent.
    AgentKilled {
        after_ms: u64,
    },
    /// Of one volume.
    ExportToggled {
        volume: usize,
        after_ms: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// At most one for each volume; none if only something happens.
    pub(super) acts: Vec<(usize, Act)>,
    pub(super) meanwhile: Meanwhile,
    /// How far each volume is afterwards.
    pub(super) states: [State; KINDS.len()],
}

/// The steps.
pub(super) struct Plan {
    rng: StdRng,
    states: [State; KINDS.len()],
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), states: Default::default() }
    }

    pub(super) fn step(&mut self) -> Step {
        let before = self.states;
        let mut acts = Vec::new();
        for (n, kind) in KINDS.into_iter().enumerate() {
            if self.rng.random_bool(0.6) {
                let act = self.act(kind, before[n]);
                self.states[n] = match act {
                    Act::Once(call) | Act::Again(call) => before[n].after(call),
                    Act::Both(one, two) | Act::Against(one, two) => before[n].after(one).after(two),
                    Act::Refused(..) => before[n],
                };
                acts.push((n, act));
            }
        }
        let meanwhile = self.meanwhile(&before);
        Step { acts, meanwhile, states: self.states }
    }

    fn act(&mut self, kind: Kind, state: State) -> Act {
        let answered = |call: &Call| state.answer(kind, *call);
        if self.rng.random_bool(0.2) {
            let refused: Vec<_> = CALLS
                .into_iter()
                .filter_map(|call| match answered(&call) {
                    Answer::Refused(code) => Some(Act::Refused(call, code)),
                    _ => None,
                })
                .collect();
            if let Some(act) = refused.choose(&mut self.rng) {
                return *act;
            }
        }
        let done = CALLS.into_iter().filter(|c| answered(c) == Answer::Done);
        let (moves, rests): (Vec<_>, Vec<_>) = done.partition(|c| state.after(*c) != state);
        let set = if self.rng.random_bool(0.75) { &moves } else { &rests };
        // Something can be moved in every state, and detaching is done in every other.
        let call = *set.choose(&mut self.rng).unwrap_or(&Call::Attach);
        match self.rng.random_range(0..20) {
            0..8 => Act::Once(call),
            8..11 => Act::Again(call),
            11..14 => Act::Both(call, call),
            14..17 => {
                let beside: Vec<_> =
                    CALLS.into_iter().filter(|c| state.commute(kind, call, *c)).collect();
                Act::Both(call, *beside.choose(&mut self.rng).unwrap_or(&call))
            }
            _ => match opposite(call) {
                Some(other) if state.after(call).answer(kind, other) == Answer::Done => {
                    Act::Against(call, other)
                }
                _ => Act::Once(call),
            },
        }
    }

    fn meanwhile(&mut self, before: &[State; KINDS.len()]) -> Meanwhile {
        // As many early moments as late ones: a crash is as likely in a short call.
        let after_ms = LATEST_MS.powf(self.rng.random_range(0.0..1.0)) as u64;
        match self.rng.random_range(0..10) {
            0..3 => Meanwhile::AgentKilled { after_ms },
            3..5 => {
                // Not of one that is just being attached or detached: the controller turns
                // exports on and off, too.
                let stays = |n: &usize| {
                    before[*n].staged && before[*n].attached && self.states[*n].attached
                };
                let exported: Vec<_> = (0..KINDS.len()).filter(stays).collect();
                match exported.choose(&mut self.rng) {
                    Some(volume) => Meanwhile::ExportToggled { volume: *volume, after_ms },
                    None => Meanwhile::Nothing,
                }
            }
            _ => Meanwhile::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn steps(seed: u64, count: usize) -> Vec<Step> {
        let mut plan = Plan::new(seed);
        (0..count).map(|_| plan.step()).collect()
    }

    #[test]
    fn a_seed_gives_the_same_steps() {
        assert_eq!(steps(7, 200), steps(7, 200));
        assert_ne!(steps(7, 200), steps(8, 200));
    }

    #[test]
    fn every_kind_of_act_comes_up() {
        let mut seen = HashSet::new();
        for step in steps(1, 2000) {
            for (_, act) in &step.acts {
                seen.insert(match act {
                    Act::Once(call) => format!("once {call:?}"),
                    Act::Again(call) => format!("again {call:?}"),
                    Act::Both(one, _) => format!("both {one:?}"),
                    Act::Against(one, _) => format!("against {one:?}"),
                    Act::Refused(call, code) => format!("refused {call:?} {code:?}"),
                });
            }
            seen.insert(
                match step.meanwhile {
                    Meanwhile::Nothing => "nothing",
                    Meanwhile::AgentKilled { .. } => "killed",
                    Meanwhile::ExportToggled { .. } => "toggled",
                }
                .to_owned(),
            );
        }
        for wanted in [
            "once Stage",
            "again Unstage",
            "both Publish(1)",
            "against Stage",
            "against Detach",
            "refused Stage InvalidArgument",
            "refused Publish(0) FailedPrecondition",
            "refused Unstage FailedPrecondition",
            "refused Stats(Staging) NotFound",
            "refused Expand(0) NotFound",
            "refused AttachElsewhere FailedPrecondition",
            "refused StageElsewhere AlreadyExists",
            "refused PublishOtherwise(0) AlreadyExists",
            "refused PublishOtherwise(0) FailedPrecondition",
            "nothing",
            "killed",
            "toggled",
        ] {
            assert!(seen.contains(wanted), "{wanted} is missing from {seen:?}");
        }
    }

    #[test]
    fn no_volume_is_detached_under_its_users() {
        for step in steps(3, 2000) {
            for state in step.states {
                assert!(state.attached || !state.staged, "{step:?}");
                assert!(state.staged || !state.is_published(), "{step:?}");
            }
        }
    }
}
