//! LVM: volumes of virtual machines hold volume groups of their own, which are not this
//! host's to activate, and its commands wait with a volume that waits.

use crate::error::Result;
use crate::kernel::dm::DeviceMapper;
use crate::session::shield;

use super::Finding;
use super::context::{Context, Host};

const FILTER: &str = "global_filter = [ \"r|^/dev/mapper/rds-.*|\" ]";

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let mut findings = vec![configuration(&context.host)?];
    findings.push(stacked(&context.host)?);
    Ok(findings)
}

fn configuration(host: &Host) -> Result<Finding> {
    let installed = ["/sbin/lvm", "/usr/sbin/lvm"]
        .iter()
        .try_fold(false, |found, path| Ok::<_, crate::error::Error>(found || host.exists(path)?))?;
    if !installed {
        return Ok(Finding::ok("lvm.filter", "LVM is not installed"));
    }
    let mut text = host.text("/etc/lvm/lvm.conf")?.unwrap_or_default();
    // lvmlocal.conf overrides it (lvm.conf(5)).
    text.push('\n');
    text.push_str(&host.text("/etc/lvm/lvmlocal.conf")?.unwrap_or_default());
    let devices_file = host.exists("/etc/lvm/devices/system.devices")?;
    Ok(judge(&settings(&text), devices_file))
}

/// What matters here of LVM's configuration.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    /// `None`: left to LVM's default.
    use_devices_file: Option<bool>,
    /// Whether a filter rejects our devices.
    filtered: bool,
}

/// Reads `name = value` lines; arrays may go over several.
fn settings(text: &str) -> Settings {
    let mut found = Settings::default();
    let mut lines = text.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
    while let Some(line) = lines.next() {
        let Some((name, value)) = line.split_once('=') else { continue };
        // Names may be given with their section, as in devices/filter.
        let name = name.trim().rsplit('/').next().unwrap_or_default();
        let mut value = value.trim().to_owned();
        if value.starts_with('[') {
            while !value.contains(']') {
                let Some(more) = lines.next() else { break };
                value.push_str(more);
            }
        }
        match name {
            "use_devicesfile" => found.use_devices_file = Some(value == "1"),
            "filter" | "global_filter" => found.filtered |= rejects_shields(&value),
            _ => {}
        }
    }
    found
}

/// Whether the first pattern that speaks of shields, or of everything, rejects. The patterns
/// are regular expressions; only what they plainly say is believed.
fn rejects_shields(value: &str) -> bool {
    let patterns = value.split('"').skip(1).step_by(2);
    for pattern in patterns {
        let body = pattern.get(1..).unwrap_or_default();
        let everything = ["|.*|", "/.*/", "|.*/|"].contains(&body);
        if everything || body.contains("rds-") {
            return pattern.starts_with('r');
        }
    }
    false
}

fn judge(settings: &Settings, devices_file: bool) -> Finding {
    const CHECK: &str = "lvm.filter";
    if settings.filtered {
        return Finding::ok(CHECK, "a filter keeps LVM off shields");
    }
    // The default of LVM 2.03.12 and later; older ones have no such file.
    if devices_file && settings.use_devices_file != Some(false) {
        return Finding::ok(CHECK, "LVM only looks at the devices in its devices file");
    }
    Finding::warning(
        CHECK,
        "only our udev rules keep LVM off shields: it does not activate what it finds there, \
         but vgs and the like, run by hand, read each device and wait with one that waits",
        format!("vgimportdevices -a (a devices file), or in /etc/lvm/lvm.conf: {FILTER}"),
    )
}

/// Devices on top of shields: a guest's volume group that this host has activated.
fn stacked(host: &Host) -> Result<Finding> {
    const CHECK: &str = "lvm.activated";
    let mut found = Vec::new();
    for (name, number) in DeviceMapper::open()?.list()? {
        if shield::volume_of(&name).is_none() {
            continue;
        }
        for holder in host.list(&format!("/sys/block/dm-{}/holders", number.minor))? {
            let label = host.text(&format!("/sys/block/{holder}/dm/name"))?;
            found.push((name.clone(), label.map_or(holder, |l| l.trim().to_owned())));
        }
    }
    Ok(match found.first() {
        None => Finding::ok(CHECK, "nothing lies over a shield"),
        Some((shield, holder)) => Finding::problem(
            CHECK,
            format!(
                "{holder} lies over {shield}: the host has activated what belongs to the volume's user, and keeps the volume open"
            ),
            format!("vgchange -an (if it is LVM's), or dmsetup remove {holder}"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn filters_are_read_as_lvm_writes_them() {
        for (text, filtered) in [
            ("devices {\n\tglobal_filter = [ \"r|^/dev/mapper/rds-.*|\" ]\n}", true),
            ("\tfilter = [\n\t\"a|^/dev/sda|\",\n\t\"r|.*|\"\n\t]", true),
            ("filter = [ \"a|.*|\", \"r|^/dev/mapper/rds-.*|\" ]", false),
            ("# global_filter = [ \"r|^/dev/mapper/rds-.*|\" ]", false),
            ("global_filter = [ \"r|^/dev/cdrom|\" ]", false),
            ("", false),
        ] {
            assert_eq!(settings(text).filtered, filtered, "{text}");
        }
    }

    #[test]
    fn a_devices_file_counts_only_if_it_is_used() {
        let none = Settings::default();
        assert_eq!(judge(&none, true).verdict, Verdict::Ok);
        assert_eq!(judge(&none, false).verdict, Verdict::Warning);
        assert_eq!(judge(&settings("use_devicesfile = 0"), true).verdict, Verdict::Warning);
        assert_eq!(judge(&settings("devices/use_devicesfile=1"), true).verdict, Verdict::Ok);
    }
}
