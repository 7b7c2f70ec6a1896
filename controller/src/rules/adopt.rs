//! Which volumes of the Go driver of the same name are taken over.
//!
//! Its items have no comment, so nothing on the appliance says whose they are; that a name
//! begins with `pvc-` says nothing. What proves it is a PersistentVolume of this driver in this
//! cluster that names the item, and agrees with it in all that it says of it. An operator asks
//! for it, nothing is adopted by itself, and a comment is never written over.

use rds_csi_proto::ids::{Nqn, VolumeId};

use super::owner::{ClusterId, OwnerTag, Ownership, judge as owner};
use super::path::{AppliancePath, own_file};
use crate::routeros::{DiskItem, DiskUse};

/// What the volume attributes of a PersistentVolume say of the item on the appliance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Its NQN.
    pub nqn: Option<String>,
    /// The path of its file.
    pub path: Option<String>,
}

/// What is to be done with an item that a PersistentVolume names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it has this cluster's owner tag.
    Ours,
    /// It gets one.
    Adopt,
    /// It is left alone, and why.
    Refused(String),
}

/// Judges one item. `uses`: all disks of the appliance with their files.
#[must_use]
pub fn judge(
    item: &DiskItem,
    uses: &[DiskUse],
    volume: &VolumeId,
    says: &Attributes,
    cluster: &ClusterId,
    roots: &[AppliancePath],
) -> Verdict {
    match owner(&item.slot, &item.comment, volume, cluster) {
        Ownership::Ours(_) => Verdict::Ours,
        Ownership::Foreign(why) if !item.comment.is_empty() => {
            let advice = match OwnerTag::parse(&item.comment) {
                Some(_) => "",
                None => "; if nobody needs that comment, take it away",
            };
            Verdict::Refused(format!("{why} ({:?}){advice}", item.comment))
        }
        Ownership::Foreign(_) => match obstacle(item, uses, volume, says, roots) {
            None => Verdict::Adopt,
            Some(why) => Verdict::Refused(why),
        },
    }
}

/// What speaks against it, of an item without a comment.
fn obstacle(
    item: &DiskItem,
    uses: &[DiskUse],
    volume: &VolumeId,
    says: &Attributes,
    roots: &[AppliancePath],
) -> Option<String> {
    if item.kind != "file" {
        return Some(format!("it is a disk of type {:?}, not of a file", item.kind));
    }
    if item.size.is_none() {
        return Some(format!(
            "the appliance shows no size: its file {} is missing",
            item.file_path
        ));
    }
    if item.port.is_none() {
        return Some("it has no NVMe/TCP port".into());
    }
    // By any other name the nodes' agents and udev rules would not know it.
    let nqn = format!("nqn.2000-02.com.mikrotik:{volume}");
    if item.nqn != nqn || item.nqn.parse::<Nqn>().is_err() {
        return Some(format!("its NQN is {:?}, expected {nqn}", item.nqn));
    }
    if let Some(other) = says.nqn.as_ref().filter(|other| **other != item.nqn) {
        return Some(format!("its NQN is {}, the PersistentVolume says {other}", item.nqn));
    }
    let Some(file) = own_file(&item.file_path, volume, roots) else {
        let roots: Vec<_> = roots.iter().map(AppliancePath::as_str).collect();
        return Some(format!(
            "its file is {:?}, expected {volume}.img in {}: give its directory too (--volume-path)",
            item.file_path,
            roots.join(" or ")
        ));
    };
    if let Some(other) = says.path.as_ref().filter(|other| !file.is(other)) {
        return Some(format!("its file is {file}, the PersistentVolume says {other}"));
    }
    uses.iter()
        .find(|u| u.slot != item.slot && file.is(&u.file_path))
        .map(|other| format!("its file {file} is also that of the item {:?}", other.slot))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    fn says(nqn: &str, path: &str) -> Attributes {
        Attributes { nqn: Some(nqn.into()), path: Some(path.into()) }
    }

    fn judged(item: &DiskItem, says: &Attributes, beside: &[&str]) -> Verdict {
        let uses: Vec<_> = [(ID, item.file_path.as_str())]
            .into_iter()
            .chain(beside.iter().map(|path| ("beside", *path)))
            .map(|(slot, path)| DiskUse {
                id: item.id.clone(),
                slot: slot.into(),
                file_path: path.into(),
            })
            .collect();
        let roots = ["/raid10/volumes".parse().unwrap()];
        judge(item, &uses, &ID.parse().unwrap(), says, &"lab".parse().unwrap(), &roots)
    }

    #[test]
    fn what_the_pv_names_and_nobody_has_marked_is_adopted() {
        let item =
            DiskItem { export: true, allow_host: String::new(), ..DiskItem::sample(ID, 1 << 30) };
        let whole = says(&item.nqn, &item.file_path);
        assert_eq!(judged(&item, &whole, &[]), Verdict::Adopt);
        assert_eq!(judged(&item, &Attributes::default(), &["/raid10/other.img"]), Verdict::Adopt);
        let tagged = |cluster: &str| DiskItem {
            comment: format!("rds-csi v1 cluster={cluster} vol={ID} stage=ready"),
            ..item.clone()
        };
        assert_eq!(judged(&tagged("lab"), &whole, &[]), Verdict::Ours);
    }

    #[test]
    fn each_doubt_leaves_it_alone() {
        let item = DiskItem::sample(ID, 1 << 30);
        let whole = says(&item.nqn, &item.file_path);
        let (nqn, path) = (item.nqn.clone(), item.file_path.clone());
        let of = |change: fn(&mut DiskItem)| {
            let mut item = item.clone();
            change(&mut item);
            item
        };
        let tag = format!("rds-csi v1 cluster=prod vol={ID} stage=ready");
        let prod = DiskItem { comment: tag, ..item.clone() };
        let moved = |path: &str| DiskItem { file_path: path.into(), ..item.clone() };
        for (item, says, beside, why) in [
            (of(|i| i.comment = "the shop's".into()), whole.clone(), &[][..], "take it away"),
            (prod, whole.clone(), &[], "belongs to cluster \"prod\""),
            (of(|i| i.kind = "nvme-tcp".into()), whole.clone(), &[], "not of a file"),
            (of(|i| i.size = None), whole.clone(), &[], "no size"),
            (of(|i| i.port = None), whole.clone(), &[], "no NVMe/TCP port"),
            (of(|i| i.nqn.push('0')), Attributes::default(), &[], "expected nqn."),
            (of(|i| i.nqn.clear()), Attributes::default(), &[], "expected nqn."),
            (item.clone(), says("nqn.2000-02.com.mikrotik:x", &path), &[], "PersistentVolume says"),
            (item.clone(), says(&nqn, "/raid10/volumes/x.img"), &[], "PersistentVolume says"),
            (moved("/other/x.img"), Attributes::default(), &[], "--volume-path"),
            (item.clone(), whole.clone(), &["raid10/volumes/ID.img"], "\"beside\""),
        ] {
            let beside: Vec<_> = beside.iter().map(|p| p.replace("ID", ID)).collect();
            let beside: Vec<_> = beside.iter().map(String::as_str).collect();
            match judged(&item, &says, &beside) {
                Verdict::Refused(text) => assert!(text.contains(why), "{why}: {text}"),
                other => panic!("{why}: {other:?}"),
            }
        }
    }
}
