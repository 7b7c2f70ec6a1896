//! What there is of a volume on this node, without what differs from one volume to the next.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::csi::Volume;
use crate::process::{run, sibling};
use crate::stack::Stack;

/// A restarted agent looks at its sessions a moment later.
const SETTLES: Duration = Duration::from_secs(30);

/// Facts, each by its name.
pub(crate) type Facts = BTreeMap<String, String>;

/// Waits until the world is as it should be.
pub(crate) async fn becomes(stack: &Stack, volume: &Volume, wanted: &Facts) -> Result<()> {
    let began = Instant::now();
    loop {
        let found = look(stack, volume)?;
        if &found == wanted {
            return Ok(());
        }
        if began.elapsed() > SETTLES {
            bail!("the world is {found:#?} instead of {wanted:#?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Looks at mount table, device-mapper, controllers, the journal and the agent.
pub(crate) fn look(stack: &Stack, volume: &Volume) -> Result<Facts> {
    let mut facts = Facts::new();
    let mut tell = |name: String, what: String| {
        let plain = |text: String| text.replace(&volume.id, "VOLUME");
        facts.insert(plain(name), plain(what));
    };
    for (n, mount) in mounts(&volume.id)?.into_iter().enumerate() {
        tell(format!("mount {n}"), mount);
    }
    tell("staging".into(), kind_of(&volume.staging));
    tell("target".into(), kind_of(&volume.target));
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let attribute = |name: &str| {
            let text = fs::read_to_string(entry.path().join("dm").join(name));
            text.unwrap_or_default().trim().to_owned()
        };
        if attribute("name") == format!("rds-{}", volume.id) {
            tell("shield".into(), format!("suspended {}", attribute("suspended")));
        }
    }
    let (mut controllers, mut registered) = (0, 0);
    for entry in fs::read_dir("/sys/class/nvme")?.flatten() {
        let nqn = fs::read_to_string(entry.path().join("subsysnqn")).unwrap_or_default();
        if nqn.trim().ends_with(&volume.id) {
            controllers += 1;
            let owner = std::path::Path::new("/run/nvme/registry").join(entry.file_name());
            let owner = fs::read_to_string(owner.join("owner")).unwrap_or_default();
            registered += u32::from(owner.trim() == "rds-csi");
        }
    }
    tell("controllers".into(), format!("{controllers}, {registered} registered"));
    let state = stack.status(&volume.id).map(|s| s["state"].to_string());
    tell("session".into(), state.unwrap_or_else(|_| "none".into()));
    for (name, what) in journal(&volume.id)? {
        tell(name, what);
    }
    let copy = stack.dir.join("sessions").join(format!("{}.json", volume.id));
    tell("copy of the record".into(), copy.exists().to_string());
    Ok(facts)
}

/// Mount points that bear the volume's name, with what is mounted and how.
fn mounts(volume: &str) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts: Vec<_> = table
        .lines()
        .filter(|line| line.contains(volume))
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(4);
            Some(format!("{} {} {}", left.next()?, left.next()?, right.split(' ').next()?))
        })
        .collect();
    mounts.sort();
    Ok(mounts)
}

fn kind_of(path: &std::path::Path) -> String {
    match fs::symlink_metadata(path) {
        Ok(meta) => format!("{:?}", meta.file_type()),
        Err(_) => "none".into(),
    }
}

/// The journal's records, without what is random or only a measurement.
fn journal(volume: &str) -> Result<Vec<(String, String)>> {
    let agent = sibling("rds-node-agent")?;
    let agent = agent.to_str().context("path")?;
    let told = run(&[agent, "journal", "export", "--state-dir", "/var/lib/rds-csi"])?;
    let told: Value = serde_json::from_str(&told)?;
    let mut facts = vec![("journal".to_owned(), told["problem"].to_string())];
    let session = &told["sessions"][volume];
    let content = match &session["content"] {
        Value::Object(kind) => kind.keys().cloned().collect(),
        other => other.to_string(),
    };
    facts.push(("session record".into(), format!("{} {content}", session["phase"])));
    let stage = &told["stages"][volume];
    facts.push((
        "stage record".into(),
        format!("{} {} {}", stage["step"], stage["staging"], stage["publishes"]),
    ));
    Ok(facts)
}
