//! `--orphans`: what is on the appliances that nobody seems to need, and, only when asked
//! for, its removal. A dry run unless `--sweep --yes` is given.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use rds_csi_proto::ids::VolumeId;

use crate::rules::orphan::{self, Verdict};
use crate::volumes::{Seen, Volumes};

/// Flags of the report.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Orphans")]
pub struct OrphanArgs {
    /// Report volumes that nobody needs and files that belong to no volume, then exit
    #[arg(long)]
    pub orphans: bool,

    /// Handles in use, one a word, from a file or - for standard input:
    /// kubectl get pv -o jsonpath='{.items[*].spec.csi.volumeHandle}'
    #[arg(long, value_name = "FILE|-", requires = "orphans")]
    pub known: Option<PathBuf>,

    /// Only volumes made at least this long ago, by the stamp in their owner tag
    #[arg(long, value_name = "HOURS", default_value_t = 24, requires = "orphans")]
    pub older_than_hours: u64,

    /// Delete the orphans; shows what would be done unless --yes is given too
    #[arg(long, requires = "known")]
    pub sweep: bool,

    /// Really
    #[arg(long, requires = "sweep")]
    pub yes: bool,
}

/// Reports, and sweeps if that was asked for.
///
/// # Errors
/// If an appliance does not answer, the list of handles cannot be used, or an orphan could
/// not be deleted.
pub(crate) async fn run(args: &OrphanArgs, members: &[Volumes]) -> anyhow::Result<()> {
    let known = args.known.as_deref().map(read).transpose()?;
    if args.sweep && known.as_ref().is_some_and(HashSet::is_empty) {
        bail!(
            "--known has no handle of this driver in it: every volume would be an orphan. If that \
             is so, delete them by hand"
        );
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let older = args.older_than_hours.saturating_mul(3600);
    let mut failed = 0;
    println!("{:<40} {:<12} {:>16} {:>8}  STATE", "VOLUME", "APPLIANCE", "BYTES", "HOURS");
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
        for file in member.leftovers().await.with_context(|| format!("appliance {name}"))? {
            println!("{file} on {name}: a file of a volume without its item; never swept");
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
    let shown = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let hours = orphan::age(&seen.tag, now).map(|s| s / 3600);
    println!(
        "{:<40} {:<12} {:>16} {:>8}  {verdict}",
        seen.tag.volume.as_str(),
        member.name().as_str(),
        shown(seen.item.size),
        shown(hours),
    );
}

/// As DeleteVolume does it, which looks again at all that must be true.
async fn sweep(member: &Volumes, volume: &VolumeId) -> bool {
    match member.delete(volume).await {
        Ok(()) => println!("{volume}: deleted"),
        Err(error) => println!("{volume}: not deleted: {error}"),
    }
    matches!(member.presence(volume).await, Ok(crate::volumes::Presence::Absent))
}

fn read(path: &Path) -> anyhow::Result<HashSet<VolumeId>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("--known: standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("--known {}", path.display()))?
    };
    Ok(orphan::handles(&text))
}
