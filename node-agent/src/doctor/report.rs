//! Prints the findings: lines for people, JSON for programs.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Finding, Verdict};

/// Whether all is well: warnings are, what is not known is not.
pub(crate) fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|f| matches!(f.verdict, Verdict::Ok | Verdict::Warning))
}

fn count(findings: &[Finding], verdict: Verdict) -> usize {
    findings.iter().filter(|f| f.verdict == verdict).count()
}

/// For programs; `version` is the command line's.
pub(crate) fn json(findings: &[Finding], version: u32) -> Value {
    let finding = |f: &Finding| {
        json!({
            "check": f.check,
            "verdict": f.verdict.name(),
            "seen": f.seen,
            "mend": f.mend,
        })
    };
    json!({
        "version": version,
        "problems": count(findings, Verdict::Problem),
        "unknown": count(findings, Verdict::Unknown),
        "warnings": count(findings, Verdict::Warning),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

/// For people: the worst last, where the eye is when the prompt is back. What is well is
/// listed only if `all`. `colour` makes a word stand out.
pub(crate) fn text(
    findings: &[Finding],
    all: bool,
    colour: impl Fn(Verdict, &str) -> String,
    out: &mut impl Write,
) -> io::Result<()> {
    let order = [Verdict::Ok, Verdict::Warning, Verdict::Unknown, Verdict::Problem];
    for verdict in order.into_iter().filter(|v| all || *v != Verdict::Ok) {
        for finding in findings.iter().filter(|f| f.verdict == verdict) {
            // Padded before it is coloured, since colours have no width.
            let word = colour(verdict, &format!("{:<8}", verdict.name()));
            writeln!(out, "{word} {}: {}", finding.check, finding.seen)?;
            if let Some(mend) = &finding.mend {
                writeln!(out, "         mend: {mend}")?;
            }
        }
    }
    let [ok, warnings, unknown, problems] = order.map(|v| count(findings, v));
    writeln!(out, "{ok} ok, {warnings} warnings, {unknown} unknown, {problems} problems")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_unknown_is_not_well() {
        assert!(is_well(&[Finding::ok("a", ""), Finding::warning("b", "", "")]));
        assert!(!is_well(&[Finding::unknown("a", "")]));
        assert!(!is_well(&[Finding::problem("a", "", "")]));
    }

    #[test]
    fn problems_come_last_with_their_remedy() {
        let findings = [Finding::problem("p", "bad", "do it"), Finding::ok("o", "good")];
        let mut bytes = Vec::new();
        text(&findings, true, |_, word| word.to_owned(), &mut bytes).unwrap();
        let said = String::from_utf8(bytes).unwrap();
        assert_eq!(
            said,
            "ok       o: good\nproblem  p: bad\n         mend: do it\n1 ok, 0 warnings, 0 unknown, 1 problems\n"
        );
        let mut bytes = Vec::new();
        text(&findings, false, |_, word| word.to_owned(), &mut bytes).unwrap();
        assert!(!String::from_utf8(bytes).unwrap().contains("good"));
    }
}
