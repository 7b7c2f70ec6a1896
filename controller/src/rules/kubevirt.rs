//! Whether all pods that use a claim are one KubeVirt machine.
//!
//! A machine's pods (virt-launcher) carry the label `vm.kubevirt.io/name` and belong to a
//! VirtualMachineInstance, the same one on both sides of a live migration. The pods by which
//! KubeVirt plugs a disk into a running machine carry no such label and belong to a launcher.
//! A label alone proves little, since whoever may create pods may set it: the owner counts
//! too, and two instances of one name (an old one that still ends, and its successor) are two.

use std::collections::BTreeSet;

use super::attach::MayShare;

/// A pod that uses the claim and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) pod: String,
    /// Where it is to run, once that is decided.
    pub(crate) node: Option<String>,
    /// The label `vm.kubevirt.io/name`.
    pub(crate) label: Option<String>,
    /// What it belongs to.
    pub(crate) owner: Option<Owner>,
}

/// The controlling owner of a pod, as far as it says something here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A VirtualMachineInstance of KubeVirt's API group, by its uid.
    Instance(String),
    /// Another pod of the namespace, by its uid.
    Pod(String),
    Other(String),
}

/// A pod by which others are found to belong to a machine: uid, and itself.
pub(crate) type Launcher = (String, User);

/// Whose machine a pod is: its name and its instance's uid, or why it is none.
fn machine(user: &User, launchers: &[Launcher]) -> Result<(String, String), String> {
    let pod = &user.pod;
    match &user.owner {
        Some(Owner::Instance(uid)) => match &user.label {
            Some(name) => Ok((name.clone(), uid.clone())),
            None => Err(format!("pod {pod} has no label vm.kubevirt.io/name")),
        },
        // One step and no more: a launcher belongs to a machine itself.
        Some(Owner::Pod(uid)) => match launchers.iter().find(|(of, _)| of == uid) {
            Some((_, launcher)) if matches!(launcher.owner, Some(Owner::Instance(_))) => {
                machine(launcher, &[])
            }
            _ => Err(format!("pod {pod} belongs to a pod that is no machine of KubeVirt")),
        },
        Some(Owner::Other(kind)) => {
            Err(format!("pod {pod} belongs to a {kind}, not to a machine of KubeVirt"))
        }
        None => Err(format!("pod {pod} belongs to no machine of KubeVirt")),
    }
}

/// Decides by all pods that use the claim, for a node that asks to be the second. `launchers`:
/// all pods of the namespace that may own one of them.
pub(crate) fn one_machine(users: &[User], launchers: &[Launcher], node: &str) -> MayShare {
    let mut machines = BTreeSet::new();
    for user in users {
        match machine(user, launchers) {
            Ok(found) => {
                machines.insert(found);
            }
            Err(why) => return MayShare::Unproven(why),
        }
    }
    let names: BTreeSet<_> = machines.iter().map(|(name, _)| name.as_str()).collect();
    match (machines.len(), names.len()) {
        (1, _) if users.iter().any(|u| u.node.as_deref() == Some(node)) => MayShare::Yes,
        (1, _) => MayShare::Unproven(format!("no pod that uses the claim is for node {node}")),
        (0, _) => MayShare::Unproven("no pod uses the claim".into()),
        (_, 1) => MayShare::Unproven(format!(
            "its pods belong to two instances of the machine {}: the old one has to end first",
            names.into_iter().collect::<String>()
        )),
        _ => MayShare::Unproven(format!(
            "several machines use it: {}",
            names.into_iter().collect::<Vec<_>>().join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launcher(pod: &str, name: &str, uid: &str) -> User {
        User {
            pod: pod.into(),
            node: Some(format!("node-{pod}")),
            label: Some(name.into()),
            owner: Some(Owner::Instance(uid.into())),
        }
    }
    fn plugged(pod: &str, into: &str) -> User {
        let node = Some(format!("node-{pod}"));
        User { pod: pod.into(), node, label: None, owner: Some(Owner::Pod(into.into())) }
    }
    fn why(answer: MayShare) -> String {
        match answer {
            MayShare::Yes => "yes".into(),
            MayShare::Unproven(why) => why,
        }
    }

    #[test]
    fn source_and_target_of_one_instance_are_one_machine() {
        let users = [launcher("a", "db", "1"), launcher("b", "db", "1")];
        assert_eq!(one_machine(&users, &[], "node-b"), MayShare::Yes);
        assert!(why(one_machine(&users, &[], "node-c")).contains("for node node-c"));
    }

    #[test]
    fn plugged_disks_are_followed_to_their_launchers() {
        let launchers = [
            ("p1".to_owned(), launcher("a", "db", "1")),
            ("p2".to_owned(), launcher("b", "db", "1")),
            ("p3".to_owned(), plugged("hp", "p1")),
        ];
        let both = [plugged("hp-1", "p1"), plugged("hp-2", "p2")];
        assert_eq!(one_machine(&both, &launchers, "node-hp-2"), MayShare::Yes);
        for (lost, said) in [("p3", "no machine"), ("gone", "no machine")] {
            let answer = why(one_machine(&[plugged("hp-1", lost)], &launchers, "node-hp-1"));
            assert!(answer.contains(said), "{answer}");
        }
    }

    #[test]
    fn anything_else_among_the_users_is_no_proof() {
        let db = launcher("a", "db", "1");
        let cases = [
            (launcher("b", "web", "2"), "db, web"),
            (launcher("b", "db", "2"), "two instances of the machine db"),
            (User { label: None, ..launcher("b", "db", "1") }, "no label"),
            // The label alone: anybody may set it.
            (User { owner: None, ..launcher("b", "db", "1") }, "belongs to no machine"),
            (User { owner: Some(Owner::Other("Job".into())), ..launcher("b", "db", "1") }, "a Job"),
        ];
        for (other, said) in cases {
            let answer = why(one_machine(&[db.clone(), other], &[], "node-b"));
            assert!(answer.contains(said), "{answer}");
        }
        assert!(why(one_machine(&[], &[], "n")).contains("no pod"));
    }
}
