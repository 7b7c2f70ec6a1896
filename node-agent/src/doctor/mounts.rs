//! Mounts: whether what the agent mounts reaches kubelet, and what has gone bad.

use std::path::Path;

use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::mounts::{Mount, MountTable};
use crate::session::shield;

use super::Finding;
use super::context::Context;

const KUBELET: &str = "/var/lib/kubelet";

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let own = MountTable::read()?;
    let mut findings = vec![if context.host.exists(KUBELET)? {
        let table = match context.daemon_pid {
            Some(pid) => {
                let path = context.host.path(&format!("/proc/{pid}/mountinfo"));
                MountTable::read_from(&path).map_err(Error::kernel("read", path.display()))?
            }
            None => own.clone(),
        };
        propagation(&table)
    } else {
        Finding::ok("mounts.propagation", format!("{KUBELET} does not exist: no kubelet here"))
    }];
    findings.extend(bad(&own, &context.host)?);
    Ok(findings)
}

/// The mount that a path lies on: the last one of the deepest mount point.
fn covering<'a>(table: &'a MountTable, path: &Path) -> Option<&'a Mount> {
    let deepest = table.iter().filter(|m| path.starts_with(&m.mount_point));
    let point = &deepest.max_by_key(|m| m.mount_point.components().count())?.mount_point;
    table.at(point).last().copied()
}

fn propagation(table: &MountTable) -> Finding {
    const CHECK: &str = "mounts.propagation";
    match covering(table, Path::new(KUBELET)) {
        Some(mount) if mount.shared.is_some() => Finding::ok(
            CHECK,
            format!("{KUBELET} is on {}, which is shared", mount.mount_point.display()),
        ),
        Some(mount) => Finding::problem(
            CHECK,
            format!(
                "{KUBELET} is on {}, which is not shared where the agent sees it: volumes that it \
                 mounts do not appear in pods",
                mount.mount_point.display()
            ),
            format!(
                "mount --make-rshared {}; and no option in the agent's unit that gives it mounts \
                 of its own (PrivateMounts, ProtectSystem, ...)",
                mount.mount_point.display()
            ),
        ),
        None => Finding::unknown(CHECK, "the mount table has no root"),
    }
}

/// Mounts of devices that are gone, and of file systems that have stopped.
fn bad(table: &MountTable, host: &super::context::Host) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for mount in table.iter() {
        // Anonymous devices (major 0) have no block device.
        if mount.device.major == 0 || !ours(mount) {
            continue;
        }
        let there = host.exists(&mount.device.sysfs().display().to_string())?;
        findings.extend(judge(mount, there));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("mounts.state", "no mount of a volume is stale or has stopped"));
    }
    Ok(findings)
}

/// Mounted from a shield, or where kubelet has this driver's volumes.
fn ours(mount: &Mount) -> bool {
    let name = std::fs::read_to_string(mount.device.sysfs().join("dm/name")).unwrap_or_default();
    let from_shield = shield::volume_of(name.trim()).is_some();
    let source = mount.source.file_name().and_then(|n| n.to_str());
    let by_source = source.is_some_and(|n| shield::volume_of(n).is_some());
    let point = mount.mount_point.to_string_lossy();
    from_shield
        || by_source
        || (point.starts_with(KUBELET) && point.contains(rds_csi_proto::DRIVER_NAME))
}

fn judge(mount: &Mount, there: bool) -> Option<Finding> {
    let point = mount.mount_point.display();
    let check = format!("mounts.state.{point}");
    if !there {
        let DeviceNumber { major, minor } = mount.device;
        return Some(Finding::problem(
            check,
            format!("{point} is mounted from device {major}:{minor}, which is gone"),
            format!("end its pod, then: umount -l {point}"),
        ));
    }
    // A volume that was mounted read-only has the option on the mount, too.
    (mount.is_superblock_read_only() && !mount.is_read_only()).then(|| {
        Finding::problem(
            check,
            format!("{}'s file system has stopped writing after an error: {point}", mount.fs_type),
            "see dmesg; delete the pod, so that it is mounted anew",
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    const ROOT: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";

    fn table(text: &str) -> MountTable {
        MountTable::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_mount_that_kubelet_is_on_decides() {
        assert_eq!(propagation(&table(ROOT)).verdict, Verdict::Ok);
        let private = ROOT.replace(" shared:1", "");
        assert_eq!(propagation(&table(&private)).verdict, Verdict::Problem);
        let own = format!("{ROOT}30 22 8:2 / /var/lib/kubelet rw - xfs /dev/sdb rw\n");
        let finding = propagation(&table(&own));
        assert_eq!(finding.verdict, Verdict::Problem);
        assert!(finding.mend.unwrap().starts_with("mount --make-rshared /var/lib/kubelet;"));
        // A directory whose name merely begins alike is another one.
        let alike = format!("{ROOT}30 22 8:2 / /var/lib/kube rw - xfs /dev/sdb rw\n");
        assert_eq!(propagation(&table(&alike)).verdict, Verdict::Ok);
        assert_eq!(propagation(&table("")).verdict, Verdict::Unknown);
    }

    #[test]
    fn stale_and_stopped_mounts() {
        let text = "40 22 253:0 / /mnt rw shared:9 - ext4 /dev/dm-0 rw\n";
        let judge = |text: &str, there| judge(table(text).iter().next().unwrap(), there);
        assert_eq!(judge(text, true), None);
        assert!(judge(text, false).unwrap().seen.contains("253:0"));
        let stopped = text.replace("/dev/dm-0 rw", "/dev/dm-0 ro,errors=remount-ro");
        assert!(judge(&stopped, true).unwrap().seen.contains("stopped"));
        let meant = stopped.replace("/mnt rw", "/mnt ro");
        assert_eq!(judge(&meant, true), None);
    }
}
