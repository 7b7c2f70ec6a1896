//! What the API server writes down of the requests of those who have to ask for rights.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

pub(crate) const POLICY: &str = "audit-policy.json";
pub(crate) const LOG: &str = "audit.log";

pub(crate) fn policy() -> Value {
    let users: Vec<_> =
        crate::USERS.iter().map(|(user, _)| *user).filter(|user| *user != "admin").collect();
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        // A watch is written down when it begins.
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "users": users},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    })
}

/// With how it was decided, as the API server puts it: `allow` or `forbid`.
pub(crate) fn asked(
    dir: &Path,
    user: &str,
    decision: Option<&str>,
) -> anyhow::Result<BTreeSet<String>> {
    let file = dir.join(LOG);
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read what was asked for in {}", file.display()))?;
    // The last line may be half written.
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events
        .filter(|event| event["user"]["username"] == user)
        .filter(|event| {
            let decided = &event["annotations"]["authorization.k8s.io/decision"];
            decision.is_none_or(|decision| decided == decision)
        })
        .filter_map(|event| {
            let object = event.get("objectRef")?;
            let word = |key: &str| object[key].as_str().filter(|t| !t.is_empty());
            let resource = match word("subresource") {
                Some(part) => format!("{}/{part}", word("resource")?),
                None => word("resource")?.to_owned(),
            };
            Some(crate::manifests::right(event["verb"].as_str()?, &resource, word("apiGroup")))
        })
        .collect())
}
