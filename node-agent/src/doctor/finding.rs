//! What a check found.

use std::fmt::Display;

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    /// Works, but is weaker than it could be, or depends on something.
    Warning,
    /// Does not work, or will not when it is needed.
    Problem,
    /// Could not be found out. Not well.
    Unknown,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Unknown => "unknown",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its name, the same in every run: `udev.rules`, `volume.pvc-…`.
    pub(crate) check: String,
    pub(crate) verdict: Verdict,
    /// What was seen, and what it means here.
    pub(crate) seen: String,
    /// What to do about it: a command where there is one.
    pub(crate) mend: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: impl Into<String>, seen: impl Display) -> Self {
        Self::new(check, Verdict::Ok, seen, None)
    }

    pub(crate) fn warning(
        check: impl Into<String>,
        seen: impl Display,
        mend: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Warning, seen, Some(mend.into()))
    }

    pub(crate) fn problem(
        check: impl Into<String>,
        seen: impl Display,
        mend: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Problem, seen, Some(mend.into()))
    }

    pub(crate) fn unknown(check: impl Into<String>, seen: impl Display) -> Self {
        Self::new(check, Verdict::Unknown, seen, None)
    }

    fn new(
        check: impl Into<String>,
        verdict: Verdict,
        seen: impl Display,
        mend: Option<String>,
    ) -> Self {
        Self { check: check.into(), verdict, seen: seen.to_string(), mend }
    }
}
