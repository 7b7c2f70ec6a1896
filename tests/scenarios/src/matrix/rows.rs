//! What was seen, as it is printed and as it is kept.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process::results;
use crate::report::Report;

/// One fault and what became of the three volumes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) title: String,
    /// Longest time without a write, in seconds: ext4, xfs, raw block.
    pub(super) stalls: [f64; 3],
    /// From the end of the cause until all three had written again, in seconds.
    pub(super) back: Option<f64>,
    /// The states that each went through.
    pub(super) paths: [String; 3],
    pub(super) failed_writes: usize,
    /// What else was seen.
    pub(super) note: String,
    /// Nothing if all was as it should be, else what was not.
    pub(super) verdict: Option<String>,
}

impl Row {
    pub(super) fn summary(&self) -> String {
        let [ext4, xfs, raw] = self.stalls;
        let note = if self.note.is_empty() { String::new() } else { format!("; {}", self.note) };
        format!(
            "stood still: ext4 {ext4:.1} s, xfs {xfs:.1} s, raw block {raw:.1} s; {}{note}",
            self.path()
        )
    }

    /// The longest of the three, which tells most.
    pub(super) fn path(&self) -> &str {
        self.paths.iter().max_by_key(|p| p.len()).map_or("", String::as_str)
    }
}

/// One boot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) kernel: String,
    pub(super) release: String,
    /// `nvme_core.multipath`
    pub(super) multipath: String,
    pub(super) rows: Vec<Row>,
    /// What held after all of them, and what did not.
    pub(super) endings: Vec<(String, Option<String>)>,
}

fn trimmed(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            kernel: std::env::var("RDS_VM_KERNEL").unwrap_or_default(),
            release: trimmed("/proc/sys/kernel/osrelease"),
            multipath: trimmed("/sys/module/nvme_core/parameters/multipath"),
            rows: Vec::new(),
            endings: Vec::new(),
        }
    }

    pub(super) fn title(&self) -> String {
        format!("Linux {}, multipath {}", self.kernel, self.multipath)
    }

    /// Something that has to hold after all faults.
    pub(super) fn end(&mut self, report: &mut Report, name: &str, result: Result<()>) -> bool {
        self.endings.push((name.to_owned(), result.as_ref().err().map(|e| format!("{e:#}"))));
        report.case(name, result)
    }

    pub(super) fn save(&self) -> Result<()> {
        let path = results().join("matrix.json");
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
    }
}

pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

/// The states of a history from a moment on, as one line; what repeats is counted.
pub(super) fn state_path(history: &[Value], from_unix_ms: u64) -> String {
    let recent: Vec<_> = history
        .iter()
        .filter(|t| t["atUnixMs"].as_u64().is_some_and(|at| at >= from_unix_ms))
        .collect();
    let text = |t: &Value, key: &str| t[key].as_str().unwrap_or("?").to_owned();
    let Some(first) = recent.first() else { return String::new() };
    let mut states = vec![text(first, "from")];
    states.extend(recent.iter().map(|t| text(t, "to")));
    fold(&states)
}

/// `A B C B C B D` becomes `A → (B → C)×2 → B → D`.
fn fold(states: &[String]) -> String {
    let (mut said, mut rest) = (Vec::new(), states);
    while let [a, tail @ ..] = rest {
        let times = match tail {
            [b, ..] => {
                rest.chunks_exact(2).take_while(|pair| pair == &[a.clone(), b.clone()]).count()
            }
            [] => 1,
        };
        if times > 1 {
            said.push(format!("({a} → {})×{times}", tail[0]));
            rest = &rest[times * 2..];
        } else {
            said.push(a.clone());
            rest = tail;
        }
    }
    said.join(" → ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_counts_what_repeats() {
        let states: Vec<_> = "L D B C B C B L".split(' ').map(str::to_owned).collect();
        assert_eq!(fold(&states), "L → D → (B → C)×2 → B → L");
        assert_eq!(fold(&states[..1]), "L");
        assert_eq!(fold(&[]), "");
    }

    #[test]
    fn a_path_begins_where_the_fault_does() {
        let change = |at: u64, from: &str, to: &str| serde_json::json!({ "atUnixMs": at, "from": from, "to": to });
        let history =
            [change(1, "Absent", "Live"), change(5, "Live", "Lost"), change(6, "Lost", "Live")];
        assert_eq!(state_path(&history, 5), "Live → Lost → Live");
        assert_eq!(state_path(&history, 7), "");
    }
}
