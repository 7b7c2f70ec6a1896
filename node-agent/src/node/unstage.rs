//! NodeUnstageVolume: unmount, make sure that nobody uses the device, disconnect.
//!
//! The order is the guard: nothing is disconnected that is published, mounted, open, held
//! or swapped on, and the kernel is never asked to use force.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rds_csi_proto::agent::{NoticeKind, State};
use rds_csi_proto::ids::VolumeId;
use tracing::{info, warn};

use super::busy;
use super::locks::Operation;
use super::paths::GivenPath;
use super::record::{Access, StageRecord, Step};
use super::sessions::Sessions;
use super::stranger;
use super::{LOCAL, Node};
use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::kernel::mounts::{self, MountTable};
use crate::session::SessionView;

/// Writing back what is still in memory, over a healthy session.
const UNMOUNT: Duration = Duration::from_secs(90);
/// Over a session that is lost, unmounting waits for it. It goes on after this, but the
/// caller is told.
const UNMOUNT_LOST: Duration = Duration::from_secs(20);
/// Deleting a controller waits for the target's answer, or its own time-out.
const DETACH: Duration = Duration::from_secs(60);
/// udev opens a device for a moment whenever a writer closes it.
const DETACH_ATTEMPTS: u32 = 4;
const DETACH_PAUSE: Duration = Duration::from_millis(700);

/// Unstages a volume.
///
/// # Errors
/// While it is in use, with the users; while its session is lost and data waits to be
/// written, with what to do.
pub(crate) async fn unstage<S: Sessions>(
    node: &Node<S>,
    volume: VolumeId,
    given: GivenPath,
) -> Result<()> {
    let operation = match node.locks.begin(&volume, "NodeUnstageVolume") {
        Ok(operation) => operation,
        Err(busy) => {
            // An unmount that waits for a volume which has been fenced since would wait
            // for ever.
            release_if_fenced(node, &volume).await?;
            return Err(busy);
        }
    };
    // First of all: processes that wait for a volume which is gone for good cannot end, and
    // would be found as its users below.
    release_if_fenced(node, &volume).await?;
    let path = operation.run("resolving the staging path", LOCAL, move || given.resolve()).await?;
    let known = node.records.load(&operation).await?;
    // The proof that an unfinished file system is ours outlives this call, and a reboot; it
    // holds for this attachment only.
    let unfinished = known.as_ref().is_some_and(|r| matches!(r.step, Step::Formatting { .. }));
    let record = known.filter(|r| node.records.is_current(r));
    let view = node.sessions.view(&volume);
    let device = view.as_ref().and_then(|v| v.device.as_ref()).map(|d| d.number);

    let plan = plan(&operation, path.clone(), record.clone(), device).await?;
    stranger::expect_disconnected(node, &operation, &volume).await?;
    if let Some(device) = plan.device {
        let expected = plan.mounted.then(|| path.clone()).flatten();
        let unused = busy::expect_unused(device, expected).await;
        unused.inspect_err(|users| tell(node, &volume, users))?;
    }
    if let Some(record) = record.filter(|_| !unfinished) {
        let record = StageRecord { step: Step::Unstaging, ..record };
        node.records.save(&operation, &record).await?;
    }
    crash::point("unstage.recorded");
    if plan.mounted
        && let Some(path) = &path
    {
        unmount(node, &operation, &volume, path, plan.device).await?;
    }
    crash::point("unstage.unmounted");
    detach(node, &volume).await?;
    crash::point("unstage.detached");
    if !unfinished {
        node.records.forget(&operation).await?;
    }
    crash::point("unstage.done");
    info!(%volume, "unstaged");
    Ok(())
}

/// What there is to undo.
struct Plan {
    device: Option<DeviceNumber>,
    mounted: bool,
}

async fn plan(
    operation: &Operation,
    path: Option<PathBuf>,
    record: Option<StageRecord>,
    device: Option<DeviceNumber>,
) -> Result<Plan> {
    operation
        .run("reading the mount table", LOCAL, move || {
            make_plan(&MountTable::read()?, path.as_deref(), record.as_ref(), device)
        })
        .await
}

fn make_plan(
    table: &MountTable,
    path: Option<&Path>,
    record: Option<&StageRecord>,
    device: Option<DeviceNumber>,
) -> Result<Plan> {
    let layers = path.map(|p| table.at(p)).unwrap_or_default();
    let noted_here = record.is_some_and(|r| Some(r.staging.as_path()) == path);
    let ours = |m: &mounts::Mount| device.map_or(noted_here, |n| m.is_of(n));
    if let Some(other) = layers.iter().find(|m| !ours(m)) {
        return Err(Error::Precondition(format!(
            "{} from {} is mounted at {}, which is not this volume; unmount it there first",
            other.fs_type,
            other.source.display(),
            other.mount_point.display()
        )));
    }
    // The session may be unknown, after a lost journal; then the mount tells the device.
    let device = device.or_else(|| layers.first().map(|m| m.device).filter(|n| n.major != 0));
    let elsewhere = published(table, path, record, device);
    if !elsewhere.is_empty() {
        let paths: Vec<String> = elsewhere.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::Precondition(format!(
            "the volume is still published at {}; unpublish it first",
            paths.join(", ")
        )));
    }
    Ok(Plan { device, mounted: !layers.is_empty() })
}

/// Paths other than the staging path at which the volume is seen.
fn published(
    table: &MountTable,
    staging: Option<&Path>,
    record: Option<&StageRecord>,
    device: Option<DeviceNumber>,
) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = record
        .iter()
        .flat_map(|r| &r.publishes)
        .filter(|p| !table.at(&p.target).is_empty())
        .map(|p| p.target.clone())
        .collect();
    if let Some(number) = device {
        let staged = staging.map(|path| table.at(path)).unwrap_or_default();
        let echo = |m: &mounts::Mount| staged.iter().any(|s| table.is_echo(s, m));
        let others = table.of_device(number).into_iter().filter(|m| !echo(m));
        paths.extend(others.map(|m| m.mount_point.clone()));
        // Kubelet's own bind mounts of the device node. One that is left behind would show
        // the next volume that gets this device number.
        if record.is_none_or(|r| r.access == Access::Block)
            && let Ok(link) = std::fs::read_link(number.sysfs())
            && let Some(name) = link.file_name()
        {
            let nodes = table.of_node(&name.to_string_lossy());
            paths.extend(nodes.iter().map(|m| m.mount_point.clone()));
        }
    }
    paths.retain(|p| Some(p.as_path()) != staging);
    paths.sort();
    paths.dedup();
    paths
}

/// A fenced volume belongs to another node: what waits to be written must never be.
pub(super) async fn release_if_fenced<S: Sessions>(
    node: &Node<S>,
    volume: &VolumeId,
) -> Result<()> {
    match node.sessions.view(volume) {
        Some(view) if view.state == State::Fenced && !view.failing_io => {
            warn!(%volume, "the volume is fenced; what was not written yet is given up");
            node.sessions.fail(volume).await
        }
        _ => Ok(()),
    }
}

/// Whoever waits for the volume elsewhere learns who holds it.
fn tell<S: Sessions>(node: &Node<S>, volume: &VolumeId, users: &Error) {
    if let Error::Precondition(users) = users {
        node.sessions.notices().found(volume, NoticeKind::UnstageBusy, users.clone());
    }
}

async fn unmount<S: Sessions>(
    node: &Node<S>,
    operation: &Operation,
    volume: &VolumeId,
    path: &Path,
    device: Option<DeviceNumber>,
) -> Result<()> {
    let is_waiting = |v: &SessionView| v.state != State::Live && !v.failing_io;
    let waiting = node.sessions.view(volume).filter(is_waiting);
    let deadline = if waiting.is_some() { UNMOUNT_LOST } else { UNMOUNT };
    let target = path.to_owned();
    let result = operation.run("unmounting", deadline, move || unmount_all(&target)).await;
    match result {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(nix::libc::EBUSY) => {
            Err(busy::in_use_at(path, device).await).inspect_err(|users| tell(node, volume, users))
        }
        Err(Error::Timeout { .. }) => match node.sessions.view(volume).filter(is_waiting) {
            Some(view) => Err(Error::Unavailable(format!(
                "volume {volume} has no session ({}: {}), and unmounting it waits for data to be \
                 written. It finishes by itself when the target answers again. To give that data up \
                 instead: rds-node-agent fail {volume}",
                view.state.as_str_name(),
                view.reason
            ))),
            None => result,
        },
        _ => result,
    }
}

fn unmount_all(path: &Path) -> Result<()> {
    // Bounded: the layers were counted as ours; anything that keeps coming back is not.
    for _ in 0..64 {
        if MountTable::read()?.at(path).is_empty() {
            return Ok(());
        }
        match mounts::unmount(path) {
            Err(e) if e.raw_os_error() != Some(nix::libc::EINVAL) => {
                return Err(Error::kernel("unmount", path.display())(e));
            }
            _ => {}
        }
    }
    Err(Error::Unavailable(format!("{} is mounted again and again", path.display())))
}

async fn detach<S: Sessions>(node: &Node<S>, volume: &VolumeId) -> Result<()> {
    let mut attempt = 1;
    loop {
        match node.sessions.detach(volume, DETACH).await {
            Err(Error::Precondition(_)) if attempt < DETACH_ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(DETACH_PAUSE).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::record::Publish;
    use super::*;

    const DEVICE: DeviceNumber = DeviceNumber { major: 252, minor: 3 };

    fn table(lines: &[&str]) -> MountTable {
        MountTable::parse(lines.join("\n").as_bytes()).unwrap()
    }

    fn record(publishes: &[&str]) -> StageRecord {
        StageRecord {
            boot_id: "b".into(),
            host_nqn: rds_csi_proto::ids::HostNqn::random(),
            staging: "/s".into(),
            access: Access::Filesystem { fs_type: "ext4".into(), flags: Vec::new() },
            read_only: false,
            step: Step::Staged,
            publishes: publishes
                .iter()
                .map(|p| Publish { target: p.into(), read_only: false, confirmed: true })
                .collect(),
        }
    }

    const STAGED: &str = "10 1 252:3 / /s rw shared:1 - ext4 /dev/dm-3 rw";

    #[test]
    fn what_is_published_is_not_unstaged() {
        let both = table(&[STAGED, "11 1 252:3 / /t rw shared:1 - ext4 /dev/dm-3 rw"]);
        // Told by the mount table even if the journal knows nothing of it.
        for known in [None, Some(record(&[])), Some(record(&["/t"]))] {
            let error = make_plan(&both, Some(Path::new("/s")), known.as_ref(), Some(DEVICE));
            assert!(error.err().unwrap().to_string().contains("published at /t"));
        }
        // A note whose mount is gone is no obstacle.
        let plan = make_plan(
            &table(&[STAGED]),
            Some(Path::new("/s")),
            Some(&record(&["/t"])),
            Some(DEVICE),
        );
        assert!(plan.unwrap().mounted);
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let other = table(&["10 1 252:9 / /s rw - ext4 /dev/dm-9 rw"]);
        assert!(make_plan(&other, Some(Path::new("/s")), None, Some(DEVICE)).is_err());
        assert!(make_plan(&other, Some(Path::new("/s")), None, None).is_err());
        let plan = make_plan(&other, Some(Path::new("/elsewhere")), None, None).unwrap();
        assert!(!plan.mounted && plan.device.is_none());
    }

    #[test]
    fn after_a_lost_session_record_the_mount_tells_the_device() {
        let plan =
            make_plan(&table(&[STAGED]), Some(Path::new("/s")), Some(&record(&[])), None).unwrap();
        assert_eq!(plan.device, Some(DEVICE));
    }
}
