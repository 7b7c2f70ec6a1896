//! udev: whether it runs, whether it has our rules, and which rules of others touch what the
//! agent has set.

use crate::error::Result;
use crate::udev_rules::{FILE as RULES, SHIPPED};

use super::Finding;
use super::context::{Context, Host, Ran};

/// In udev's order: a file hides those of the same name in later directories (udev(7)).
const DIRECTORIES: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let mut findings =
        vec![if context.contained { running(&context.host)? } else { daemon(&context.udev_ping) }];
    findings.push(rules(installed(&context.host, RULES)?));
    findings.extend(others(&context.host)?);
    Ok(findings)
}

fn daemon(ping: &Ran) -> Finding {
    const CHECK: &str = "udev.daemon";
    match ping {
        Ran::Ended { success: true, .. } => Finding::ok(CHECK, "udevd answers"),
        Ran::Ended { success: false, output } => Finding::problem(
            CHECK,
            format!(
                "udevd does not answer ({}): new devices get neither links nor our rules",
                output.trim()
            ),
            "systemctl restart systemd-udevd",
        ),
        Ran::NotInstalled => {
            Finding::unknown(CHECK, "udevadm is not installed, so udevd was not asked")
        }
        Ran::Unknown(reason) => Finding::unknown(CHECK, reason),
    }
}

/// From a container, where there is no udevadm to ask it with.
fn running(host: &Host) -> Result<Finding> {
    const CHECK: &str = "udev.daemon";
    // systemd's, and eudev's.
    for name in ["systemd-udevd", "udevd"] {
        if let Some(pid) = host.processes(name)?.first() {
            return Ok(Finding::ok(CHECK, format!("{name} runs, process {pid}")));
        }
    }
    Ok(Finding::problem(
        CHECK,
        "no udevd runs on the host: new devices get neither links nor our rules",
        "start the host's udevd",
    ))
}

/// The file that udev reads, with its path.
fn installed(host: &Host, name: &str) -> Result<Option<(String, String)>> {
    for directory in DIRECTORIES {
        let path = format!("{directory}/{name}");
        if let Some(text) = host.text(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

/// What udev reads of a file: lines, continued ones joined, without comments.
fn lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()
}

fn rules(installed: Option<(String, String)>) -> Finding {
    const CHECK: &str = "udev.rules";
    let mend = format!(
        "install -m 0644 systemd/udev/{RULES} /usr/lib/udev/rules.d/ && udevadm control --reload"
    );
    let why =
        "LVM, md, btrfs and udisks may take the volumes' devices, and udev hangs on one that waits";
    match installed {
        None => Finding::problem(CHECK, format!("{RULES} is in no rules.d: {why}"), mend),
        Some((path, text)) if lines(&text).is_empty() => Finding::problem(
            CHECK,
            format!("{path} is empty, and hides the real one: {why}"),
            format!("rm {path}; {mend}"),
        ),
        Some((path, text)) if lines(&text) != lines(SHIPPED) => Finding::warning(
            CHECK,
            format!("{path} is not what this version ships: edited, or of another version"),
            format!("compare, then: {mend}"),
        ),
        Some((path, _)) => Finding::ok(CHECK, format!("{path}, as shipped")),
    }
}

/// Rules of nvme-cli and of vendors.
fn others(host: &Host) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for directory in DIRECTORIES {
        for name in host.list(directory)? {
            if !name.ends_with(".rules") || seen.contains(&name) {
                continue;
            }
            let path = format!("{directory}/{name}");
            let Some(text) = host.text(&path)? else { continue };
            seen.push(name.clone());
            if name == "70-nvmf-autoconnect.rules" && !lines(&text).is_empty() {
                findings.push(autoconnect(&path));
            }
            findings.extend(rewrites(&path, &text));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("udev.others", "no rules of others connect, or change timeouts"));
    }
    Ok(findings)
}

fn autoconnect(path: &str) -> Finding {
    Finding::warning(
        "udev.autoconnect",
        format!(
            "{path} connects whatever a discovery controller lists, with this host's own NQN and \
             nvme-cli's timeouts. The agent makes no discovery controllers, so it does nothing \
             unless somebody else does (nvme connect-all, /etc/nvme/discovery.conf)"
        ),
        format!(
            "keep the appliance out of /etc/nvme/discovery.conf, or: ln -s /dev/null /etc/udev/rules.d/{}",
            "70-nvmf-autoconnect.rules"
        ),
    )
}

/// A rule that sets timeouts of controllers, unless it is for another vendor's model.
fn rewrites(path: &str, text: &str) -> Option<Finding> {
    let sets = |line: &&String| {
        ["ctrl_loss_tmo", "fast_io_fail_tmo", "reconnect_delay"].iter().any(|attribute| {
            let assignment = format!("ATTR{{{attribute}}}=");
            line.match_indices(&assignment)
                .any(|(at, _)| !line[at + assignment.len()..].starts_with('='))
        })
    };
    let for_a_model = |line: &&String| line.contains("{model}==");
    let lines = lines(text);
    let line = lines.iter().filter(sets).find(|line| !for_a_model(line))?;
    let name = path.rsplit('/').next().unwrap_or(path);
    Some(Finding::warning(
        format!("udev.timeouts.{name}"),
        format!(
            "{path} changes timeouts of every controller: {line}. I/O then stays with a lost \
             controller for longer, out of the shield's reach, or the kernel gives it up sooner"
        ),
        "limit that rule to the vendor's own models (ATTR{model}==...), or override it in /etc/udev/rules.d",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    #[test]
    fn rules_are_compared_by_what_udev_reads() {
        let at = |text: &str| rules(Some(("/x".into(), text.into()))).verdict;
        assert_eq!(at(SHIPPED), Verdict::Ok);
        assert_eq!(at(&format!("# a comment\n\n{SHIPPED}")), Verdict::Ok);
        assert_eq!(at(&SHIPPED.replace("RDSCSI-", "OTHER-")), Verdict::Warning);
        assert_eq!(at("# nothing\n"), Verdict::Problem);
        assert_eq!(rules(None).verdict, Verdict::Problem);
    }

    #[test]
    fn the_first_directory_wins() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(installed(&host, RULES).unwrap(), None);
        for directory in ["usr/lib/udev/rules.d", "etc/udev/rules.d"] {
            std::fs::create_dir_all(dir.path().join(directory)).unwrap();
            std::fs::write(dir.path().join(directory).join(RULES), directory).unwrap();
        }
        assert_eq!(installed(&host, RULES).unwrap().unwrap().1, "etc/udev/rules.d");
    }

    #[test]
    fn only_rules_for_all_controllers_are_told_of() {
        let all = r#"ACTION=="add", SUBSYSTEM=="nvme", ATTR{ctrl_loss_tmo}="-1""#;
        assert!(rewrites("/d/71-nvmf-x.rules", all).is_some());
        let joined = "SUBSYSTEM==\"nvme\", \\\n ATTR{ctrl_loss_tmo}=\"600\"";
        assert!(rewrites("/d/71-nvmf-x.rules", joined).is_some());
        for harmless in [
            r#"ATTR{model}=="Vendor X", ATTR{ctrl_loss_tmo}="-1""#,
            r#"# ATTR{ctrl_loss_tmo}="-1""#,
            r#"ATTR{ctrl_loss_tmo}=="600", ENV{A}="1""#,
            r#"ATTR{iopolicy}="round-robin""#,
        ] {
            assert_eq!(rewrites("/d/x.rules", harmless), None, "{harmless}");
        }
    }

    #[test]
    fn from_a_container_udevd_is_looked_for_among_the_hosts_processes() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(running(&host).unwrap().verdict, Verdict::Problem);
        host.with("/proc/77/comm", "systemd-udevd\n");
        let finding = running(&host).unwrap();
        assert_eq!(finding.verdict, Verdict::Ok);
        assert!(finding.seen.contains("77"), "{finding:?}");
    }

    #[test]
    fn udevd_that_was_not_asked_is_unknown() {
        assert_eq!(daemon(&Ran::NotInstalled).verdict, Verdict::Unknown);
        assert_eq!(
            daemon(&Ran::Ended { success: false, output: "x".into() }).verdict,
            Verdict::Problem
        );
    }
}
