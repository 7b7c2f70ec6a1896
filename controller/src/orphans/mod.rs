//! `--orphans`: what is on the appliances that nobody seems to need, and, only when asked
//! for, its removal. A dry run unless `--sweep --yes` is given.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use rds_csi_proto::ids::{SnapshotId, VolumeId};

use crate::rules::orphan::{self, Known, Verdict};
use crate::rules::owner::Stage;
use crate::rules::snapshot::{SnapStage, SnapTag};
use crate::volumes::{Presence, Seen, Volumes};

/// Flags of the report.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Orphans")]
pub struct OrphanArgs {
    /// Report volumes and snapshots that nobody needs and files that belong to none, then exit
    #[arg(long)]
    pub orphans: bool,

    /// Handles in use, one a word, from a file or - for standard input:
    /// kubectl get pv -o jsonpath='{.items[*].spec.csi.volumeHandle}'; for snapshots also
    /// kubectl get volumesnapshotcontent -o jsonpath='{.items[*].status.snapshotHandle}'
    #[arg(long, value_name = "FILE|-", requires = "orphans")]
    pub known: Option<PathBuf>,

    /// Only what was made at least this long ago, by the stamp in its tag
    #[arg(long, value_name = "HOURS", default_value_t = 24, requires = "orphans")]
    pub older_than_hours: u64,

    /// Delete the orphans; shows what would be done unless --yes is given too
    #[arg(long, requires = "known", group = "done_with_yes")]
    pub sweep: bool,

    /// Really: of --sweep, and of --adopt
    #[arg(long, requires = "done_with_yes")]
    pub yes: bool,
}

/// Reports, and sweeps if that was asked for.
///
/// # Errors
/// If an appliance does not answer, the list of handles cannot be used, or an orphan could
/// not be deleted.
pub(crate) async fn run(args: &OrphanArgs, members: &[Volumes]) -> anyhow::Result<()> {
    let known = args.known.as_deref().map(read).transpose()?;
    if args.sweep && known.as_ref().is_some_and(|k| k.volumes.is_empty()) {
        bail!(
            "--known has no volume of this driver in it: every volume would be an orphan. If that \
             is so, delete them by hand"
        );
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let older = args.older_than_hours.saturating_mul(3600);
    let mut failed = 0;
    println!("{:<41} {:<12} {:>16} {:>8}  STATE", "HANDLE", "APPLIANCE", "BYTES", "HOURS");
    for member in members {
        let name = member.name();
        let mut all = member.all().await.with_context(|| format!("appliance {name}"))?;
        all.sort_by(|a, b| a.tag.volume.cmp(&b.tag.volume));
        for seen in &all {
            let verdict = orphan::judge(&seen.item, &seen.tag, known.as_ref(), now, older);
            line(member, seen, now, verdict);
            if verdict == Verdict::Orphan && args.sweep && args.yes {
                failed += u32::from(!sweep(member, &seen.tag.volume).await);
            }
        }
        // After the volumes: one that is half filled from a snapshot holds on to it.
        let mut all = member.snapshots().await.with_context(|| format!("appliance {name}"))?;
        all.sort_by(|a, b| a.snapshot.cmp(&b.snapshot));
        for tag in &all {
            let verdict = orphan::judge_snapshot(tag, known.as_ref(), now, older);
            snapshot_line(member, tag, now, verdict);
            if verdict == Verdict::Orphan && args.sweep && args.yes {
                failed += u32::from(!sweep_snapshot(member, &tag.snapshot).await);
            }
        }
        for file in member.leftovers().await.with_context(|| format!("appliance {name}"))? {
            println!("{file} on {name}: named as one of ours, and without its item; never swept");
        }
    }
    if args.sweep && !args.yes {
        println!("nothing was deleted: add --yes to delete what is marked ORPHAN");
    }
    if failed > 0 {
        bail!("{failed} orphans could not be deleted");
    }
    Ok(())
}

fn line(member: &Volumes, seen: &Seen, now: u64, verdict: Verdict) {
    let hours = orphan::age(&seen.tag, now).map(|s| s / 3600);
    let half = match &seen.tag.stage {
        Stage::Filling(source) => format!(", half a copy of {source}"),
        Stage::Deleting => ", half deleted".into(),
        Stage::Ready | Stage::Attached(_) => String::new(),
    };
    print(member, seen.tag.volume.as_str(), seen.item.size, hours, format!("{verdict}{half}"));
}

fn snapshot_line(member: &Volumes, tag: &SnapTag, now: u64, verdict: Verdict) {
    let hours = now.checked_sub(tag.created_ms / 1000).map(|s| s / 3600);
    let half = match &tag.stage {
        SnapStage::Ready => "",
        SnapStage::Making { .. } => ", half made",
        SnapStage::Deleting => ", half deleted",
    };
    let state = format!("{verdict}{half}, of {}", tag.source);
    print(member, tag.snapshot.as_str(), Some(tag.size), hours, state);
}

fn print(member: &Volumes, handle: &str, bytes: Option<u64>, hours: Option<u64>, state: String) {
    let shown = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let name = member.name().as_str();
    println!("{handle:<41} {name:<12} {:>16} {:>8}  {state}", shown(bytes), shown(hours));
}

/// As DeleteVolume does it, which looks again at all that must be true.
async fn sweep(member: &Volumes, volume: &VolumeId) -> bool {
    match member.delete(volume).await {
        Ok(()) => println!("{volume}: deleted"),
        Err(error) => println!("{volume}: not deleted: {error}"),
    }
    matches!(member.presence(volume).await, Ok(Presence::Absent))
}

/// As DeleteSnapshot does it.
async fn sweep_snapshot(member: &Volumes, snapshot: &SnapshotId) -> bool {
    match member.delete_snapshot(snapshot).await {
        Ok(()) => println!("{snapshot}: deleted"),
        Err(error) => println!("{snapshot}: not deleted: {error}"),
    }
    matches!(member.snapshot_presence(snapshot).await, Ok(Presence::Absent))
}

fn read(path: &Path) -> anyhow::Result<Known> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("--known: standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("--known {}", path.display()))?
    };
    Ok(orphan::handles(&text))
}
