//! Which pod or container a process belongs to, by the name of its control group.
//!
//! kubelet's names: `kubepods[-QOS].slice/kubepods-...pod<UID>.slice/RUNTIME-<ID>.scope` with
//! the systemd driver, where the UID has `_` for `-`, and `kubepods/QOS/pod<UID>/<ID>` with
//! cgroupfs. Runtimes outside Kubernetes end in `RUNTIME-<ID>.scope` or `RUNTIME/<ID>`.

use std::fmt;
use std::fs;

/// Length of what runtimes use as an id, and of what their tools show of it.
const ID: usize = 64;
const SHORT_ID: usize = 12;

/// What a control group's name tells of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Container {
    /// The pod's UID.
    pub pod: Option<String>,
    /// The container's id, as the runtime knows it.
    pub id: Option<String>,
}

impl Container {
    /// Of a process; empty if it is in none, has ended, or does not tell.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default())
    }

    /// From `/proc/PID/cgroup`: lines of `hierarchy:controllers:path`, of which cgroup v2 has
    /// one.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let all = paths.map(Self::of_path);
        all.max_by_key(|c| (c.pod.is_some(), c.id.is_some())).unwrap_or_default()
    }

    fn of_path(path: &str) -> Self {
        let segments = || path.split('/').filter(|s| !s.is_empty());
        Self { pod: segments().find_map(pod), id: segments().filter_map(id).next_back() }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.id.as_deref().and_then(|id| id.get(..SHORT_ID));
        match (&self.pod, short) {
            (Some(pod), Some(id)) => write!(f, "pod {pod}, container {id}"),
            (Some(pod), None) => write!(f, "pod {pod}"),
            (None, Some(id)) => write!(f, "container {id}"),
            (None, None) => Ok(()),
        }
    }
}

/// `pod<UID>` or `kubepods-burstable-pod<UID>.slice`, perhaps with `:RUNTIME:ID` behind it,
/// as containerd has it when it was given a slice without the systemd driver.
fn pod(segment: &str) -> Option<String> {
    let name = segment.split(':').next().unwrap_or(segment);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.strip_prefix("kubepods")?.split_once("-pod")?.1,
    };
    let uid = uid.replace('_', "-");
    // A static pod's is the hash of its file, without dashes.
    let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_uid.then_some(uid)
}

/// `<ID>`, or `RUNTIME-<ID>.scope`.
fn id(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = name.rsplit(['-', ':']).next().unwrap_or(name);
    (id.len() == ID && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "0f3a6c9d12e45b78990abcdef01234567890abcdef01234567890abcdef01234";
    const POD: &str = "3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    fn shown(text: &str) -> String {
        Container::parse(text).to_string()
    }

    #[test]
    fn the_names_of_both_drivers_are_known() {
        let both = format!("pod {POD}, container {}", &CONTAINER[..12]);
        let slice = POD.replace('-', "_");
        let systemd = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{CONTAINER}.scope\n"
        );
        assert_eq!(shown(&systemd), both);
        let guaranteed =
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-{CONTAINER}.scope\n");
        assert_eq!(shown(&guaranteed), both);
        assert_eq!(shown(&format!("0::/kubepods/besteffort/pod{POD}/{CONTAINER}\n")), both);
        let colons = format!(
            "0::/system.slice/containerd.service/kubepods-besteffort-pod{slice}.slice:cri-containerd:{CONTAINER}\n"
        );
        assert_eq!(shown(&colons), both);
    }

    #[test]
    fn of_several_hierarchies_the_one_that_tells_most_counts() {
        let v1 = format!(
            "12:pids:/system.slice\n3:memory:/kubepods/burstable/pod{POD}/{CONTAINER}\n0::/system.slice/kubelet.service\n"
        );
        assert_eq!(shown(&v1), format!("pod {POD}, container {}", &CONTAINER[..12]));
    }

    #[test]
    fn a_container_without_kubernetes_and_none_at_all() {
        let docker = format!("0::/system.slice/docker-{CONTAINER}.scope\n");
        assert_eq!(shown(&docker), format!("container {}", &CONTAINER[..12]));
        for text in ["0::/user.slice/user-0.slice/session-1.scope\n", "0::/podman/x\n", "", "x"] {
            assert_eq!(Container::parse(text), Container::default(), "{text:?}");
        }
    }
}
