//! What nobody looks after any more: shields and controllers of which the daemon knows
//! nothing, and journals that were set aside.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::kernel::dm::DeviceMapper;
use crate::kernel::sysfs::{self, Controller};
use crate::session::shield;

use super::context::Context;
use super::{Finding, VOLUME_NQNS};

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let known = context.volumes();
    let mut findings = shields(known.map(|v| v.iter().map(|v| v.volume_id.as_str()).collect()))?;
    let controllers = sysfs::controllers()?;
    let ours = controllers.iter().filter(|c| c.nqn.starts_with(VOLUME_NQNS));
    let nqns = known.map(|v| v.iter().map(|v| v.nqn.as_str()).collect());
    findings.extend(sessions(ours.collect(), nqns));
    Ok(findings)
}

fn shields(known: Option<HashSet<&str>>) -> Result<Vec<Finding>> {
    const CHECK: &str = "leftovers.shields";
    let dm = DeviceMapper::open()?;
    let mut seen = Vec::new();
    for (name, _) in dm.list()? {
        // One that goes meanwhile is no leftover.
        let Some(state) = dm.status(&name)? else { continue };
        let by_uuid = state.uuid.starts_with(shield::UUID_PREFIX);
        if by_uuid || shield::volume_of(&name).is_some() {
            seen.push(Shield {
                name,
                uuid: state.uuid,
                open: state.open_count,
                suspended: state.suspended,
            });
        }
    }
    let mut findings: Vec<_> = seen.iter().filter_map(|s| judge(s, known.as_ref())).collect();
    if known.is_none() && !seen.is_empty() {
        let count = seen.len();
        findings.push(Finding::unknown(
            CHECK,
            format!("{count} shields, and no agent to ask whether it knows them"),
        ));
    }
    if findings.is_empty() {
        findings
            .push(Finding::ok(CHECK, format!("{} shields, all known to the agent", seen.len())));
    }
    Ok(findings)
}

struct Shield {
    name: String,
    uuid: String,
    open: i32,
    suspended: bool,
}

fn judge(shield: &Shield, known: Option<&HashSet<&str>>) -> Option<Finding> {
    let Shield { name, uuid, open, suspended } = shield;
    let check = format!("leftovers.shields.{name}");
    let remove = format!(
        "unmount it, then: dmsetup message {name} 0 fail_if_no_path; dmsetup remove {name}"
    );
    let volume = shield::volume_of(name);
    let own_uuid = volume.as_ref().map(|v| format!("{}{v}", shield::UUID_PREFIX));
    if own_uuid.as_ref() != Some(uuid) {
        let seen = format!(
            "{name} has a name or UUID of ours but not both ({uuid:?}): it was not made by the agent, and stands in its way"
        );
        return Some(Finding::problem(check, seen, remove));
    }
    if known.is_some_and(|known| volume.is_some_and(|v| !known.contains(v.as_str()))) {
        let seen = format!(
            "{name} is a shield of which the agent knows nothing, open {open} times: nobody reconnects its session"
        );
        return Some(Finding::problem(check, seen, remove));
    }
    suspended.then(|| {
        let seen = format!("{name} is suspended: all I/O waits. The agent resumes it in the middle of a swap; if it stays so, somebody else suspended it");
        Finding::warning(check, seen, format!("dmsetup resume {name}"))
    })
}

fn sessions(ours: Vec<&Controller>, known: Option<HashSet<&str>>) -> Vec<Finding> {
    const CHECK: &str = "leftovers.controllers";
    let Some(known) = known else {
        return if ours.is_empty() {
            vec![Finding::ok(CHECK, "no controllers of volumes")]
        } else {
            let seen = format!(
                "{} controllers of volumes, and no agent to ask whether it knows them",
                ours.len()
            );
            vec![Finding::unknown(CHECK, seen)]
        };
    };
    let unknown: Vec<_> = ours.iter().filter(|c| !known.contains(c.nqn.as_str())).collect();
    if unknown.is_empty() {
        return vec![Finding::ok(
            CHECK,
            format!("{} controllers, all known to the agent", ours.len()),
        )];
    }
    let told = unknown.iter().map(|c| {
        let device = c.namespace.as_ref().map_or("no device", |n| n.name.as_str());
        Finding::problem(
            format!("{CHECK}.{}", c.name),
            format!("{} ({device}) is connected to {} without the agent: it has no shield, and nobody reconnects it", c.name, c.nqn),
            format!("if nothing uses it (lsblk, mount): nvme disconnect -d {}", c.name),
        )
    });
    told.collect()
}

/// Journals that were set aside.
pub(super) fn journals(context: &Context) -> Result<Vec<Finding>> {
    const CHECK: &str = "leftovers.journals";
    let dir = &context.subject.state_dir;
    let text =
        dir.to_str().ok_or_else(|| Error::Invalid(format!("{} is no text", dir.display())))?;
    let names = context.host.list(text)?;
    let aside: Vec<_> = names.iter().filter(|n| n.starts_with("journal.damaged-")).collect();
    Ok(vec![match aside.first() {
        None => Finding::ok(CHECK, "no journal was set aside"),
        Some(first) => Finding::warning(
            CHECK,
            format!(
                "{} journals were set aside as unusable, {text}/{first} for one: the agent began \
                 anew and took sessions over from the kernel",
                aside.len()
            ),
            format!(
                "look at the disk of {text} (smartctl, dmesg); then rm -r {text}/journal.damaged-*"
            ),
        ),
    }])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;
    use crate::kernel::sysfs::ControllerState;

    const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    fn made(uuid: &str) -> Shield {
        Shield { name: format!("rds-{VOLUME}"), uuid: uuid.into(), open: 0, suspended: false }
    }

    #[test]
    fn shields_nobody_knows() {
        let ours = made(&format!("RDSCSI-{VOLUME}"));
        let (known, none) = (HashSet::from([VOLUME]), HashSet::new());
        assert_eq!(judge(&ours, Some(&known)), None);
        assert_eq!(judge(&ours, None), None, "without an agent it is not known to be unknown");
        assert_eq!(judge(&ours, Some(&none)).unwrap().verdict, Verdict::Problem);
        assert!(judge(&made(""), Some(&known)).unwrap().seen.contains("not made by the agent"));
        let held = Shield { suspended: true, ..ours };
        assert_eq!(judge(&held, Some(&known)).unwrap().verdict, Verdict::Warning);
    }

    #[test]
    fn controllers_without_a_session() {
        let controller = Controller {
            name: "nvme3".into(),
            nqn: format!("{VOLUME_NQNS}x"),
            host_nqn: String::new(),
            address: String::new(),
            cntlid: String::new(),
            state: ControllerState::Live,
            namespace: None,
        };
        let verdict = |known: Option<HashSet<&str>>| sessions(vec![&controller], known)[0].verdict;
        assert_eq!(verdict(Some(HashSet::from([controller.nqn.as_str()]))), Verdict::Ok);
        assert_eq!(verdict(Some(HashSet::new())), Verdict::Problem);
        assert_eq!(verdict(None), Verdict::Unknown);
        assert_eq!(sessions(vec![], None)[0].verdict, Verdict::Ok);
    }
}
