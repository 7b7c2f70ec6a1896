//! multipathd: whether it keeps off our namespaces, and whether it took one already.

use crate::error::Result;
use crate::kernel::sysfs;
use crate::session::shield;

use super::context::{Context, Host, Ran};
use super::{Finding, VOLUME_NQNS};

/// The property that our udev rules set on our namespaces, in our blacklist.
const PROPERTY: &str = "RDS_CSI_NAMESPACE";

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let host = &context.host;
    let mut findings = holders(host)?;
    let running = !host.processes("multipathd")?.is_empty();
    findings.push(blacklist(running, configuration(context)));
    Ok(findings)
}

/// What multipathd goes by, `None` without it on this host.
fn configuration(context: &Context) -> Result<Option<String>, String> {
    match &context.multipath_config {
        Ran::Ended { success: true, output } => Ok(Some(output.clone())),
        Ran::NotInstalled if context.contained => installed_files(&context.host),
        Ran::NotInstalled => Ok(None),
        Ran::Ended { success: false, output } => {
            // The tool may want a device-mapper that is not there; its files say as much.
            files(&context.host).map(Some).map_err(|e| format!("multipath -t: {output}; {e}"))
        }
        Ran::Unknown(reason) => Err(reason.clone()),
    }
}

/// From a container: the host's tool is not ours to run, but its files can be read.
fn installed_files(host: &Host) -> Result<Option<String>, String> {
    let programs = ["/sbin/multipathd", "/usr/sbin/multipathd", "/usr/local/sbin/multipathd"];
    let look = || -> Result<Option<String>> {
        for program in programs {
            if host.exists(program)? {
                return files(host).map(Some);
            }
        }
        Ok(None)
    };
    look().map_err(|e| e.to_string())
}

fn files(host: &Host) -> Result<String> {
    let mut text = host.text("/etc/multipath.conf")?.unwrap_or_default();
    for name in host.list("/etc/multipath/conf.d")? {
        if name.ends_with(".conf") {
            text.push('\n');
            text.push_str(
                &host.text(&format!("/etc/multipath/conf.d/{name}"))?.unwrap_or_default(),
            );
        }
    }
    Ok(text)
}

fn blacklist(running: bool, configuration: Result<Option<String>, String>) -> Finding {
    const CHECK: &str = "multipathd.blacklist";
    let mend = "install -m 0644 -D systemd/multipath/rds-csi.conf /etc/multipath/conf.d/rds-csi.conf \
                && systemctl reload multipathd";
    match configuration {
        Ok(None) if running => Finding::unknown(
            CHECK,
            "multipathd runs, but its `multipath` tool is not installed to ask",
        ),
        Ok(None) => Finding::ok(CHECK, "multipathd is not installed"),
        Ok(Some(text)) if blacklists(&text) => Finding::ok(CHECK, "our namespaces are on it"),
        Ok(Some(_)) if running => Finding::problem(
            CHECK,
            "multipathd runs and does not have our blacklist: it may take a namespace before \
             the shield does",
            mend,
        ),
        Ok(Some(_)) => Finding::warning(
            CHECK,
            "multipathd is installed without our blacklist; it does not run at present",
            mend,
        ),
        Err(reason) => Finding::unknown(CHECK, reason),
    }
}

/// Whether a `blacklist` section has our property. Sections are `name {`, lines, `}`
/// (multipath.conf(5)); exceptions are sections of another name.
fn blacklists(text: &str) -> bool {
    let mut sections: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.split(['#', '!']).next().unwrap_or_default().trim();
        if let Some(name) = line.strip_suffix('{') {
            sections.push(name.trim().to_owned());
        } else if line == "}" {
            sections.pop();
        } else if sections == ["blacklist"]
            && line.strip_prefix("property").is_some_and(|value| value.contains(PROPERTY))
        {
            return true;
        }
    }
    false
}

/// Devices over our namespaces: the shield, and nothing else.
fn holders(host: &Host) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for controller in sysfs::controllers()?.iter().filter(|c| c.nqn.starts_with(VOLUME_NQNS)) {
        let Some(namespace) = &controller.namespace else { continue };
        let directory = format!("/sys/block/{}/holders", namespace.name);
        for holder in host.list(&directory)? {
            let of_dm = |file: &str| host.text(&format!("/sys/block/{holder}/dm/{file}"));
            let uuid = of_dm("uuid")?.unwrap_or_default().trim().to_owned();
            let name = of_dm("name")?.unwrap_or_default().trim().to_owned();
            findings.extend(stranger(&namespace.name, &holder, &name, &uuid));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("namespaces.holders", "only shields lie over our namespaces"));
    }
    Ok(findings)
}

fn stranger(namespace: &str, holder: &str, name: &str, uuid: &str) -> Option<Finding> {
    if uuid.starts_with(shield::UUID_PREFIX) {
        return None;
    }
    let check = format!("namespaces.holders.{namespace}");
    if uuid.starts_with("mpath-") {
        return Some(Finding::problem(
            check,
            format!("multipathd has taken {namespace} as {name}: the shield cannot have it"),
            format!("multipath -f {name}; then see multipathd.blacklist"),
        ));
    }
    let what = if name.is_empty() { holder.to_owned() } else { format!("{name} ({holder})") };
    let mend = if name.is_empty() {
        format!("end what uses {holder} (mdadm --stop, ...)")
    } else {
        format!("dmsetup remove {name}")
    };
    Some(Finding::problem(
        check,
        format!(
            "{what} lies over {namespace}, past the shield: what is written through it is not ordered with the volume's own writes"
        ),
        mend,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    const SHIPPED: &str = include_str!("../../../systemd/multipath/rds-csi.conf");

    #[test]
    fn the_shipped_blacklist_is_recognised_and_an_exception_is_none() {
        assert!(blacklists(SHIPPED));
        let dumped = "defaults {\n\tverbosity 2\n}\nblacklist {\n\tdevnode \"^ram\"\n\tproperty \"^RDS_CSI_NAMESPACE$\"\n\tdevice {\n\t\tvendor \"X\"\n\t}\n}\n";
        assert!(blacklists(dumped));
        assert!(!blacklists(&dumped.replace("blacklist {", "blacklist_exceptions {")));
        assert!(!blacklists("blacklist {\n# property \"^RDS_CSI_NAMESPACE$\"\n}\n"));
        assert!(!blacklists(""));
    }

    #[test]
    fn a_missing_blacklist_matters_more_while_multipathd_runs() {
        let none = || Ok(Some("defaults {\n}\n".to_owned()));
        assert_eq!(blacklist(true, none()).verdict, Verdict::Problem);
        assert_eq!(blacklist(false, none()).verdict, Verdict::Warning);
        assert_eq!(blacklist(false, Ok(None)).verdict, Verdict::Ok);
        assert_eq!(blacklist(true, Ok(None)).verdict, Verdict::Unknown);
        assert_eq!(blacklist(true, Ok(Some(SHIPPED.into()))).verdict, Verdict::Ok);
        assert_eq!(blacklist(true, Err("x".into())).verdict, Verdict::Unknown);
    }

    #[test]
    fn from_a_container_the_hosts_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.with("/etc/multipath/conf.d/rds-csi.conf", SHIPPED);
        assert_eq!(installed_files(&host), Ok(None), "only configured");
        host.with("/usr/sbin/multipathd", "");
        assert!(blacklists(&installed_files(&host).unwrap().unwrap()));
    }

    #[test]
    fn holders_are_told_apart() {
        assert_eq!(stranger("nvme0n1", "dm-0", "rds-pvc-x", "RDSCSI-pvc-x"), None);
        let claimed = stranger("nvme0n1", "dm-0", "mpatha", "mpath-uuid.1");
        assert!(claimed.is_some_and(|f| f.seen.contains("multipathd")));
        let stray = stranger("nvme0n1", "dm-0", "stray", "");
        assert!(stray.is_some_and(|f| f.mend.as_deref() == Some("dmsetup remove stray")));
    }
}
