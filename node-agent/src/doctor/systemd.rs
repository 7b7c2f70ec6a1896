//! Our units, where systemd runs.

use crate::error::Result;

use super::Finding;
use super::context::{Context, Daemon, Ran};

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    if !context.host.exists("/run/systemd/system")? {
        return Ok(vec![Finding::ok("systemd", "systemd does not run here")]);
    }
    let served = matches!(context.daemon, Daemon::Answers(_));
    let units = context.units.iter();
    Ok(units.map(|(unit, enabled, active)| judge(unit, enabled, active, served)).collect())
}

fn judge(unit: &str, enabled: &Ran, active: &Ran, served: bool) -> Finding {
    let check = format!("systemd.{}", unit.trim_end_matches(".service"));
    let word = |ran: &Ran| match ran {
        // The exit status says no more than the word does.
        Ran::Ended { output, .. } => Ok(output.trim().to_owned()),
        Ran::NotInstalled => Err("systemctl is not installed".to_owned()),
        Ran::Unknown(reason) => Err(reason.clone()),
    };
    let (enabled, active) = match (word(enabled), word(active)) {
        (Ok(enabled), Ok(active)) => (enabled, active),
        (Err(reason), _) | (_, Err(reason)) => return Finding::unknown(check, reason),
    };
    let seen = format!("{enabled}, {active}");
    let mend = format!("systemctl enable --now {unit}");
    match (enabled.as_str(), active.as_str()) {
        ("enabled" | "enabled-runtime" | "static", "active") => Finding::ok(check, seen),
        // In a container, or by hand.
        (other, _) if served && (other.contains("No such file") || other == "not-found") => {
            Finding::warning(
                check,
                "not installed; after a reboot of this host nobody starts it",
                "install the package, unless the agent runs in a container",
            )
        }
        (_, "active") => Finding::warning(check, format!("{seen}: not after a reboot"), mend),
        (_, "failed") => Finding::problem(
            check,
            &seen,
            format!("journalctl -u {unit}; then systemctl restart {unit}"),
        ),
        _ => Finding::warning(check, seen, mend),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn units_are_judged_by_both_words() {
        let said = |text: &str| Ran::Ended { success: true, output: format!("{text}\n") };
        let judge = |a: &str, b: &str| judge("x.service", &said(a), &said(b), true).verdict;
        assert_eq!(judge("enabled", "active"), Verdict::Ok);
        assert_eq!(judge("disabled", "active"), Verdict::Warning);
        assert_eq!(judge("enabled", "failed"), Verdict::Problem);
        assert_eq!(judge("enabled", "inactive"), Verdict::Warning);
        assert_eq!(judge("not-found", "inactive"), Verdict::Warning);
        let unknown = Ran::Unknown("no answer".into());
        assert_eq!(
            super::judge("x.service", &unknown, &said("active"), true).verdict,
            Verdict::Unknown
        );
    }
}
