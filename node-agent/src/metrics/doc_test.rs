//! Holds `docs/metrics.md` and `/metrics` to one another.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use rds_csi_proto::agent::State;

use super::labels::{Adopted, Attempt, Cause};
use super::process::Process;
use super::volumes::Volumes;
use super::volumes::tests::moment;
use super::{Metrics, labels};

const DOC: &str = include_str!("../../../docs/metrics.md");

/// What `/metrics` prints once each thing has happened.
fn printed() -> String {
    let metrics = Metrics::new().unwrap();
    metrics.register(Box::new(Process::new().unwrap())).unwrap();
    metrics.register(Box::new(Volumes::reading(moment).unwrap())).unwrap();
    metrics.transition(State::Live, State::Lost, Cause::ControllerGone);
    metrics.adoption_begins();
    metrics.answered("NodeGetInfo", tonic::Code::Ok, Duration::from_millis(1));
    metrics.text().unwrap()
}

fn names(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// The words in backquotes in the first column of a table, if they are names of metrics.
fn documented() -> BTreeSet<&'static str> {
    let cells = DOC.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|word| word.starts_with("rds_csi_agent_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let text = printed();
    assert_eq!(names(&text), documented());
}

#[test]
fn what_alerts_ask_for_exists() {
    let text = printed();
    let known = names(&text);
    let words = DOC.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    for word in words.filter(|word| word.starts_with("rds_csi_agent_")) {
        let base = ["_count", "_sum", "_bucket"].iter().find_map(|end| word.strip_suffix(end));
        assert!(known.contains(word) || base.is_some_and(|b| known.contains(b)), "{word}");
    }
}

#[test]
fn units_and_prefixes_are_kept() {
    for name in names(&printed()) {
        assert!(name.starts_with("rds_csi_agent_") || name.starts_with("process_"), "{name}");
        for unit in ["_ms", "_millis", "_kb", "_mib", "_minutes"] {
            assert!(!name.contains(unit), "{name} is not in seconds or bytes");
        }
    }
}

#[test]
fn label_values_are_documented() {
    let values = Attempt::ALL.map(Attempt::label).into_iter();
    let values = values.chain(Adopted::ALL.map(Adopted::label));
    let values = values.chain(Cause::ALL.map(Cause::label));
    for value in values {
        assert!(DOC.contains(&format!("`{value}`")), "{value}");
    }
    for state in labels::STATES {
        assert!(DOC.contains(crate::session::record::state_name(state)), "{state:?}");
    }
}
