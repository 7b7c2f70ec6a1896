//! Device-mapper: whether it can be had, and whether its multipath target is new enough.

use crate::error::Result;
use crate::kernel::dm::{DeviceMapper, TargetVersion};

use super::Finding;
use super::context::Context;

/// `queue_mode bio` is in Linux 4.8 (drivers/md/dm-mpath.c, `parse_features`); Linux 5.0,
/// the oldest with NVMe/TCP, has 1.13.0.
const QUEUE_MODE_SINCE: [u32; 2] = [1, 12];

pub(super) fn check(_: &Context) -> Result<Vec<Finding>> {
    const CONTROL: &str = "device-mapper.control";
    let dm = match DeviceMapper::open() {
        Ok(dm) => dm,
        Err(error) => {
            let mend = "modprobe dm-multipath; run as root";
            return Ok(vec![Finding::problem(CONTROL, error, mend)]);
        }
    };
    let versions = dm.target_versions()?;
    Ok(vec![Finding::ok(CONTROL, "/dev/mapper/control answers"), multipath(&versions)])
}

fn multipath(versions: &[TargetVersion]) -> Finding {
    const CHECK: &str = "device-mapper.multipath";
    let Some(target) = versions.iter().find(|t| t.name == "multipath") else {
        let seen = "the target is not loaded: no shield can be made";
        return Finding::problem(CHECK, seen, "modprobe dm-multipath");
    };
    let [major, minor, patch] = target.version;
    let version = format!("version {major}.{minor}.{patch}");
    if [major, minor] < QUEUE_MODE_SINCE {
        let seen = format!("{version} has no `queue_mode bio`, which shields are made with");
        return Finding::problem(CHECK, seen, "install a newer kernel; 6.1 and 6.12 are tested");
    }
    Finding::ok(CHECK, format!("{version}, with `queue_mode bio`"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn an_old_or_missing_target_is_a_problem() {
        let with = |version| vec![TargetVersion { name: "multipath".into(), version }];
        assert_eq!(multipath(&with([1, 14, 0])).verdict, Verdict::Ok);
        assert_eq!(multipath(&with([2, 0, 0])).verdict, Verdict::Ok);
        assert_eq!(multipath(&with([1, 9, 0])).verdict, Verdict::Problem);
        assert_eq!(multipath(&[]).verdict, Verdict::Problem);
    }
}
