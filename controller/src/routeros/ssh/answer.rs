//! What a line of the console printed.

use super::console::Sentinel;
use crate::routeros::error::{Verdict, classify};
use crate::routeros::rows;

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
            (json, _) => match rows::parse(json.as_bytes(), rows::Rule::Only(wanted)) {
                Ok(rows) => Verdict::Rows(rows),
                Err(e) => Verdict::Nonsense(format!("what it printed is not as expected ({e})")),
            },
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

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
