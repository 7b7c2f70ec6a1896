//! `--adopt`: volumes of the Go driver of the same name, which PersistentVolumes of this cluster
//! name, become ours. A dry run unless `--yes` is given. docs/switch-over.md tells when.

use std::collections::HashMap;

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use rds_csi_proto::ids::VolumeId;

use crate::kubernetes::bound::{Bound, Pv};
use crate::routeros::DiskItem;
use crate::rules::adopt::Verdict;
use crate::rules::attachment::Allow;
use crate::volumes::{Disks, Volumes};

/// Flags of the adoption.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Adoption")]
pub struct AdoptArgs {
    /// Report which volumes of the Go driver of the same name would become this cluster's: those
    /// that its PersistentVolumes name, and that nobody uses. With --yes they do. Then exit
    #[arg(
        long,
        group = "done_with_yes",
        conflicts_with_all = ["no_kubernetes", "orphans"]
    )]
    pub adopt: bool,
}

/// One appliance with its disks.
type Member<'a> = (&'a Volumes, Disks);

/// Reports, and adopts if that was asked for.
///
/// # Errors
/// If the cluster or an appliance does not answer, or a volume of a PersistentVolume cannot be
/// adopted.
pub(crate) async fn run(really: bool, bound: &Bound, members: &[Volumes]) -> anyhow::Result<()> {
    let pvs = bound.all().await.context("PersistentVolumes cannot be listed")?;
    let mut looked = Vec::new();
    for member in members {
        let disks = member.disks().await.with_context(|| format!("appliance {}", member.name()))?;
        looked.push((member, disks));
    }
    let mut times: HashMap<&VolumeId, usize> = HashMap::new();
    for pv in &pvs {
        *times.entry(&pv.volume).or_default() += 1;
    }
    println!("{:<41} {:<12} {:>16}  STATE", "VOLUME", "APPLIANCE", "BYTES");
    let (mut adoptable, mut left) = (0_u32, 0_u32);
    for pv in &pvs {
        let twice = times.get(&pv.volume).is_some_and(|n| *n > 1);
        let outcome = match place(pv, twice, &looked) {
            Err(why) => Outcome::Left(why),
            Ok((at, item)) => consider(really, bound, pv, at, item).await?,
        };
        adoptable += u32::from(matches!(outcome, Outcome::Adoptable(_)));
        left += u32::from(matches!(outcome, Outcome::Left(_)));
        let found = place(pv, false, &looked).ok();
        let shown = found.map(|((member, _), item)| (member.name().as_str(), item.size));
        line(pv.volume.as_str(), shown, &outcome.to_string());
    }
    for (member, disks) in &looked {
        for item in disks.volumes().iter().filter(|item| item.comment.is_empty()) {
            if !pvs.iter().any(|pv| pv.volume.as_str() == item.slot) {
                let shown = Some((member.name().as_str(), item.size));
                line(&item.slot, shown, "left alone: no PersistentVolume here names it");
            }
        }
    }
    if adoptable > 0 {
        println!("nothing was changed: add --yes to adopt {adoptable}");
    }
    match (pvs.is_empty(), left) {
        (true, _) => bail!("there is no PersistentVolume of driver {}", bound.driver()),
        (false, 0) => Ok(()),
        (false, left) => bail!("{left} volumes are not adopted"),
    }
}

/// What has come of a PersistentVolume.
enum Outcome {
    Ours,
    Adopted,
    Adoptable(String),
    Left(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ours => f.write_str("ours"),
            Self::Adopted => f.write_str("ADOPTED"),
            Self::Adoptable(how) => write!(f, "to be adopted; {how}"),
            Self::Left(why) => write!(f, "NOT ADOPTED: {why}"),
        }
    }
}

/// The one appliance that has an item of the name.
fn place<'a, 'm>(
    pv: &Pv,
    twice: bool,
    looked: &'a [Member<'m>],
) -> Result<(&'a Member<'m>, &'a DiskItem), String> {
    if twice {
        return Err("several PersistentVolumes name it".into());
    }
    let mut found = looked.iter().filter_map(|member| Some((member, member.1.find(&pv.volume)?)));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(format!("no appliance has it (PersistentVolume {})", pv.name)),
        (Some(_), Some(_)) => Err("several appliances have an item of that name".into()),
    }
}

async fn consider(
    really: bool,
    bound: &Bound,
    pv: &Pv,
    (member, disks): &Member<'_>,
    item: &DiskItem,
) -> anyhow::Result<Outcome> {
    match member.judge_adoption(disks, item, &pv.volume, &pv.says) {
        Verdict::Ours => return Ok(Outcome::Ours),
        Verdict::Refused(why) => return Ok(Outcome::Left(why)),
        Verdict::Adopt => {}
    }
    // Last of all before the change, which cuts off whoever is connected.
    let users = bound.users_of(pv).await.with_context(|| format!("the users of {}", pv.volume))?;
    if !users.is_empty() {
        return Ok(Outcome::Left(format!("in use by {}", users.join(", "))));
    }
    if !really {
        return Ok(Outcome::Adoptable(access(item)));
    }
    Ok(match member.adopt(&pv.volume, &pv.says).await {
        Ok(()) => Outcome::Adopted,
        Err(error) => Outcome::Left(error.to_string()),
    })
}

/// Who may connect until then, since that is lost.
fn access(item: &DiskItem) -> String {
    match (item.export, item.allow_host.as_str()) {
        (false, _) => "not exported".into(),
        (true, "") => "exported to any host".into(),
        (true, nobody) if Allow::is_nobody(nobody) => "exported to nobody".into(),
        (true, host) => format!("exported to {host:?}"),
    }
}

fn line(volume: &str, shown: Option<(&str, Option<u64>)>, state: &str) {
    let (name, size) = shown.unwrap_or(("-", None));
    let bytes = size.map_or_else(|| "?".to_owned(), |n| n.to_string());
    println!("{volume:<41} {name:<12} {bytes:>16}  {state}");
}
