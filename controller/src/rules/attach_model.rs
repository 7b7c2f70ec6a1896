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
use std::time::Instant;

use super::*;

const NODES: usize = 3;

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
#[derive(Clone, Copy, PartialEq, Eq)]
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
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Order {
    /// With this epoch, should one begin.
    Publish(usize, u8),
    Unpublish(usize),
}

/// What a controller is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Work {
    order: Order,
    next: Option<Change>,
}

/// What the caller (attach controller and sidecar) knows of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Claim {
    None,
    Wanted,
    Attached,
    Leaving,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    stage: Stage,
    exported: bool,
    allow: String,
    leader: usize,
    work: [Option<Work>; 2],
    /// Sent, not answered, perhaps not done.
    flying: Option<Change>,
    claims: [Claim; NODES],
    /// Every host NQN that a node was ever given and did not give back, and by which it is
    /// connected.
    known: [Vec<HostNqn>; NODES],
    connected: [Option<HostNqn>; NODES],
    cut_off: Option<usize>,
    begins: u8,
    faults: u8,
}

fn key(n: usize) -> NodeKey {
    NodeKey::of(&format!("n{n}").parse().unwrap())
}

/// The same name for the same number, so that equal worlds are equal.
fn host(version: char, n: u8) -> HostNqn {
    format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-{version}000-8000-0000000000{n:02x}")
        .parse()
        .unwrap()
}

impl World {
    fn new(setup: &Setup) -> Self {
        Self {
            stage: Stage::Ready,
            exported: false,
            allow: host('8', 0).to_string(),
            leader: 0,
            work: [None, None],
            flying: None,
            claims: [Claim::None; NODES],
            known: Default::default(),
            connected: Default::default(),
            cut_off: None,
            begins: setup.begins,
            faults: setup.faults,
        }
    }

    /// The appliance carries out a part of a change: 1 record, 2 hosts, 4 export.
    fn apply(&mut self, change: &Change, parts: u8) {
        if let Some(stage) = change.stage.as_ref().filter(|_| parts & 1 != 0) {
            self.stage = stage.clone();
        }
        if let Some(allow) = change.allow.as_ref().filter(|_| parts & 2 != 0) {
            self.allow = allow.to_string();
        }
        if let Some(export) = change.export.filter(|_| parts & 4 != 0) {
            self.exported = export == Export::On;
            if !self.exported {
                self.connected = Default::default();
            }
        }
    }

    /// The real rules, on what is shown.
    fn decide(&self, order: Order, setup: &Setup) -> Step<Option<HostNqn>> {
        let closed = host('8', 0);
        let view = View { stage: &self.stage, exported: self.exported, allow: &self.allow };
        match order {
            Order::Publish(n, epoch) => {
                let (sharing, hosts) = (setup.sharing, setup.hosts);
                let (may_share, fresh) = (MayShare::Yes, host('4', epoch));
                let request = Publish {
                    node: key(n),
                    sharing,
                    hosts,
                    may_share,
                    limit: 300,
                    now: 0,
                    fresh,
                    closed,
                };
                let trusting = closed_to_nobody(&request.closed);
                let allow = if setup.bug == Bug::OpenBetween { &trusting } else { view.allow };
                match publish(
                    View { allow: pick(&self.stage, allow, view.allow), ..view },
                    &request,
                ) {
                    Step::Change(c) => Step::Change(c),
                    Step::Done(host) => Step::Done(Some(host)),
                    Step::Refused(why) => Step::Refused(why),
                }
            }
            Order::Unpublish(n) => {
                let departure = Departure::Unproven;
                let request = Unpublish { node: Some(key(n)), departure, now: 0, closed };
                let exported = view.exported && setup.bug != Bug::SkipExportOff;
                match unpublish(View { exported, ..view }, &request) {
                    Step::Change(c) => Step::Change(c),
                    Step::Done(()) => Step::Done(None),
                    Step::Refused(why) => Step::Refused(why),
                }
            }
        }
    }

    fn look(&mut self, c: usize, setup: &Setup) {
        let Some(order) = self.work[c].as_ref().map(|w| w.order) else { return };
        match self.decide(order, setup) {
            Step::Change(next) => self.work[c] = Some(Work { order, next: Some(next) }),
            Step::Refused(_) => self.work[c] = None,
            Step::Done(host) => {
                self.work[c] = None;
                // The caller is led with the controller: what one that leads no more says of
                // a call that was made long ago answers nothing that is asked now.
                if self.leader == c {
                    self.answer(order, host);
                }
            }
        }
    }

    fn answer(&mut self, order: Order, host: Option<HostNqn>) {
        match order {
            Order::Publish(n, _) => {
                if self.claims[n] == Claim::Wanted {
                    self.claims[n] = Claim::Attached;
                }
                // Also if the caller has changed its mind meanwhile.
                let known = &mut self.known[n];
                known.extend(host.filter(|h| !known.contains(h)));
            }
            Order::Unpublish(n) if self.claims[n] == Claim::Leaving => {
                self.claims[n] = Claim::None;
            }
            Order::Unpublish(_) => {}
        }
    }

    /// All that can happen next.
    fn successors(&self, setup: &Setup) -> Vec<(String, World)> {
        let mut all = Vec::new();
        let mut may = |what: String, change: &dyn Fn(&mut World)| {
            let mut next = self.clone();
            change(&mut next);
            if next != *self {
                all.push((what, next));
            }
        };
        for c in 0..2 {
            self.of_controller(c, setup, &mut may);
        }
        self.of_the_caller(&mut may);
        self.of_nodes(setup, &mut may);
        all
    }

    fn of_controller(
        &self,
        c: usize,
        setup: &Setup,
        may: &mut dyn FnMut(String, &dyn Fn(&mut World)),
    ) {
        let leads = self.leader == c;
        let Some(work) = &self.work[c] else { return };
        let Some(change) = &work.next else {
            let barrier = setup.bug != Bug::LateForever;
            match &self.flying {
                // What was sent before is over before this is answered, one way or the other.
                Some(flying) if barrier => {
                    may(format!("{c} looks, after what was late"), &|w| {
                        w.apply(flying, 7);
                        w.flying = None;
                        w.look(c, setup);
                    });
                    may(format!("{c} looks, and what was late was lost"), &|w| {
                        w.flying = None;
                        w.look(c, setup);
                    });
                }
                _ => may(format!("{c} looks"), &|w| w.look(c, setup)),
            }
            return;
        };
        if leads || setup.bug == Bug::OldLeaderActs {
            let sent = |w: &mut World| w.work[c] = Some(Work { order: work.order, next: None });
            may(format!("{c} changes: {:?}", change.why), &|w| {
                w.apply(change, 7);
                sent(w);
            });
            if self.faults > 0 {
                for parts in 1..7 {
                    may(format!("{c} changes: {:?}, {parts} of it done", change.why), &|w| {
                        w.apply(change, parts);
                        w.faults -= 1;
                        sent(w);
                    });
                }
                if self.flying.is_none() {
                    may(format!("{c} changes: {:?}, no answer", change.why), &|w| {
                        w.flying = Some(change.clone());
                        w.faults -= 1;
                        sent(w);
                    });
                }
            }
        } else {
            may(format!("{c} sees that it leads no more"), &|w| w.work[c] = None);
        }
    }

    fn of_the_caller(&self, may: &mut dyn FnMut(String, &dyn Fn(&mut World))) {
        let c = self.leader;
        let idle = self.work[c].is_none();
        for n in 0..NODES {
            let order = |order| move |w: &mut World| w.work[c] = Some(Work { order, next: None });
            match self.claims[n] {
                Claim::None if self.begins > 0 => may(format!("{n} is wanted"), &|w| {
                    w.claims[n] = Claim::Wanted;
                    w.begins -= 1;
                }),
                Claim::Wanted | Claim::Attached if idle => {
                    let publish = order(Order::Publish(n, self.begins));
                    may(format!("publish {n}"), &publish);
                }
                Claim::Leaving if idle => {
                    may(format!("unpublish {n}"), &order(Order::Unpublish(n)))
                }
                _ => {}
            }
            if matches!(self.claims[n], Claim::Wanted | Claim::Attached) {
                may(format!("{n} is to be detached"), &|w| w.claims[n] = Claim::Leaving);
            }
        }
        if self.faults > 0 {
            // Who takes the lead begins with nothing in mind, also if it had it before.
            may("the leader dies".into(), &|w| {
                w.work = [None, None];
                w.leader = 1 - c;
                w.faults -= 1;
            });
            may("the leader pauses, and another leads".into(), &|w| {
                w.work[1 - c] = None;
                w.leader = 1 - c;
                w.faults -= 1;
            });
        }
        if let Some(flying) = &self.flying {
            may("what was late is done".into(), &|w| {
                w.apply(flying, 7);
                w.flying = None;
            });
        }
    }

    fn of_nodes(&self, setup: &Setup, may: &mut dyn FnMut(String, &dyn Fn(&mut World))) {
        for n in 0..NODES {
            let cut_off = self.cut_off == Some(n);
            // The agent's gate: asked after the connection is made and before any write, so
            // that an export toggled in between ends that connection.
            let exists = matches!(self.claims[n], Claim::Wanted | Claim::Attached);
            let gate = setup.sharing == Sharing::Exclusive
                || setup.hosts == Hosts::PerNode
                || (exists && !cut_off);
            for host in self.known[n].iter().filter(|_| self.connected[n].is_none() && gate) {
                let admitted =
                    self.allow.is_empty() || self.allow.split(',').any(|a| a == host.as_str());
                if self.exported && admitted {
                    may(format!("{n} connects"), &|w| w.connected[n] = Some(host.clone()));
                }
            }
            // Unstage, and with it the end of all that it knows. It may never come.
            if self.claims[n] == Claim::Leaving && !cut_off {
                may(format!("{n} unstages"), &|w| {
                    w.connected[n] = None;
                    w.known[n].clear();
                });
            }
            if self.cut_off.is_none() && self.faults > 0 {
                may(format!("{n} is cut off"), &|w| {
                    w.cut_off = Some(n);
                    w.faults -= 1;
                });
            }
        }
        may("the network is whole".into(), &|w| w.cut_off = None);
    }

    /// The name of the property that does not hold here.
    fn violated(&self, setup: &Setup) -> Option<&'static str> {
        let writers = self.connected.iter().flatten().count();
        match setup.sharing {
            Sharing::Exclusive if writers > 1 => return Some("RWO never two nodes able to write"),
            Sharing::Shared if writers > 2 => return Some("RWX never three"),
            _ => {}
        }
        for n in 0..NODES {
            if self.claims[n] == Claim::None && self.connected[n].is_some() {
                return Some("a node that is detached never writes");
            }
            let recorded = match &self.stage {
                Stage::Attached(a) => a.nodes().any(|k| k == &key(n)).then(|| a.host_of(&key(n))),
                Stage::Ready | Stage::Deleting => None,
            };
            if self.claims[n] == Claim::Attached
                && recorded.is_none_or(|host| !self.known[n].contains(&host))
            {
                return Some("a live attachment is never revoked by a retry");
            }
        }
        (!self.settles(setup)).then_some("progress once faults stop")
    }

    /// From here on all goes well: whoever is attached can be served, whoever leaves can
    /// leave, and then another can come.
    fn settles(&self, setup: &Setup) -> bool {
        let setup = &Setup { bug: Bug::None, ..*setup };
        let mut w = self.clone();
        w.work = [None, None];
        w.flying = None;
        let mut run = |order: Order| {
            for _ in 0..6 {
                match w.decide(order, setup) {
                    Step::Change(change) => w.apply(&change, 7),
                    Step::Done(_) => return true,
                    Step::Refused(_) => return false,
                }
            }
            false
        };
        let of = |claim| (0..NODES).filter(move |n| self.claims[*n] == claim);
        of(Claim::Attached).all(|n| run(Order::Publish(n, 90)))
            && (0..NODES).all(|n| run(Order::Unpublish(n)))
            && run(Order::Publish(2, 91))
            && w.exported
    }
}

fn closed_to_nobody(closed: &HostNqn) -> String {
    closed.to_string()
}

/// The mistake concerns a volume that nobody has.
fn pick<'a>(stage: &Stage, ready: &'a str, other: &'a str) -> &'a str {
    if *stage == Stage::Ready { ready } else { other }
}

/// Breadth first, so that the first violation found has the shortest way to it.
fn explore(setup: &Setup, at_most: usize) -> Result<usize, (&'static str, Vec<String>)> {
    let first = World::new(setup);
    let mut seen: HashMap<World, usize> = HashMap::from([(first.clone(), 0)]);
    let mut ways: Vec<(usize, String)> = vec![(0, String::new())];
    let mut queue = VecDeque::from([(first, 0)]);
    while let Some((world, number)) = queue.pop_front() {
        for (what, next) in world.successors(setup) {
            if seen.contains_key(&next) {
                continue;
            }
            let name = ways.len();
            assert!(name < at_most, "more than {at_most} states");
            ways.push((number, what));
            if let Some(property) = next.violated(setup) {
                let mut way = Vec::new();
                let mut at = name;
                while at != 0 {
                    way.push(ways[at].1.clone());
                    at = ways[at].0;
                }
                way.reverse();
                return Err((property, way));
            }
            seen.insert(next.clone(), name);
            queue.push_back((next, name));
        }
    }
    Ok(seen.len())
}

fn setup(sharing: Sharing, hosts: Hosts, bug: Bug) -> Setup {
    Setup { sharing, hosts, begins: 3, faults: 2, bug }
}

const AT_MOST: usize = 3_000_000;

#[test]
fn the_rules_hold_in_every_order() {
    for (name, sharing, hosts) in [
        ("rwo", Sharing::Exclusive, Hosts::One),
        ("rwx, one host NQN", Sharing::Shared, Hosts::One),
        ("rwx, a list", Sharing::Shared, Hosts::PerNode),
    ] {
        let began = Instant::now();
        match explore(&setup(sharing, hosts, Bug::None), AT_MOST) {
            Ok(states) => println!("{name}: {states} states explored, {:?}", began.elapsed()),
            Err((property, way)) => panic!("{name}: {property}:\n  {}", way.join("\n  ")),
        }
    }
}

#[test]
fn a_mistake_is_found() {
    for (bug, sharing, want) in [
        (Bug::SkipExportOff, Sharing::Exclusive, "never"),
        (Bug::SkipExportOff, Sharing::Shared, "never"),
        (Bug::OldLeaderActs, Sharing::Exclusive, ""),
        (Bug::LateForever, Sharing::Exclusive, ""),
        (Bug::OpenBetween, Sharing::Exclusive, "never"),
    ] {
        let found = explore(&setup(sharing, Hosts::One, bug), AT_MOST);
        let (property, way) = found.expect_err("the checker sees nothing");
        println!("{property}, in {} steps:\n  {}", way.len(), way.join("\n  "));
        assert!(property.contains(want), "{property}");
    }
}
