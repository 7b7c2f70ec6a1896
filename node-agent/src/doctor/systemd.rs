//! Our units, where systemd runs.

use crate::error::Result;

use super::Finding;
use super::context::{Context, Daemon, Host, Ran};

/// The one of our units that an agent in a container lacks.
const SHUTDOWN: &str = "rds-csi-shutdown.service";
const UNIT_DIRECTORIES: [&str; 3] =
    ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    if context.contained {
        return Ok(vec![from_a_container(&context.host)?]);
    }
    if !context.host.exists("/run/systemd/system")? {
        return Ok(vec![Finding::ok("systemd", "systemd does not run here")]);
    }
    let served = matches!(context.daemon, Daemon::Answers(_));
    let units = context.units.iter();
    Ok(units.map(|(unit, enabled, active)| judge(unit, enabled, active, served)).collect())
}

/// kubelet sees to the agent itself; what is done at a shutdown is nobody's.
fn from_a_container(host: &Host) -> Result<Finding> {
    const CHECK: &str = "systemd.rds-csi-shutdown";
    for directory in UNIT_DIRECTORIES {
        let path = format!("{directory}/{SHUTDOWN}");
        if host.exists(&path)? {
            return Ok(Finding::ok(CHECK, format!("{path} is there")));
        }
    }
    Ok(Finding::warning(
        CHECK,
        "the agent runs in a container, and nothing writes its volumes back before the network \
         goes when this host shuts down; one that waits for a lost session may hang it",
        "drain the node before it is shut down",
    ))
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
    #![allow(clippy::unwrap_used)]
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

    #[test]
    fn from_a_container_only_the_shutdown_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(from_a_container(&host).unwrap().verdict, Verdict::Warning);
        host.with(&format!("/usr/lib/systemd/system/{SHUTDOWN}"), "");
        assert_eq!(from_a_container(&host).unwrap().verdict, Verdict::Ok);
    }
}
