//! Where a volume can be reached from.
//!
//! An appliance has topology segments (`topology.kubernetes.io/zone=a`), or none: then it is
//! reached from everywhere. A node reaches it if it has all of them, with the same values.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rds_csi_proto::csi::{Topology, TopologyRequirement};

use crate::error::Error;

/// The segments of one appliance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments(BTreeMap<String, String>);

/// One of them: `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    key: String,
    value: String,
}

/// A name in a label's key or value: starts and ends with a letter or digit (Kubernetes,
/// "Labels and Selectors").
fn is_label_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_label_name(text),
        Some((domain, name)) => {
            domain.len() <= 253 && domain.split('.').all(is_label_name) && is_label_name(name)
        }
    }
}

impl FromStr for Segment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if is_label_key(key) && is_label_name(value) => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!(
                "topology segment {text:?}: expected KEY=VALUE, both as in a Kubernetes label, \
                 such as topology.kubernetes.io/zone=a"
            )),
        }
    }
}

impl FromIterator<Segment> for Segments {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        Self(segments.into_iter().map(|s| (s.key, s.value)).collect())
    }
}

impl fmt::Display for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        f.write_str(&pairs.join(","))
    }
}

impl Segments {
    /// From a configuration file.
    ///
    /// # Errors
    /// Names the segment that cannot be one.
    pub fn parse(map: &BTreeMap<String, String>) -> Result<Self, String> {
        map.iter().map(|(k, v)| format!("{k}={v}").parse::<Segment>()).collect()
    }

    /// Whether there is none, which means: everywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a node there reaches the appliance.
    #[must_use]
    pub fn reached_from(&self, place: &Topology) -> bool {
        self.0.iter().all(|(key, value)| place.segments.get(key) == Some(value))
    }

    /// As CSI writes it: nothing at all for everywhere.
    #[must_use]
    pub fn to_csi(&self) -> Vec<Topology> {
        if self.is_empty() {
            return Vec::new();
        }
        let segments = self.0.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        vec![Topology { segments }]
    }
}

/// Which of several appliances a new volume goes to, in their order of preference: the
/// first that is reached from the most wanted place.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` (CSI, CreateVolume: "Unable to provision in `accessible_topology`").
pub fn choose<'a, T>(
    candidates: impl Iterator<Item = (T, &'a Segments)> + Clone,
    wanted: Option<&TopologyRequirement>,
) -> Result<T, Error> {
    let places = || wanted.into_iter().flat_map(|w| w.preferred.iter().chain(&w.requisite));
    if places().next().is_none() {
        return candidates.map(|(candidate, _)| candidate).next().ok_or_else(|| nowhere(""));
    }
    for place in places() {
        let mut fitting = candidates.clone().filter(|(_, segments)| segments.reached_from(place));
        if let Some((candidate, _)) = fitting.next() {
            return Ok(candidate);
        }
    }
    let have: Vec<_> = candidates.map(|(_, segments)| segments.to_string()).collect();
    Err(nowhere(&have.join(" or ")))
}

fn nowhere(have: &str) -> Error {
    Error::NoTopology(format!(
        "accessibility_requirements: none of the places asked for reaches an appliance that may \
         be used, which needs {have:?}; label the nodes accordingly, or choose another appliance \
         (StorageClass parameter rds)"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tonic::Code;

    const ZONE: &str = "topology.kubernetes.io/zone";

    fn segments(texts: &[&str]) -> Segments {
        texts.iter().map(|t| t.parse::<Segment>().unwrap()).collect()
    }

    fn place(zone: &str) -> Topology {
        Topology { segments: [(ZONE.to_owned(), zone.to_owned())].into() }
    }

    #[test]
    fn segments_are_labels() {
        for bad in ["", "zone", "zone=", "=a", "a b=c", "zone=a b", "/x=a", "x/y/z=a", "zone=-a"] {
            assert!(bad.parse::<Segment>().is_err(), "{bad:?}");
        }
        let text = format!("{ZONE}=a");
        assert_eq!(segments(&[&text]).to_string(), text);
    }

    #[test]
    fn the_most_wanted_place_that_is_reached_decides() {
        let (a, b) = (segments(&[&format!("{ZONE}=a")]), segments(&[&format!("{ZONE}=b")]));
        let everywhere = Segments::default();
        let choose = |members: &[(&'static str, &Segments)], wanted: &[&str]| {
            let requirement = TopologyRequirement {
                requisite: wanted.iter().map(|z| place(z)).collect(),
                preferred: wanted.iter().rev().map(|z| place(z)).collect(),
            };
            super::choose(members.iter().copied(), Some(&requirement))
        };
        assert_eq!(choose(&[("A", &a), ("B", &b)], &["a", "b"]).unwrap(), "B");
        assert_eq!(choose(&[("A", &a), ("B", &b)], &["a", "c"]).unwrap(), "A");
        assert_eq!(choose(&[("A", &a), ("X", &everywhere)], &["c"]).unwrap(), "X");
        let error = choose(&[("A", &a), ("B", &b)], &["c"]).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert!(error.to_string().contains("zone=a or"), "{error}");
        assert_eq!(super::choose([("A", &a)].into_iter(), None).unwrap(), "A");
    }

    #[test]
    fn a_node_that_lacks_a_segment_is_elsewhere() {
        let two = segments(&[&format!("{ZONE}=a"), "rack=1"]);
        assert!(!two.reached_from(&place("a")));
        let mut here = place("a");
        here.segments.insert("rack".into(), "1".into());
        here.segments.insert("more".into(), "x".into());
        assert!(two.reached_from(&here));
        assert!(Segments::default().to_csi().is_empty() && two.to_csi().len() == 1);
    }
}
