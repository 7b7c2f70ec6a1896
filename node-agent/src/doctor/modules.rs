//! The kernel: its version and what that means here, its modules, and what they are set to.

use crate::error::Result;
use crate::kernel::sysfs;

use super::context::{Context, Host};
use super::{Finding, VOLUME_NQNS};

/// What the agent needs, and whether the kernel fetches it by itself at the first use.
const MODULES: [(&str, bool); 6] = [
    ("nvme_core", false),
    ("nvme_fabrics", false),
    ("nvme_tcp", false),
    ("dm_mod", false),
    ("dm_multipath", false),
    ("dm_service_time", true),
];

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let host = &context.host;
    let mut findings = vec![];
    let release = host.text("/proc/sys/kernel/osrelease")?.unwrap_or_default();
    let release = release.trim();
    findings.push(version(release));
    let directory = format!("/lib/modules/{release}");
    let builtin = host.text(&format!("{directory}/modules.builtin"))?;
    let loadable = host.text(&format!("{directory}/modules.dep"))?;
    let fetches = fetches_modules(host)?;
    for (name, on_demand) in MODULES {
        let on_demand = on_demand && fetches;
        let loaded = host.exists(&format!("/sys/module/{name}"))?;
        findings.push(module(name, on_demand, loaded, builtin.as_deref(), loadable.as_deref()));
    }
    findings.push(if host.exists("/dev/nvme-fabrics")? {
        Finding::ok("kernel.nvme-fabrics", "/dev/nvme-fabrics is there")
    } else {
        let seen = "/dev/nvme-fabrics is missing: nothing can be connected";
        Finding::problem("kernel.nvme-fabrics", seen, "modprobe nvme-tcp")
    });
    findings.push(native_multipath(
        host.text("/sys/module/nvme_core/parameters/multipath")?.as_deref(),
    ));
    findings.extend(delayed_removal(host)?);
    Ok(findings)
}

/// Whether this kernel can fetch what it needs: by the program that is named there, which a host such
/// as Talos does not have.
fn fetches_modules(host: &Host) -> Result<bool> {
    let program = host.text("/proc/sys/kernel/modprobe")?.unwrap_or_default();
    let program = program.trim();
    Ok(!program.is_empty() && host.exists(program)?)
}

/// Major and minor number of `6.1.0-40-amd64`.
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What each kernel does is in docs/design.md, section 2.
fn version(release: &str) -> Finding {
    const CHECK: &str = "kernel.version";
    match parse_version(release) {
        None => Finding::unknown(CHECK, format!("the release {release:?} has no version")),
        Some((..5, _)) => Finding::problem(
            CHECK,
            format!("Linux {release} is older than 5.0: NVMe/TCP is missing there"),
            "install a newer kernel; 6.1 and 6.12 are tested",
        ),
        Some((5, _)) => Finding::warning(
            CHECK,
            format!("Linux {release}: should work, but only 6.1 and later are tested"),
            "install a newer kernel",
        ),
        Some((6, ..12)) => Finding::ok(
            CHECK,
            format!(
                "Linux {release}: retries for ever where a host is refused; the agent deletes \
                 the controller of a fenced volume"
            ),
        ),
        Some((7, 2..) | (8.., _)) => Finding::ok(
            CHECK,
            format!(
                "Linux {release}: gives a controller up when the target says Do Not Retry, and \
                 can delay the removal of namespaces, which must stay off; the agent connects anew"
            ),
        ),
        Some(_) => Finding::ok(
            CHECK,
            format!(
                "Linux {release}: gives a controller up when the target says Do Not Retry; the \
                 agent connects anew"
            ),
        ),
    }
}

/// `kernel/drivers/nvme/host/nvme-tcp.ko.xz` → `nvme_tcp`
fn module_name(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// Lines of modules.builtin, or of modules.dep, whose paths end at a colon.
fn lists(text: &str, module: &str) -> bool {
    text.lines()
        .map(|line| line.split_once(':').map_or(line, |(path, _)| path))
        .any(|path| module_name(path).as_deref() == Some(module))
}

fn module(
    name: &str,
    on_demand: bool,
    loaded: bool,
    builtin: Option<&str>,
    loadable: Option<&str>,
) -> Finding {
    let check = format!("module.{name}");
    let file = name.replace('_', "-");
    if loaded {
        return Finding::ok(check, "loaded");
    }
    if builtin.is_some_and(|list| lists(list, name)) {
        return Finding::ok(check, "built into the kernel");
    }
    match loadable {
        Some(list) if lists(list, name) && on_demand => {
            Finding::ok(check, "not loaded yet; the kernel loads it when it is needed")
        }
        Some(list) if lists(list, name) => Finding::warning(
            check,
            "not loaded, though it could be",
            format!("modprobe {file}; at each boot: /usr/lib/modules-load.d/rds-csi.conf"),
        ),
        Some(_) => Finding::problem(
            check,
            "this kernel does not have it",
            "install the kernel's extra modules (linux-modules-extra-$(uname -r), \
             kernel-modules-extra), or another kernel than a cloud flavour",
        ),
        None => Finding::unknown(
            check,
            "not loaded, and without /lib/modules/$(uname -r)/modules.dep it is not known \
             whether it could be",
        ),
    }
}

fn native_multipath(parameter: Option<&str>) -> Finding {
    const CHECK: &str = "kernel.nvme-multipath";
    match parameter.map(str::trim) {
        Some("Y") => Finding::ok(CHECK, "on: namespaces have heads, and shields lie over those"),
        Some("N") => Finding::ok(CHECK, "off: multipathd, where it runs, must know our blacklist"),
        Some(other) => Finding::unknown(CHECK, format!("nvme_core.multipath is {other:?}")),
        None => Finding::ok(CHECK, "this kernel has no native NVMe multipath"),
    }
}

/// Linux 7.2 can keep a namespace whose paths are gone. I/O would then wait below the shield,
/// where nobody can fail it.
fn delayed_removal(host: &Host) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for controller in sysfs::controllers()?.iter().filter(|c| c.nqn.starts_with(VOLUME_NQNS)) {
        let Some(namespace) = &controller.namespace else { continue };
        let path = format!("/sys/block/{}/delayed_removal_secs", namespace.name);
        let Some(value) = host.text(&path)? else { continue };
        findings.push(delayed(&namespace.name, &path, value.trim()));
    }
    Ok(findings)
}

fn delayed(namespace: &str, path: &str, value: &str) -> Finding {
    let check = format!("kernel.delayed-removal.{namespace}");
    if value == "0" {
        return Finding::ok(check, "off, so that I/O comes up to the shield");
    }
    let seen = format!("{path} is {value}: I/O waits below the shield, where it cannot be failed");
    Finding::problem(check, seen, format!("echo 0 >{path}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    const DEP: &str = "kernel/drivers/md/dm-multipath.ko.xz: kernel/drivers/md/dm-mod.ko.xz\n\
                       kernel/drivers/nvme/host/nvme-tcp.ko: kernel/drivers/nvme/host/nvme-core.ko\n";

    #[test]
    fn modules_are_found_wherever_they_are() {
        let builtin = Some("kernel/drivers/md/dm-mod.ko\n");
        let judge = |name: &str, loaded| module(name, false, loaded, builtin, Some(DEP)).verdict;
        assert_eq!(judge("nvme_tcp", true), Verdict::Ok);
        assert_eq!(judge("dm_mod", false), Verdict::Ok);
        assert_eq!(judge("nvme_tcp", false), Verdict::Warning);
        // It is only named as what another one needs.
        assert_eq!(judge("nvme_core", false), Verdict::Problem);
        assert_eq!(module("dm_multipath", true, false, None, Some(DEP)).verdict, Verdict::Ok);
        assert_eq!(module("dm_multipath", true, false, None, None).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_host_without_modprobe_fetches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert!(!fetches_modules(&host).unwrap());
        host.with("/proc/sys/kernel/modprobe", "/sbin/modprobe\n");
        assert!(!fetches_modules(&host).unwrap(), "only named");
        host.with("/sbin/modprobe", "");
        assert!(fetches_modules(&host).unwrap());
        host.with("/proc/sys/kernel/modprobe", "\n");
        assert!(!fetches_modules(&host).unwrap(), "switched off");
    }

    #[test]
    fn versions_are_judged() {
        for (release, verdict) in [
            ("4.19.0-27-amd64", Verdict::Problem),
            ("5.15.0", Verdict::Warning),
            ("6.1.0-40-amd64", Verdict::Ok),
            ("6.12.9", Verdict::Ok),
            ("7.2.0-rc1", Verdict::Ok),
            ("mainline", Verdict::Unknown),
        ] {
            assert_eq!(version(release).verdict, verdict, "{release}");
        }
        assert!(version("6.1.0").seen.contains("for ever"));
        assert!(version("6.12.0").seen.contains("Do Not Retry"));
    }

    #[test]
    fn a_delayed_removal_is_a_problem_with_its_command() {
        assert_eq!(delayed("nvme0n1", "/p", "0").verdict, Verdict::Ok);
        let finding = delayed("nvme0n1", "/p", "60");
        assert_eq!(finding.mend.as_deref(), Some("echo 0 >/p"));
    }
}
