//! Faults that tests order for single requests.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// What happens to a request that matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    /// Not carried out; answered with this.
    Reject { status: u16, detail: String },
    /// Carried out after a while.
    Delay { ms: u64 },
    /// Carried out; then the connection closes without an answer.
    LoseAnswer,
    /// Carried out; then nothing, on a connection that stays open.
    Hang,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `*` stands for anything; without it, a part of the request is enough.
    pub pattern: String,
    /// `None`: until cleared.
    pub times: Option<u32>,
    #[serde(flatten)]
    pub action: Action,
}

#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
}

/// What the rules say about one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub delay: Duration,
    pub reject: Option<(u16, String)>,
    pub lose_answer: bool,
    pub hang: bool,
}

impl Faults {
    pub fn add(&self, rule: Rule) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    pub fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn rules(&self) -> Vec<Rule> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges a request such as `POST /rest/disk/add slot=x` and counts it.
    pub fn judge(&self, request: &str) -> Verdict {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut verdict = Verdict::default();
        for rule in rules.iter_mut().filter(|r| r.times != Some(0)) {
            if !matches(&rule.pattern, request) {
                continue;
            }
            match &rule.action {
                Action::Delay { ms } => verdict.delay += Duration::from_millis(*ms),
                Action::LoseAnswer => verdict.lose_answer = true,
                Action::Hang => verdict.hang = true,
                // The first refusal answers; the others keep their count.
                Action::Reject { .. } if verdict.reject.is_some() => continue,
                Action::Reject { status, detail } => {
                    verdict.reject = Some((*status, detail.clone()))
                }
            }
            rule.times = rule.times.map(|n| n - 1);
        }
        rules.retain(|r| r.times != Some(0));
        verdict
    }
}

/// Without a `*` a substring; with it, the whole request piece by piece.
fn matches(pattern: &str, request: &str) -> bool {
    if !pattern.contains('*') {
        return request.contains(pattern);
    }
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = request.strip_prefix(first) else { return false };
    let mut last = "";
    for piece in pieces {
        last = piece;
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    // What follows the last `*` must end the request.
    rest.is_empty() || last.is_empty() || request.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("/disk/add", "POST /rest/disk/add slot=x"));
        assert!(matches("POST *slot=x", "POST /rest/disk/add slot=x"));
        assert!(!matches("POST *slot=x", "POST /rest/disk/add slot=xy"));
        assert!(!matches("GET *", "POST /rest/disk/add"));
        assert!(matches("", "anything"));
        assert!(matches("*", "anything"));
    }

    #[test]
    fn rules_are_used_up() {
        let faults = Faults::default();
        let reject = |n| Rule {
            pattern: "/disk/add".into(),
            times: Some(n),
            action: Action::Reject { status: 400, detail: "failure: x".into() },
        };
        faults.add(reject(2));
        faults.add(Rule { pattern: String::new(), times: None, action: Action::Delay { ms: 5 } });
        let judged: Vec<_> =
            (0..3).map(|_| faults.judge("POST /rest/disk/add").reject.is_some()).collect();
        assert_eq!(judged, [true, true, false]);
        assert_eq!(faults.judge("GET /rest/file").delay, Duration::from_millis(5));
        assert_eq!(faults.rules().len(), 1);
    }
}
