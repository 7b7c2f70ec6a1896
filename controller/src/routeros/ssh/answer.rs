//! What a line of the console printed.

use serde_json::Value;

use super::console::Sentinel;
use crate::routeros::error::{Verdict, classify};
use crate::routeros::wire::Row;

/// What the console says of a line that it does not understand. It reads a line as a whole
/// before it does anything, so such a line did nothing.
const NOT_UNDERSTOOD: &[&str] =
    &["expected end of command", "syntax error (line", "bad command name"];

/// Reads all that was printed. The rows keep only the properties that were asked for: REST
/// leaves the others out by itself.
pub(in crate::routeros) fn read(
    output: &[u8],
    sentinel: &Sentinel,
    expects_rows: bool,
    wanted: &[&str],
) -> Verdict {
    let text = String::from_utf8_lossy(output);
    let text = text.trim_end_matches(['\r', '\n', ' ']);
    let mark = |word: &str| format!("{} {word}", sentinel.as_str());
    // The error's own text may hold line breaks, so it is all that follows its mark.
    if let Some((before, error)) = text.split_once(&mark("ERR ")) {
        let error = bare(error);
        return match before.contains(&mark("DID")) {
            true => Verdict::Nonsense(format!("the change was made, then came: {error}")),
            false => classify(&error),
        };
    }
    if let Some(before) = text.strip_suffix(&mark("OK")) {
        let did = mark("DID");
        let printed = before.split_once(&did).map_or(before, |(_, after)| after).trim();
        return match (printed, expects_rows) {
            ("", true) => Verdict::Nonsense("there is nothing before its end".into()),
            ("", false) => Verdict::Rows(Vec::new()),
            (json, _) => rows(json, wanted).map_or_else(Verdict::Nonsense, Verdict::Rows),
        };
    }
    let shown: String = text.chars().take(200).collect();
    if NOT_UNDERSTOOD.iter().any(|known| text.starts_with(known)) {
        return Verdict::InvalidValue(shown);
    }
    match classify(&bare(text)) {
        policy @ Verdict::PolicyMissing(_) => policy,
        _ => Verdict::Nonsense(format!("it ends without its mark: {shown:?}")),
    }
}

/// The error without where it arose, which some versions append: ` (/disk/add; line 1)`.
fn bare(error: &str) -> String {
    let error = error.trim();
    match error.rsplit_once(" (/") {
        Some((text, place)) if place.ends_with(')') && place.contains("; line ") => text.into(),
        _ => error.into(),
    }
}

fn rows(json: &str, wanted: &[&str]) -> Result<Vec<Row>, String> {
    let value: Value =
        serde_json::from_str(json).map_err(|e| format!("what it printed is not JSON ({e})"))?;
    let objects = match value {
        Value::Array(list) => list,
        object @ Value::Object(_) => vec![object],
        _ => return Err("it printed neither a list nor an object".into()),
    };
    objects.into_iter().map(|object| row(object, wanted)).collect()
}

/// Numbers and flags may come as such or as texts.
fn row(value: Value, wanted: &[&str]) -> Result<Row, String> {
    let Value::Object(map) = value else { return Err("a row is not an object".into()) };
    let mut row = Row::new();
    for (key, value) in map {
        if !wanted.contains(&key.as_str()) {
            continue;
        }
        let text = match value {
            Value::String(text) => text,
            Value::Bool(flag) => flag.to_string(),
            // A number with a fraction or an exponent has lost digits.
            Value::Number(n) if n.is_u64() || n.is_i64() => n.to_string(),
            // `nil`: the console's word for a value that is not there.
            Value::Null => continue,
            other => return Err(format!("{key} is {other}, not a single value")),
        };
        row.insert(key, text);
    }
    Ok(row)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
