//! The rights that the chart gives are those that the shim asks a real API server for: the two
//! tests beside this one hold what they have seen against their part of them.

use std::collections::BTreeSet;

use rds_kube::{Cluster, manifests};

use crate::bench::PART;

/// For the answers to the agent.
pub const ANSWERS: &[&str] =
    &["get csinodes.storage.k8s.io", "get volumeattachments.storage.k8s.io"];
/// For Events.
pub const EVENTS: &[&str] = &[
    "create events.events.k8s.io",
    "get persistentvolumes",
    "get volumeattachments.storage.k8s.io",
    "patch events.events.k8s.io",
];

/// Each of these was asked for, and nothing else.
pub fn used(cluster: &Cluster, rights: &[&str]) {
    let asked = cluster.asked_by("shim").unwrap();
    assert!(asked.iter().map(String::as_str).eq(rights.iter().copied()), "{asked:?}, {rights:?}");
}

#[test]
fn the_chart_gives_what_is_used_and_no_more() {
    let used: BTreeSet<String> = ANSWERS.iter().chain(EVENTS).map(|r| (*r).to_owned()).collect();
    assert_eq!(manifests::granted(PART).unwrap(), used);
}
