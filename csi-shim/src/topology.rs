//! Where this node is: labels that the scheduler may choose nodes by, given on the command line.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Kubernetes' limits for labels (apimachinery, util/validation); CSI's for topology are the same.
const NAME_MAX: usize = 63;
const PREFIX_MAX: usize = 253;

/// One `KEY=VALUE`, both valid as a label of a Kubernetes node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    key: String,
    value: String,
}

impl FromStr for Segment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or("expected KEY=VALUE, such as topology.rds.example/zone=a")?;
        let (prefix, name) = match key.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, key),
        };
        if prefix.is_some_and(|p| !is_domain(p)) || !is_label(name) {
            return Err(format!(
                "{key:?} is no label key: expected [DOMAIN/]NAME, NAME being 1 to {NAME_MAX} letters, \
                 digits, '-', '_' or '.', with a letter or digit at both ends"
            ));
        }
        if !is_label(value) {
            return Err(format!(
                "{value:?} is no value for {key}: expected 1 to {NAME_MAX} letters, digits, '-', '_' or \
                 '.', with a letter or digit at both ends"
            ));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// All of them together.
///
/// # Errors
/// If a key is given twice. To CSI, keys that differ only in case are the same.
pub fn together(segments: &[Segment]) -> Result<BTreeMap<String, String>, String> {
    let mut seen = BTreeMap::new();
    for segment in segments {
        if let Some(earlier) = seen.insert(segment.key.to_ascii_lowercase(), segment) {
            return Err(format!(
                "the topology has {}={} and {}={}; a node is in one place for each key",
                earlier.key, earlier.value, segment.key, segment.value
            ));
        }
    }
    Ok(seen.into_values().map(|s| (s.key.clone(), s.value.clone())).collect())
}

fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= NAME_MAX
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_domain(text: &str) -> bool {
    let is_part = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(inner)
    };
    text.len() <= PREFIX_MAX && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_kubernetes_takes_as_a_label_is_taken() {
        for text in [
            "zone=a",
            "topology.kubernetes.io/zone=eu-1.A_b",
            "a/b=c",
            &format!("{}/{}={}", "a".repeat(253), "n".repeat(63), "v".repeat(63)),
        ] {
            let segment: Segment = text.parse().unwrap();
            assert_eq!(format!("{}={}", segment.key, segment.value), text);
        }
        for text in [
            "zone",
            "=a",
            "zone=",
            "zone=-a",
            "zone=a b",
            "zone=a=b",
            "/zone=a",
            "a/b/c=d",
            "Upper.example/zone=a",
            "a..b/zone=a",
            "-a.example/zone=a",
            "zone.=a",
            "zöne=a",
            &format!("{}=a", "n".repeat(64)),
            &format!("zone={}", "v".repeat(64)),
            &format!("{}/zone=a", "a".repeat(254)),
        ] {
            assert!(text.parse::<Segment>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_is_in_one_place_for_each_key() {
        let parse = |texts: &[&str]| {
            together(&texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Segment>>())
        };
        assert_eq!(parse(&["zone=a", "rack=7"]).unwrap().len(), 2);
        assert!(parse(&[]).unwrap().is_empty());
        for twice in [["zone=a", "zone=b"], ["zone=a", "Zone=a"]] {
            assert!(parse(&twice).unwrap_err().contains("=a and"));
        }
    }
}
