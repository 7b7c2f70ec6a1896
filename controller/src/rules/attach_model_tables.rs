//! What is long in the model's states, under numbers: then a state is a few bytes, and the
//! rules, which have no memory, are asked each question once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;

use super::{Bug, Claim, EPOCHS, NODES, Order, Setup};
use crate::rules::attach::*;
use crate::rules::attachment::{Grant, NodeKey};
use crate::rules::owner::Stage;
use rds_csi_proto::ids::HostNqn;

pub(super) type Id = u8;

/// Values under numbers.
pub(super) struct Table<T> {
    pub(super) values: Vec<T>,
    ids: HashMap<T, Id>,
    /// The epochs that each names, a bit for each.
    pub(super) epochs: Vec<u64>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { values: Vec::new(), ids: HashMap::new(), epochs: Vec::new() }
    }

    fn id(&mut self, value: T, epochs: impl FnOnce(&T) -> u64) -> Id {
        if let Some(id) = self.ids.get(&value) {
            return *id;
        }
        let id = Id::try_from(self.values.len()).unwrap();
        self.epochs.push(epochs(&value));
        self.values.push(value.clone());
        self.ids.insert(value, id);
        id
    }
}

/// What a rule says.
#[derive(Clone, Copy)]
pub(super) enum Said {
    Change(Id),
    Done(Option<Id>),
    Refused,
}

pub(super) type Shown = (Id, bool, Id);

pub(super) struct Tables {
    pub(super) grants: RefCell<Table<Grant>>,
    pub(super) stages: RefCell<Table<Stage>>,
    pub(super) allows: RefCell<Table<String>>,
    pub(super) changes: RefCell<Table<Change>>,
    /// By the text of a host NQN.
    epochs: Vec<(String, u64)>,
    /// The rules have no memory, so each question is asked once.
    said: RefCell<HashMap<(Shown, Order, bool), Said>>,
    pub(super) settled: RefCell<HashMap<(Shown, [Claim; NODES]), bool>>,
}

pub(super) fn key(n: usize) -> NodeKey {
    NodeKey::of(&format!("n{n}").parse().unwrap())
}

/// The same name for the same number, so that equal worlds are equal.
pub(super) fn host(version: char, n: u8) -> HostNqn {
    format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-{version}000-8000-0000000000{n:02x}")
        .parse()
        .unwrap()
}

impl Tables {
    pub(super) fn new() -> Self {
        let mut epochs = Vec::new();
        for n in 0..EPOCHS {
            epochs.push((host('4', n).host_id().to_string(), 1 << n));
            for node in 0..NODES {
                for arrival in 0..8 {
                    let own = host('4', n).of_node(&format!("{}#{arrival}", key(node).short()));
                    epochs.push((own.host_id().to_string(), 1 << n));
                }
            }
        }
        Self {
            grants: RefCell::new(Table::new()),
            stages: RefCell::new(Table::new()),
            allows: RefCell::new(Table::new()),
            changes: RefCell::new(Table::new()),
            epochs,
            said: RefCell::default(),
            settled: RefCell::default(),
        }
    }

    fn epochs(&self, text: &str) -> u64 {
        self.epochs.iter().filter(|(host, _)| text.contains(host)).map(|(_, bit)| bit).sum()
    }

    pub(super) fn stage(&self, stage: &Stage) -> Id {
        self.stages.borrow_mut().id(stage.clone(), |s| self.epochs(&format!("{s:?}")))
    }

    pub(super) fn allow(&self, allow: String) -> Id {
        self.allows.borrow_mut().id(allow, |a| self.epochs(a))
    }

    pub(super) fn grant(&self, grant: Grant) -> Id {
        self.grants.borrow_mut().id(grant, |g| self.epochs(g.host.as_str()))
    }

    /// What stands in the status of a node's VolumeAttachment: what it was given when that was
    /// completed, and is on record for as long as it is not ended (property `REVOKED`).
    pub(super) fn given_to(&self, stage: Id, n: usize) -> Option<Id> {
        let given = match &self.stages.borrow().values[usize::from(stage)] {
            Stage::Attached(a) if a.nodes().any(|k| k == &key(n)) => a.grant_of(&key(n)),
            _ => return None,
        };
        Some(self.grant(given))
    }

    /// The real rules, on what is shown.
    pub(super) fn decide(&self, shown: Shown, order: Order, setup: &Setup) -> Said {
        let sound = setup.bug == Bug::None;
        if let Some(said) = self.said.borrow().get(&(shown, order, sound)) {
            return *said;
        }
        let said = match self.ask(shown, order, setup) {
            Step::Change(c) => {
                Said::Change(self.changes.borrow_mut().id(c, |c| self.epochs(&format!("{c:?}"))))
            }
            Step::Done(grant) => Said::Done(grant.map(|g| self.grant(g))),
            Step::Refused(_) => Said::Refused,
        };
        self.said.borrow_mut().insert((shown, order, sound), said);
        said
    }

    fn ask(&self, shown: Shown, order: Order, setup: &Setup) -> Step<Option<Grant>> {
        let (stages, allows) = (self.stages.borrow(), self.allows.borrow());
        let (stage, exported) = (&stages.values[usize::from(shown.0)], shown.1);
        let allow = allows.values[usize::from(shown.2)].as_str();
        let closed = host('8', 0);
        let some = |step| match step {
            Step::Change(c) => Step::Change(c),
            Step::Done(grant) => Step::Done(Some(grant)),
            Step::Refused(why) => Step::Refused(why),
        };
        match order {
            Order::Publish(n, epoch) => {
                let request = Publish {
                    node: key(n),
                    sharing: setup.sharing,
                    hosts: setup.hosts,
                    may_share: MayShare::Yes,
                    limit: 300,
                    now: 0,
                    fresh: host('4', epoch),
                    closed: closed.clone(),
                };
                // The mistake concerns a volume that nobody has.
                let trusts = setup.bug == Bug::OpenBetween && *stage == Stage::Ready;
                let allow = if trusts { closed.as_str() } else { allow };
                some(publish(View { stage, exported, allow }, &request))
            }
            Order::Unpublish(n) => {
                let departure = Departure::Unproven;
                let request = Unpublish { node: Some(key(n)), departure, now: 0, closed };
                let exported = exported && setup.bug != Bug::SkipExportOff;
                match unpublish(View { stage, exported, allow }, &request) {
                    Step::Change(c) => Step::Change(c),
                    Step::Done(()) => Step::Done(None),
                    Step::Refused(why) => Step::Refused(why),
                }
            }
        }
    }
}
