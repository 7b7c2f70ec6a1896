#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn key(n: u8) -> NodeKey {
    NodeKey::of(&format!("node-{n}").parse().unwrap())
}

fn request(n: u8, sharing: Sharing) -> Publish {
    Publish {
        node: key(n),
        sharing,
        hosts: Hosts::Gated,
        may_share: MayShare::Yes,
        limit: 300,
        now: 1_000,
        fresh: HostNqn::random(),
        closed: HostNqn::closed(),
    }
}

fn leave(n: Option<u8>) -> Unpublish {
    let closed = HostNqn::closed();
    Unpublish { node: n.map(key), departure: Departure::Unproven, now: 2_000, closed }
}

/// An item on an appliance that does what it is told.
struct Item {
    stage: Stage,
    exported: bool,
    allow: String,
    changes: u32,
}

impl Item {
    fn new() -> Self {
        let allow = Allow::nobody(&HostNqn::closed()).to_string();
        Self { stage: Stage::Ready, exported: false, allow, changes: 0 }
    }

    fn view(&self) -> View<'_> {
        View { stage: &self.stage, exported: self.exported, allow: &self.allow }
    }

    fn apply(&mut self, change: Change) {
        self.changes += 1;
        self.stage = change.stage.unwrap_or(self.stage.clone());
        self.allow = change.allow.map_or(self.allow.clone(), |a| a.to_string());
        self.exported = change.export.map_or(self.exported, |e| e == Export::On);
    }

    fn run<T>(&mut self, decide: impl Fn(View<'_>) -> Step<T>) -> Result<T, Refusal> {
        for _ in 0..6 {
            match decide(self.view()) {
                Step::Change(change) => self.apply(change),
                Step::Done(done) => return Ok(done),
                Step::Refused(why) => return Err(why),
            }
        }
        panic!("no end in sight: {:?}", self.stage)
    }

    fn grant(&mut self, request: &Publish) -> Result<Grant, Refusal> {
        self.run(|view| publish(view, request))
    }

    fn publish(&mut self, request: &Publish) -> Result<HostNqn, Refusal> {
        self.grant(request).map(|grant| grant.host)
    }

    fn unpublish(&mut self, request: &Unpublish) {
        self.run(|view| unpublish(view, request)).unwrap();
    }

    fn nodes(&self) -> Vec<NodeKey> {
        match &self.stage {
            Stage::Attached(a) => a.nodes().cloned().collect(),
            _ => Vec::new(),
        }
    }
}

#[test]
fn one_node_and_the_same_epoch_again() {
    let mut item = Item::new();
    let host = item.publish(&request(1, Sharing::Exclusive)).unwrap();
    assert_eq!((item.changes, item.exported), (1, true));
    assert_eq!(item.publish(&request(1, Sharing::Exclusive)), Ok(host.clone()));
    // However long it has been, and whatever is claimed.
    let late = Publish { now: u64::MAX, ..request(2, Sharing::Exclusive) };
    assert!(matches!(item.publish(&late), Err(Refusal::HeldBy(_))));
    let mixed = request(2, Sharing::Shared);
    assert!(matches!(item.publish(&mixed), Err(Refusal::HeldBy(_))));
    assert_eq!(item.publish(&request(1, Sharing::Shared)), Err(Refusal::OtherTerms));
    item.unpublish(&leave(Some(2)));
    assert_eq!((item.nodes(), item.exported), (vec![key(1)], true));
    item.unpublish(&leave(Some(1)));
    assert!(item.nodes().is_empty() && !item.exported && Allow::is_nobody(&item.allow));
    // At once after a detach that is complete: nothing is waited for, the epoch is another.
    assert_ne!(item.publish(&request(2, Sharing::Exclusive)), Ok(host));
}

#[test]
fn a_second_node_comes_only_for_a_migration() {
    let mut item = Item::new();
    let first = item.publish(&request(1, Sharing::Shared)).unwrap();
    let unproven = MayShare::Unproven("no machine".into());
    let stranger = Publish { may_share: unproven, ..request(2, Sharing::Shared) };
    assert!(matches!(item.publish(&stranger), Err(Refusal::NotAMigration(..))));
    assert_eq!(item.publish(&request(2, Sharing::Shared)), Ok(first.clone()));
    // Repeated without proof: it is no news any more.
    assert_eq!(item.publish(&stranger), Ok(first.clone()));
    assert_eq!(item.publish(&request(1, Sharing::Shared)), Ok(first.clone()));
    assert!(matches!(item.publish(&request(3, Sharing::Shared)), Err(Refusal::HeldByTwo(_))));
    // Source and target, each can be the one that stays.
    item.unpublish(&leave(Some(1)));
    assert_eq!((item.nodes(), item.exported), (vec![key(2)], true));
    assert_eq!(item.publish(&request(1, Sharing::Shared)), Ok(first));
    assert_eq!(item.nodes(), [key(2), key(1)]);
    item.unpublish(&leave(None));
    assert!(item.nodes().is_empty() && !item.exported);
}

#[test]
fn nodes_with_one_host_name_need_agents_that_ask() {
    let one = |n| Publish { hosts: Hosts::One, ..request(n, Sharing::Shared) };
    let mut item = Item::new();
    assert_eq!(item.grant(&one(1)).unwrap().arrival, None);
    // Also if the controller would have it otherwise by now: the first node's agent does not ask.
    for second in [one(2), request(2, Sharing::Shared)] {
        assert!(matches!(item.publish(&second), Err(Refusal::NotAMigration(..))));
    }
    // Of those that ask, each has something of its own every time that it comes.
    let mut item = Item::new();
    let mut given = vec![item.grant(&request(1, Sharing::Shared)).unwrap()];
    for n in [2, 1, 2, 1] {
        let grant = item.grant(&request(n, Sharing::Shared)).unwrap();
        assert_eq!(item.grant(&request(n, Sharing::Shared)), Ok(grant.clone()), "repeated");
        assert!(grant.arrival.is_some() && !given.contains(&grant), "{grant:?} of {given:?}");
        given.push(grant);
        item.unpublish(&leave(Some(3 - n)));
    }
    assert_eq!(item.grant(&request(1, Sharing::Exclusive)), Err(Refusal::OtherTerms));
    item.unpublish(&leave(None));
    assert_eq!(item.grant(&request(1, Sharing::Exclusive)).unwrap().arrival, None);
}

#[test]
fn a_migration_that_is_stuck_is_told_of_and_not_torn_down() {
    let mut item = Item::new();
    item.publish(&request(1, Sharing::Shared)).unwrap();
    item.publish(&request(2, Sharing::Shared)).unwrap();
    let at = |now, n| Publish { now, ..request(n, Sharing::Shared) };
    assert!(matches!(item.publish(&at(1_299, 3)), Err(Refusal::HeldByTwo(_))));
    assert!(matches!(item.publish(&at(1_300, 3)), Err(Refusal::MigrationStuck(_))));
    assert!(item.publish(&at(9_999, 2)).is_ok() && item.publish(&at(9_999, 1)).is_ok());
    assert_eq!((item.nodes().len(), item.exported), (2, true));
    // One leaves: the next migration has a clock of its own.
    item.unpublish(&leave(Some(2)));
    assert!(item.publish(&at(9_999, 3)).is_ok());
    assert!(matches!(item.publish(&at(10_000, 2)), Err(Refusal::HeldByTwo(_))));
}

#[test]
fn a_leaver_is_shut_out_before_the_other_goes_on() {
    for (hosts, departure, off) in [
        (Hosts::Gated, Departure::Unproven, true),
        (Hosts::PerNode, Departure::Unproven, true),
        (Hosts::Gated, Departure::Proven, false),
        (Hosts::PerNode, Departure::Proven, false),
    ] {
        let mut item = Item::new();
        item.publish(&Publish { hosts, ..request(1, Sharing::Shared) }).unwrap();
        let gone = item.publish(&request(2, Sharing::Shared)).unwrap();
        let leaves = Unpublish { departure, ..leave(Some(2)) };
        let mut was_off = false;
        while let Step::Change(change) = unpublish(item.view(), &leaves) {
            item.apply(change);
            was_off |= !item.exported;
        }
        assert_eq!((was_off, item.exported, item.nodes()), (off, true, vec![key(1)]));
        assert_eq!(item.allow.contains(gone.as_str()), hosts == Hosts::Gated);
    }
}

#[test]
fn what_is_not_as_recorded_is_put_right_in_the_safe_order() {
    let mut item = Item::new();
    let host = item.publish(&request(1, Sharing::Shared)).unwrap();
    // Open to any host: off first, and on only when that was seen.
    item.allow = String::new();
    let Step::Change(first) = publish(item.view(), &request(1, Sharing::Shared)) else { panic!() };
    assert_eq!((first.export, first.stage.is_none()), (Some(Export::Off), true));
    // A second node changes nothing of that order.
    let Step::Change(also) = publish(item.view(), &request(2, Sharing::Shared)) else { panic!() };
    assert_eq!((also, item.publish(&request(1, Sharing::Shared))), (first, Ok(host)));
    // Left off by a detach that stopped half-way: whoever calls next gives it back.
    item.publish(&request(2, Sharing::Shared)).unwrap();
    item.unpublish(&leave(Some(2)));
    item.exported = false;
    item.unpublish(&leave(Some(2)));
    assert!(item.exported);
    // Exported with nobody on record.
    item.unpublish(&leave(None));
    item.exported = true;
    item.unpublish(&leave(Some(3)));
    assert!(!item.exported);
    item.exported = true;
    item.stage = Stage::Deleting;
    assert_eq!(item.publish(&request(1, Sharing::Shared)), Err(Refusal::Deleting));
    item.unpublish(&leave(None));
    assert_eq!((item.exported, &item.stage), (false, &Stage::Deleting));
}

proptest! {
    // Whatever the order of calls, and wherever each was cut short.
    #[test]
    fn never_more_nodes_than_allowed(
        shared: bool,
        calls in proptest::collection::vec((0u8..4, 0u8..3, 0usize..4), 0..60),
    ) {
        let sharing = if shared { Sharing::Shared } else { Sharing::Exclusive };
        let mut item = Item::new();
        for (n, kind, steps) in calls {
            let (comes, leaves) = (request(n, sharing), leave((kind < 2).then_some(n)));
            for _ in 0..=steps {
                let change = match kind {
                    0 => match publish(item.view(), &comes) {
                        Step::Change(change) => change,
                        _ => break,
                    },
                    _ => match unpublish(item.view(), &leaves) {
                        Step::Change(change) => change,
                        _ => break,
                    },
                };
                item.apply(change);
            }
            let most = if shared { 2 } else { 1 };
            prop_assert!(item.nodes().len() <= most);
            prop_assert!(!item.allow.is_empty());
        }
    }
}
