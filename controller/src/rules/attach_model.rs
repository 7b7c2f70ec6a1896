//! Every order of things, exhaustively: two controllers, three nodes, an appliance that
//! answers late, in parts or not at all, and a caller that repeats and gives up. The rules
//! are the real ones; only what surrounds them is a model.
//!
//! What the model takes for granted, and the tests at the end show to be needed:
//! - a change whose answer was lost is done, or never will be, by the time a later look is
//!   answered: the appliance runs the requests of one user one at a time;
//! - of two controllers only the leader changes anything, and one that loses its lead while
//!   a change is on its way has been waited for.
//!
//! An own search rather than a library: a hundred lines, no dependencies, and the shortest
//! way to a violation is printed.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, VecDeque};

use super::*;

#[path = "attach_model_tables.rs"]
mod tables;
use tables::{Id, Said, Shown, Tables, host};

const NODES: usize = 3;
/// More epochs than a world ever knows of at one time.
const EPOCHS: u8 = 16;

/// What is tried.
#[derive(Clone, Copy)]
struct Setup {
    sharing: Sharing,
    hosts: Hosts,
    /// Attachments that may be begun in all, and how many things may go wrong.
    begins: u8,
    faults: u8,
    bug: Bug,
}

/// A mistake put in on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    /// Detaching takes the export for off without looking.
    SkipExportOff,
    /// A leader that was replaced still sends what it had in mind.
    OldLeaderActs,
    /// A change without an answer takes effect whenever it likes.
    LateForever,
    /// Clearing and attaching need no host that nobody has.
    OpenBetween,
    /// The gate opens as soon as an attachment is asked for.
    GateTrustsAWish,
    /// It opens for whatever attachment the node has.
    GateTakesAny,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Order {
    /// With this epoch, should one begin.
    Publish(usize, u8),
    Unpublish(usize),
}

/// What a controller is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Work {
    order: Order,
    next: Option<Id>,
}

/// What the caller (attach controller and sidecar) knows of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Claim {
    None,
    Wanted,
    Attached,
    Leaving,
}

/// All that is, in few bytes: what is long stands in [`Tables`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct World {
    stage: Id,
    exported: bool,
    allow: Id,
    leader: usize,
    work: [Option<Work>; 2],
    /// Sent, not answered, perhaps not done.
    flying: Option<Id>,
    claims: [Claim; NODES],
    /// Every host NQN that a node was ever given and did not give back (a bit for each), and
    /// by which it is connected.
    known: [u64; NODES],
    /// Of these, those of an attachment that has ended, without the node having let go: what
    /// it queues may be as old.
    stale: [u64; NODES],
    connected: [Option<Id>; NODES],
    begins: u8,
    faults: u8,
}

/// What happened, for whoever reads the way to a violation.
type What = (&'static str, usize, Option<Id>, u8);

fn tell(tables: &Tables, (text, who, change, parts): What) -> String {
    let why = change.map(|c| format!(" {:?}", tables.changes.borrow().values[usize::from(c)].why));
    let parts = if parts == 7 { String::new() } else { format!(", parts {parts:#b} of it") };
    format!("{who} {text}{}{parts}", why.unwrap_or_default())
}

type May<'a> = dyn FnMut(What, &dyn Fn(&mut World)) + 'a;

impl World {
    fn new(setup: &Setup, t: &Tables) -> Self {
        Self {
            stage: t.stage(&Stage::Ready),
            exported: false,
            allow: t.allow(host('8', 0).to_string()),
            leader: 0,
            work: [None, None],
            flying: None,
            claims: [Claim::None; NODES],
            known: [0; NODES],
            stale: [0; NODES],
            connected: [None; NODES],
            begins: setup.begins,
            faults: setup.faults,
        }
    }

    fn shown(&self) -> Shown {
        (self.stage, self.exported, self.allow)
    }

    /// An epoch is random, and so none that anything knows of: the smallest such number, so
    /// that equal worlds are equal.
    fn unused_epoch(&self, t: &Tables) -> u8 {
        let grants = t.grants.borrow();
        let changes = t.changes.borrow();
        let mut used = 1 | t.stages.borrow().epochs[usize::from(self.stage)];
        used |= t.allows.borrow().epochs[usize::from(self.allow)];
        let in_change = |c: Option<Id>| c.map_or(0, |c| changes.epochs[usize::from(c)]);
        used |= in_change(self.flying);
        for work in self.work.iter().flatten() {
            used |= in_change(work.next);
            if let Order::Publish(_, epoch) = work.order {
                used |= 1 << epoch;
            }
        }
        for n in 0..NODES {
            let known = (0..grants.values.len()).filter(|h| self.known[n] & (1 << h) != 0);
            used |= known.map(|h| grants.epochs[h]).fold(0, |a, b| a | b);
            used |= self.connected[n].map_or(0, |h| grants.epochs[usize::from(h)]);
        }
        let epoch = used.trailing_ones() as u8;
        assert!(epoch < EPOCHS, "too few epochs");
        epoch
    }

    /// The appliance carries out a part of a change: 1 record, 2 hosts, 4 export.
    fn apply(&mut self, change: Id, parts: u8, t: &Tables) {
        let change = t.changes.borrow().values[usize::from(change)].clone();
        if let Some(stage) = change.stage.as_ref().filter(|_| parts & 1 != 0) {
            self.stage = t.stage(stage);
        }
        if let Some(allow) = change.allow.as_ref().filter(|_| parts & 2 != 0) {
            self.allow = t.allow(allow.to_string());
        }
        if let Some(export) = change.export.filter(|_| parts & 4 != 0) {
            self.exported = export == Export::On;
            if !self.exported {
                self.connected = Default::default();
            }
        }
    }

    fn look(&mut self, c: usize, setup: &Setup, t: &Tables) {
        let Some(order) = self.work[c].map(|w| w.order) else { return };
        match t.decide(self.shown(), order, setup) {
            Said::Change(next) => self.work[c] = Some(Work { order, next: Some(next) }),
            Said::Refused => self.work[c] = None,
            Said::Done(host) => {
                self.work[c] = None;
                // The caller is led with the controller (both are containers of one pod): what
                // one that leads no more says of a call made long ago answers nothing that is
                // asked now.
                if self.leader == c {
                    self.answer(order, host);
                }
            }
        }
    }

    fn answer(&mut self, order: Order, host: Option<Id>) {
        match order {
            Order::Publish(n, _) => {
                if self.claims[n] == Claim::Wanted {
                    self.claims[n] = Claim::Attached;
                }
                // Also if the caller has changed its mind meanwhile.
                self.known[n] |= host.map_or(0, |h| 1 << h);
            }
            Order::Unpublish(n) if self.claims[n] == Claim::Leaving => {
                self.claims[n] = Claim::None;
                self.stale[n] |= self.known[n];
            }
            Order::Unpublish(_) => {}
        }
    }

    /// All that can happen next.
    fn successors(&self, setup: &Setup, t: &Tables, all: &mut Vec<(What, World)>) {
        all.clear();
        let mut may = |what: What, change: &dyn Fn(&mut World)| {
            let mut next = *self;
            change(&mut next);
            if next != *self {
                all.push((what, next));
            }
        };
        for c in 0..2 {
            self.of_controller(c, setup, t, &mut may);
        }
        self.of_the_caller(setup, t, &mut may);
        self.of_nodes(setup, t, &mut may);
    }

    fn of_controller(&self, c: usize, setup: &Setup, t: &Tables, may: &mut May<'_>) {
        let Some(Work { order, next }) = self.work[c] else { return };
        let Some(change) = next else {
            match self.flying {
                // What was sent before is over before this is answered, one way or the other.
                // (Done: the move `(late) is done`, and then a look.)
                Some(flying) if setup.bug != Bug::LateForever => {
                    may(("looks, and lost was:", c, Some(flying), 7), &|w| {
                        w.flying = None;
                        w.look(c, setup, t);
                    });
                }
                _ => may(("looks", c, None, 7), &|w| w.look(c, setup, t)),
            }
            return;
        };
        let sent = |w: &mut World| w.work[c] = Some(Work { order, next: None });
        may(("changes:", c, Some(change), 7), &|w| {
            w.apply(change, 7, t);
            sent(w);
        });
        if self.faults == 0 {
            return;
        }
        for parts in 1..7 {
            may(("changes:", c, Some(change), parts), &|w| {
                w.apply(change, parts, t);
                w.faults -= 1;
                sent(w);
            });
        }
        if self.flying.is_none() {
            may(("has no answer to", c, Some(change), 7), &|w| {
                w.flying = Some(change);
                w.faults -= 1;
                sent(w);
            });
        }
    }

    fn of_the_caller(&self, setup: &Setup, t: &Tables, may: &mut May<'_>) {
        let c = self.leader;
        let idle = self.work[c].is_none();
        for n in 0..NODES {
            let order = |order| move |w: &mut World| w.work[c] = Some(Work { order, next: None });
            match self.claims[n] {
                Claim::None if self.begins > 0 => may(("is wanted", n, None, 7), &|w| {
                    w.claims[n] = Claim::Wanted;
                    w.begins -= 1;
                }),
                Claim::Wanted | Claim::Attached if idle => {
                    let publish = order(Order::Publish(n, self.unused_epoch(t)));
                    may(("is to be published", n, None, 7), &publish);
                }
                Claim::Leaving if idle => {
                    may(("is to be unpublished", n, None, 7), &order(Order::Unpublish(n)))
                }
                _ => {}
            }
            if matches!(self.claims[n], Claim::Wanted | Claim::Attached) {
                may(("is to be detached", n, None, 7), &|w| w.claims[n] = Claim::Leaving);
            }
        }
        if self.faults > 0 {
            // Who takes the lead begins with nothing in mind. One that leads no more drops what
            // it had in mind, so which of the two it is makes no difference, unless that is
            // the mistake.
            may(("is replaced", c, None, 7), &|w| {
                match setup.bug {
                    Bug::OldLeaderActs => {
                        w.work[1 - c] = None;
                        w.leader = 1 - c;
                    }
                    _ => w.work[c] = None,
                }
                w.faults -= 1;
            });
        }
        if let Some(flying) = self.flying {
            may(("(late) is done:", c, Some(flying), 7), &|w| {
                w.apply(flying, 7, t);
                w.flying = None;
            });
        }
    }

    /// A node that is cut off from the cluster, or from the appliance, is one that does
    /// nothing of this for as long as that lasts: it needs no state of its own.
    fn of_nodes(&self, setup: &Setup, t: &Tables, may: &mut May<'_>) {
        for n in 0..NODES {
            // The agent's gate: asked after the connection is made and before any write, so that
            // an export toggled in between ends it. It opens for an attachment that is complete:
            // one that is only wanted would be taken away without a toggle.
            let exists = match setup.bug {
                Bug::GateTrustsAWish => self.claims[n] != Claim::None,
                _ => self.claims[n] == Claim::Attached,
            };
            let gated = setup.sharing == Sharing::Shared && setup.hosts == Hosts::Gated;
            // And for that very attachment, not for a later one of the same node.
            let given = t.given_to(self.stage, n);
            let same = |h: usize| match setup.bug {
                Bug::GateTakesAny => true,
                Bug::GateTrustsAWish => self.stale[n] & (1 << h) == 0,
                _ => given == Some(h as Id),
            };
            if self.exported && (exists || !gated) && self.connected[n].is_none() {
                let admitted: Vec<Id> = {
                    let (grants, allows) = (t.grants.borrow(), t.allows.borrow());
                    let allow = &allows.values[usize::from(self.allow)];
                    let admits = |by: &str| allow.is_empty() || allow.split(',').any(|a| a == by);
                    (0..grants.values.len())
                        .filter(|h| self.known[n] & (1 << h) != 0 && (!gated || same(*h)))
                        .filter(|h| admits(grants.values[*h].host.as_str()))
                        .map(|h| h as Id)
                        .collect()
                };
                for host in admitted {
                    may(("connects", n, None, 7), &|w| w.connected[n] = Some(host));
                }
            }
            // Unstage, and with it the end of all that it knows. It may never come.
            if self.claims[n] == Claim::Leaving {
                may(("unstages", n, None, 7), &|w| {
                    w.connected[n] = None;
                    w.known[n] = 0;
                    w.stale[n] = 0;
                });
            }
        }
    }

    /// The name of the property that does not hold here.
    fn violated(&self, setup: &Setup, t: &Tables) -> Option<&'static str> {
        let writers = self.connected.iter().flatten().count();
        match setup.sharing {
            Sharing::Exclusive if writers > 1 => return Some(RWO),
            Sharing::Shared if writers > 2 => return Some(RWX),
            _ => {}
        }
        for n in 0..NODES {
            if self.claims[n] == Claim::None && self.connected[n].is_some() {
                return Some(DETACHED);
            }
            if self.connected[n].is_some_and(|h| self.stale[n] & (1 << h) != 0) {
                return Some(STALE);
            }
            if self.claims[n] != Claim::Attached {
                continue;
            }
            let Some(given) = t.given_to(self.stage, n) else { return Some(REVOKED) };
            if self.known[n] & (1 << given) == 0 {
                return Some(REVOKED);
            }
        }
        (!self.settles(setup, t)).then_some(PROGRESS)
    }

    /// From here on all goes well: whoever is attached can be served, whoever leaves can
    /// leave, and then another can come.
    fn settles(&self, setup: &Setup, t: &Tables) -> bool {
        let shown = (self.shown(), self.claims);
        if let Some(known) = t.settled.borrow().get(&shown) {
            return *known;
        }
        let setup = &Setup { bug: Bug::None, ..*setup };
        let mut w = *self;
        let mut run = |order: Order| {
            for _ in 0..6 {
                match t.decide(w.shown(), order, setup) {
                    Said::Change(change) => w.apply(change, 7, t),
                    Said::Done(_) => return true,
                    Said::Refused => return false,
                }
            }
            false
        };
        let of = |claim| (0..NODES).filter(move |n| self.claims[*n] == claim);
        let good = of(Claim::Attached).all(|n| run(Order::Publish(n, EPOCHS - 2)))
            && (0..NODES).all(|n| run(Order::Unpublish(n)))
            && run(Order::Publish(2, EPOCHS - 1))
            && w.exported;
        t.settled.borrow_mut().insert(shown, good);
        good
    }
}

const RWO: &str = "RWO never two nodes able to write";
const RWX: &str = "RWX never three";
const DETACHED: &str = "a node that is detached never writes";
const STALE: &str = "what an ended attachment queued is never written";
const REVOKED: &str = "a live attachment is never revoked by a retry";
const PROGRESS: &str = "progress once faults stop";

/// Breadth first, so that the first violation found has the shortest way to it.
fn explore(setup: &Setup, at_most: usize) -> Result<usize, (&'static str, Vec<String>)> {
    let t = &Tables::new();
    let first = World::new(setup, t);
    let mut seen: HashMap<World, u32> = HashMap::from([(first, 0)]);
    let mut ways: Vec<(u32, What)> = vec![(0, ("", 0, None, 7))];
    let mut queue = VecDeque::from([(first, 0)]);
    let mut next = Vec::new();
    while let Some((world, number)) = queue.pop_front() {
        world.successors(setup, t, &mut next);
        for (what, next) in &next {
            if seen.contains_key(next) {
                continue;
            }
            assert!(ways.len() < at_most, "more than {at_most} states");
            let name = u32::try_from(ways.len()).unwrap();
            ways.push((number, *what));
            if let Some(property) = next.violated(setup, t) {
                let mut way = Vec::new();
                let mut at = name;
                while at != 0 {
                    let (before, what) = ways[at as usize];
                    way.push(tell(t, what));
                    at = before;
                }
                way.reverse();
                return Err((property, way));
            }
            seen.insert(*next, name);
            queue.push_back((*next, name));
        }
    }
    Ok(seen.len())
}

fn setup(sharing: Sharing, hosts: Hosts, bug: Bug) -> Setup {
    Setup { sharing, hosts, begins: 3, faults: 2, bug }
}

const AT_MOST: usize = 3_000_000;

fn holds(name: &str, sharing: Sharing, hosts: Hosts) {
    match explore(&setup(sharing, hosts, Bug::None), AT_MOST) {
        Ok(states) => println!("{name}: {states} states explored"),
        Err((property, way)) => panic!("{name}: {property}:\n  {}", way.join("\n  ")),
    }
}

#[test]
fn an_exclusive_volume_is_safe_in_every_order() {
    holds("rwo", Sharing::Exclusive, Hosts::One);
}

#[test]
fn a_shared_volume_is_safe_in_every_order() {
    holds("rwx, one host NQN and agents that ask", Sharing::Shared, Hosts::Gated);
    holds("rwx, one host NQN", Sharing::Shared, Hosts::One);
}

#[test]
fn a_shared_volume_with_a_list_of_hosts_is_safe_in_every_order() {
    holds("rwx, a list", Sharing::Shared, Hosts::PerNode);
}

#[test]
fn a_mistake_is_found() {
    for (bug, sharing, want) in [
        (Bug::SkipExportOff, Sharing::Exclusive, DETACHED),
        (Bug::SkipExportOff, Sharing::Shared, DETACHED),
        (Bug::OldLeaderActs, Sharing::Exclusive, REVOKED),
        (Bug::LateForever, Sharing::Exclusive, REVOKED),
        (Bug::OpenBetween, Sharing::Exclusive, STALE),
        (Bug::GateTrustsAWish, Sharing::Shared, DETACHED),
        (Bug::GateTakesAny, Sharing::Shared, STALE),
    ] {
        let found = explore(&setup(sharing, Hosts::Gated, bug), AT_MOST);
        let (property, way) = found.expect_err("the checker sees nothing");
        println!("{bug:?}: {property}, in {} steps:\n  {}", way.len(), way.join("\n  "));
        assert_eq!(property, want, "{bug:?}");
    }
}
