#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn key(name: &str) -> NodeKey {
    NodeKey::of(&name.parse().unwrap())
}

fn shared(hosts: Hosts) -> Attachment {
    Attachment { hosts, ..Attachment::new(key("a"), HostNqn::random(), Sharing::Shared, 7) }
}

#[test]
fn long_node_names_become_distinct_short_keys() {
    let long = |last: char| key(&format!("{}.{}{last}", "a".repeat(60), "b".repeat(180)));
    let (a, b) = (long('c'), long('d'));
    assert_ne!(a, b);
    assert_eq!(a, long('c'));
    assert_eq!((a.to_string().len(), a.short().to_string().len()), (48, 14));
}

#[test]
fn two_nodes_are_written_with_their_clock() {
    let one = shared(Hosts::One);
    let two = one.joined_by(key("ip-10-0-0-12.example.internal"), 300, 1_700_000_000);
    let text = two.to_string();
    assert!(text.starts_with("node=a,ip-1~"), "{text}");
    assert!(text.ends_with("mode=rwx since=1700000000+300"), "{text}");
    assert_eq!(two.without(|_| false, 9), Some(two.clone()));
    let left = two.without(|n| n == &key("a"), 9).unwrap();
    assert_eq!((left.node.clone(), left.since), (key("ip-10-0-0-12.example.internal"), 9));
    assert_eq!((left.host, left.migration), (one.host.clone(), None));
    assert_eq!(two.without(|_| true, 9), None);
}

#[test]
fn each_node_of_a_list_has_a_name_of_its_own_that_lasts() {
    let one = shared(Hosts::PerNode);
    let two = one.joined_by(key("b"), 300, 8);
    let (a, b) = (two.host_of(&key("a")), two.host_of(&key("b")));
    assert!(a != b && a != two.host && !a.is_closed());
    assert_eq!(two.allow().to_string(), format!("{a},{b}"));
    assert_eq!(two.without(|n| n == &key("a"), 9).unwrap().allow().hosts(), [b]);
    // With one name for all, the name is the same and the list has one entry.
    let two = shared(Hosts::One).joined_by(key("b"), 300, 8);
    assert_eq!(two.host_of(&key("b")), two.host);
    assert_eq!(two.allow().to_string(), two.host.to_string());
}

#[test]
fn those_with_one_name_are_told_apart_by_what_their_agents_can_read() {
    let two = shared(Hosts::Gated).joined_by(key("b"), 300, 8);
    let [a, b] = ["a", "b"].map(|node| two.grant_of(&key(node)));
    assert!(a.host == b.host && a.arrival != b.arrival);
    for arrival in [a.arrival.unwrap(), b.arrival.unwrap()] {
        assert_eq!(arrival.as_str().parse::<Arrival>().unwrap(), arrival);
    }
    for hosts in [Hosts::One, Hosts::PerNode] {
        assert_eq!(shared(hosts).grant_of(&key("a")).arrival, None);
    }
}

#[test]
fn nobody_is_told_from_somebody() {
    assert!(Allow::is_nobody(&Allow::nobody(&HostNqn::closed()).to_string()));
    let somebody = HostNqn::random();
    for text in ["", somebody.as_str(), &shared(Hosts::PerNode).allow().to_string(), "any"] {
        assert!(!Allow::is_nobody(text), "{text:?}");
    }
}

proptest! {
    #[test]
    fn a_key_names_the_same_node_in_every_form(
        name in "[a-z0-9]([a-z0-9.-]{0,100}[a-z0-9])?",
        other in "[a-z0-9]([a-z0-9.-]{0,100}[a-z0-9])?",
    ) {
        let (long, other_key) = (key(&name), key(&other));
        prop_assert_eq!(&long, &long.short());
        prop_assert_eq!(NodeKey::parse(&long.short().to_string()), Some(long.clone()));
        prop_assert_eq!(long.short() == other_key, name == other);
        prop_assert_eq!(long == other_key, name == other);
    }
}
