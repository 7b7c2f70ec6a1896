//! What there is of all volumes on this node and on the target, and what there should be:
//! a line each. A line that is there twice is a mount that was stacked or a controller that
//! was duplicated.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cast::Member;
use super::plan::{Kind, TARGETS};
use crate::process::run;
use crate::stack::Stack;

/// In order.
pub(super) type Facts = Vec<String>;

/// What the model says.
pub(super) fn expected(cast: &[Member]) -> Facts {
    let mut facts = Facts::new();
    for member in cast {
        let (state, id) = (member.state, &member.volume.id);
        let fs_type = member.fs_type().unwrap_or("devtmpfs");
        if state.attached {
            facts.push(format!("{id}: exported"));
        }
        if state.staged {
            let staging = member.volume.staging.display();
            facts.push(format!("{id}: shield, suspended 0"));
            facts.push(format!("{id}: controller, live"));
            facts.push(format!("{id}: the agent says Live, at {staging}"));
            facts.push(format!("{id}: the journal says Staged, {}", member.published().len()));
            if member.kind != Kind::Raw {
                facts.push(format!("{id}: {fs_type} rw at {staging}"));
            }
        }
        for n in (0..TARGETS).filter(|n| state.published[*n]) {
            let target = member.target(n);
            let mode = if member.kind == Kind::ReadOnly { "ro" } else { "rw" };
            facts.push(format!("{id}: {fs_type} {mode} at {}", target.display()));
            facts.push(format!("{id}: something at {}", target.display()));
        }
    }
    facts.sort();
    facts
}

/// What the kernel, the target and the agent say.
pub(super) fn seen(stack: &Stack, cast: &[Member]) -> Result<Facts> {
    let mut facts = Facts::new();
    let shields = shields()?;
    for shield in &shields {
        let volume = &shield.volume;
        facts.push(format!("{volume}: shield, suspended {}", shield.suspended));
        if shield.read_only {
            facts.push(format!("{volume}: shield, read-only"));
        }
    }
    mounts(&shields, &mut facts)?;
    for entry in fs::read_dir("/sys/class/nvme")?.flatten() {
        let attribute = |name: &str| fs::read_to_string(entry.path().join(name));
        // One that goes meanwhile is looked at again.
        let (Ok(nqn), Ok(state)) = (attribute("subsysnqn"), attribute("state")) else { continue };
        facts.push(format!("{}: controller, {}", volume_of(&nqn), state.trim()));
    }
    for entry in fs::read_dir("/sys/kernel/config/nvmet/subsystems")?.flatten() {
        facts.push(format!("{}: exported", volume_of(&entry.file_name().to_string_lossy())));
    }
    for status in stack.statuses()? {
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let (volume, state, staging) = (text("volumeId"), text("state"), text("stagingPath"));
        facts.push(format!("{volume}: the agent says {state}, at {staging}"));
    }
    let journal = journal(stack)?;
    for (volume, stage) in journal["stages"].as_object().context("no stages in the journal")? {
        let published = stage["publishes"].as_array().map_or(0, Vec::len);
        let step = stage["step"].as_str().map_or(stage["step"].to_string(), str::to_owned);
        facts.push(format!("{volume}: the journal says {step}, {published}"));
    }
    for member in cast {
        for target in (0..TARGETS).map(|n| member.target(n)) {
            if fs::symlink_metadata(&target).is_ok() {
                facts.push(format!("{}: something at {}", member.volume.id, target.display()));
            }
        }
    }
    facts.sort();
    Ok(facts)
}

fn journal(stack: &Stack) -> Result<Value> {
    let (agent, state) = (&stack.agent_options.binary, &stack.agent_options.state_dir);
    let words = ["journal", "export", "--state-dir", state.to_str().context("path")?];
    let told = run(&[[agent.to_str().context("path")?].as_slice(), &words].concat())?;
    Ok(serde_json::from_str(&told)?)
}

/// Lines of one that the other lacks; each as often as it is there.
pub(super) fn lacking(facts: &Facts, others: &Facts) -> Facts {
    let mut left = others.clone();
    let mut lacking = facts.clone();
    lacking.retain(|fact| match left.iter().position(|other| other == fact) {
        Some(at) => {
            left.swap_remove(at);
            false
        }
        None => true,
    });
    lacking
}

/// `nqn.2000-02.com.mikrotik:pvc-...`
fn volume_of(nqn: &str) -> &str {
    nqn.trim().rsplit(':').next().unwrap_or_default()
}

struct Shield {
    volume: String,
    /// `dm-3`
    name: String,
    /// `252:3`
    number: String,
    suspended: String,
    read_only: bool,
}

fn shields() -> Result<Vec<Shield>> {
    let mut shields = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let attribute = |name: &str| {
            let text = fs::read_to_string(entry.path().join(name));
            text.unwrap_or_default().trim().to_owned()
        };
        if let Some(volume) = attribute("dm/name").strip_prefix("rds-") {
            shields.push(Shield {
                volume: volume.to_owned(),
                name: entry.file_name().to_string_lossy().into_owned(),
                number: attribute("dev"),
                suspended: attribute("dm/suspended"),
                read_only: attribute("ro") == "1",
            });
        }
    }
    Ok(shields)
}

/// All mounts in kubelet's directory and all that show a shield, wherever they are.
fn mounts(shields: &[Shield], facts: &mut Facts) -> Result<()> {
    let by_number: HashMap<_, _> = shields.iter().map(|s| (s.number.as_str(), s)).collect();
    let by_name: HashMap<_, _> = shields.iter().map(|s| (s.name.as_str(), s)).collect();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let parts = line.split_once(" - ");
        let (left, right) = parts.with_context(|| format!("cannot understand {line:?}"))?;
        let fields: Vec<_> = left.split(' ').collect();
        let [_, _, number, root, at, options, ..] = fields[..] else { continue };
        let fs_type = right.split(' ').next().unwrap_or_default();
        let shield = match fs_type {
            // By what is really seen there, which is a block device of that number.
            "devtmpfs" if root != "/" => fs::metadata(at).ok().and_then(|meta| {
                let rdev = meta.rdev();
                let number = format!("{}:{}", libc::major(rdev), libc::minor(rdev));
                let name = Path::new(root).file_name()?.to_str()?;
                by_number.get(number.as_str()).filter(|s| s.name == name).copied()
            }),
            _ => by_number.get(number).copied(),
        };
        let named = by_name.contains_key(root.trim_start_matches('/'));
        if shield.is_some() || named || at.starts_with("/var/lib/kubelet") {
            let volume = shield.map_or("nobody", |s| s.volume.as_str());
            let mode = options.split(',').next().unwrap_or_default();
            facts.push(format!("{volume}: {fs_type} {mode} at {at}"));
        }
    }
    Ok(())
}
