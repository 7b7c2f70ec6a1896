//! NodePublishVolume: show a staged volume at a pod's path.
//!
//! A file system is bind-mounted from its staging path. Of a raw block volume, the device's
//! node is bind-mounted onto an empty file. Not mknod: a node of our own in kubelet's
//! directory would survive a reboot and then name whatever device has that number by then,
//! and does not work at all where that directory is on a file system mounted `nodev`. The
//! bind mount is made in the host's namespace, so it is not multiplied by propagation into
//! a container of ours.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;
use rustix::fs::FileType;
use tracing::info;

use super::decide::{self, Layer, PublishAction};
use super::group;
use super::locks::Operation;
use super::paths;
use super::record::{Access, Publish, StageRecord, Step};
use super::request::{PublishRequest, WantedAccess};
use super::selinux;
use super::sessions::{self, Sessions};
use super::{LOCAL, Node, stats};
use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::mounts::{self, Mount, MountTable};
use crate::kernel::soundness::{self, Effort};
use crate::kernel::{DeviceNumber, ioctl};
use crate::session::Attached;

/// Changing every file of a volume takes as long as it takes; kubelet, which waits for two
/// minutes, is told before that it goes on.
const GROUP: Duration = Duration::from_secs(100);

/// A file system answers from memory, unless its device hangs.
const EXAMINE: Duration = Duration::from_secs(5);

/// Publishes a volume.
///
/// # Errors
/// With what is in the way and what to do about it.
pub(crate) async fn publish<S: Sessions>(node: &Node<S>, request: PublishRequest) -> Result<()> {
    let operation = node.locks.begin(&request.volume, "NodePublishVolume")?;
    let (staging, target) = (request.staging.clone(), request.target.clone());
    let (staging, target) = operation
        .run("resolving the paths", LOCAL, move || {
            Ok((staging.resolve()?, target.resolve_or_create_parent()?))
        })
        .await?;
    let (device, mut record) = staged(node, &operation, &request, staging).await?;
    let read_only = request.read_only || record.read_only;
    let others = still_published(&operation, &record, &target).await?;
    check_others(&request, &target, &others, read_only, &record.access)?;

    let job = Job {
        device,
        staging: record.staging.clone(),
        target: target.clone(),
        read_only,
        access: record.access.clone(),
        noted: record.publish_at(&target).cloned(),
    };
    // Before it is noted: a note of what is refused would make its repetition look like an
    // interrupted publish, to be finished under the pod that has the volume otherwise.
    let job =
        operation.run("reading the mount table", LOCAL, move || job.action().map(|_| job)).await?;
    record.note_publish(Publish { target: target.clone(), read_only, confirmed: false });
    node.records.save(&operation, &record).await?;
    crash::point("publish.recorded");
    if let WantedAccess::Filesystem { group: Some(group), .. } = request.capability.access
        && !read_only
    {
        let staging = record.staging.clone();
        operation
            .run("giving the files to the pod's group", GROUP, move || group::give(&staging, group))
            .await?;
        crash::point("publish.grouped");
    }
    operation.run("publishing", LOCAL, move || job.run()).await?;
    record.note_publish(Publish { target: target.clone(), read_only, confirmed: true });
    node.records.save(&operation, &record).await?;
    crash::point("publish.done");
    info!(volume = %request.volume, target = %target.display(), read_only, "published");
    Ok(())
}

/// The staged volume: what the keeper and the mount table say, explained by the journal.
async fn staged<S: Sessions>(
    node: &Node<S>,
    operation: &Operation,
    request: &PublishRequest,
    staging: Option<PathBuf>,
) -> Result<(Attached, StageRecord)> {
    let not_staged = || {
        Error::Precondition(format!(
            "volume {} is not staged at {:?} on this node; NodeStageVolume must come first",
            request.volume, staging
        ))
    };
    let view = node.sessions.view(&request.volume).ok_or_else(not_staged)?;
    let path = staging.clone().ok_or_else(not_staged)?;
    let known = node.records.load(operation).await?.filter(|r| node.records.is_current(r));
    let wanted = request.capability.access.to_record();
    // A journal that was lost is written anew from what is there.
    let record = known.unwrap_or_else(|| StageRecord {
        boot_id: node.records.boot_id().to_owned(),
        host_nqn: view.spec.host_nqn.clone(),
        staging: path.clone(),
        access: wanted.clone(),
        read_only: request.capability.read_only,
        step: Step::Staged,
        publishes: Vec::new(),
    });
    if record.step != Step::Staged || record.staging != path {
        return Err(not_staged());
    }
    let device = sessions::device(&view)?;
    if std::mem::discriminant(&record.access) != std::mem::discriminant(&wanted) {
        return Err(Error::Invalid(format!(
            "volume {} is staged as {:?}, it cannot be published as {wanted:?}",
            request.volume, record.access
        )));
    }
    if let WantedAccess::Filesystem { options, .. } = &request.capability.access {
        let number = device.number;
        let mount = operation
            .run("reading the mount table", LOCAL, move || staging_mount(&path, number))
            .await?;
        // Without one, whatever the volume has will do: kubelet asks for the same in both calls.
        if options.context.is_some() {
            selinux::expect(&mount, options.context.as_ref())?;
        }
        if !record.read_only {
            expect_sound(node, &request.volume, mount, number).await?;
        }
    }
    Ok((device, record))
}

/// The staging mount must be there.
fn staging_mount(path: &Path, number: DeviceNumber) -> Result<Mount> {
    let table = MountTable::read()?;
    let layers = table.at(path);
    match layers[..] {
        [mount] if Layer::of_filesystem(mount, number).ours => Ok(mount.clone()),
        [] => Err(Error::Precondition(format!(
            "nothing is mounted at {}; NodeStageVolume must come first",
            path.display()
        ))),
        _ => Err(Error::Precondition(format!(
            "what is mounted at {} is not this volume, or more than one mount",
            path.display()
        ))),
    }
}

/// And its file system sound: a pod that started now would only meet "read-only file system".
/// It has to be mounted anew, which kubelet does once no pod uses it. One that does not answer
/// waits for its session, which is no reason to refuse; so nothing is locked meanwhile.
async fn expect_sound<S: Sessions>(
    node: &Node<S>,
    volume: &VolumeId,
    mount: Mount,
    number: DeviceNumber,
) -> Result<()> {
    let what = format!("examining the file system at {}", mount.mount_point.display());
    let look = move || {
        let fault = soundness::fault(&mount, number, Effort::Try)?;
        Ok(fault.map(|f| (format!("{}: ", mount.mount_point.display()), stats::complaint(f))))
    };
    match node.examining.look(volume, what, EXAMINE, look).await?.flatten() {
        Some((place, complaint)) => {
            let refusal = Error::Precondition(place + &complaint);
            stats::tell(node, volume, complaint);
            Err(refusal)
        }
        None => Ok(()),
    }
}

/// Noted publishes elsewhere that are really there.
async fn still_published(
    operation: &Operation,
    record: &StageRecord,
    target: &Path,
) -> Result<Vec<Publish>> {
    let mut others = record.publishes.clone();
    others.retain(|p| p.target != target);
    operation
        .run("reading the mount table", LOCAL, move || {
            let table = MountTable::read()?;
            others.retain(|p| !table.at(&p.target).is_empty());
            Ok(others)
        })
        .await
}

fn check_others(
    request: &PublishRequest,
    target: &Path,
    others: &[Publish],
    read_only: bool,
    access: &Access,
) -> Result<()> {
    let Some(other) = others.first() else { return Ok(()) };
    if request.capability.single_writer {
        return Err(Error::Precondition(format!(
            "volume {} allows one pod only and is already published at {}; it cannot be published at {} too",
            request.volume,
            other.target.display(),
            target.display()
        )));
    }
    // Read-only is a property of a block device, not of one way to it.
    match others.iter().find(|o| o.read_only != read_only) {
        Some(other) if *access == Access::Block => Err(Error::Precondition(format!(
            "raw block volume {} is published {} at {}; a device is read-only for all of its users or for none",
            request.volume,
            if other.read_only { "read-only" } else { "for writing" },
            other.target.display()
        ))),
        _ => Ok(()),
    }
}

/// The blocking part.
struct Job {
    device: Attached,
    staging: PathBuf,
    target: PathBuf,
    read_only: bool,
    access: Access,
    noted: Option<Publish>,
}

impl Job {
    fn run(&self) -> Result<()> {
        match self.access {
            Access::Block => self.block(),
            Access::Filesystem { .. } => self.filesystem(),
        }
    }

    /// What there is to do, or why it must not be done.
    fn action(&self) -> Result<PublishAction> {
        match self.access {
            Access::Block => {
                // What its users were promised, whoever has changed the device since.
                let promised = self.noted.as_ref().filter(|n| n.confirmed).map(|n| n.read_only);
                let read_only = promised.map_or_else(|| self.is_read_only(), Ok)?;
                self.decide(|m| self.block_layer(m, read_only))
            }
            Access::Filesystem { .. } => {
                self.decide(|m| Layer::of_filesystem(m, self.device.number))
            }
        }
    }

    /// By number, not by name: what is seen at the target decides.
    fn block_layer(&self, mount: &Mount, read_only: bool) -> Layer {
        let ours = mount.fs_type == "devtmpfs"
            && DeviceNumber::of_path(&mount.mount_point).is_ok_and(|n| n == self.device.number);
        Layer { ours, read_only }
    }

    fn decide(&self, is_ours: impl Fn(&Mount) -> Layer) -> Result<PublishAction> {
        let table = MountTable::read()?;
        let layers: Vec<Layer> = table.at(&self.target).into_iter().map(is_ours).collect();
        decide::publish(&self.target, &layers, self.read_only, self.noted.as_ref())
    }

    fn filesystem(&self) -> Result<()> {
        match self.action()? {
            PublishAction::Done => return Ok(()),
            PublishAction::MakeReadOnly => {}
            PublishAction::Bind => {
                paths::create_dir(&self.target)?;
                let target = open_as(&self.target, FileType::Directory)?;
                let staging = open_as(&self.staging, FileType::Directory)?;
                self.bind(&staging, &target)?;
            }
        }
        if self.read_only {
            let table = MountTable::read()?;
            if let Some(mount) = table.at(&self.target).last() {
                mounts::make_read_only(mount)
                    .map_err(Error::kernel("make read-only", self.target.display()))?;
            }
            crash::point("publish.sealed");
        }
        self.expect_done(self.action()?)
    }

    fn block(&self) -> Result<()> {
        let action = self.action()?;
        self.set_read_only()?;
        if action != PublishAction::Bind {
            return Ok(());
        }
        create_file(&self.target)?;
        let target = open_as(&self.target, FileType::RegularFile)?;
        let node = open_as(&self.device.path, FileType::BlockDevice)?;
        let stat = rustix::fs::fstat(&node)
            .map_err(|e| Error::kernel("look at", self.device.path.display())(e.into()))?;
        if DeviceNumber::from_raw(stat.st_rdev) != self.device.number {
            return Err(Error::Unavailable(format!(
                "{} is not device {} any more; try again",
                self.device.path.display(),
                self.device.number
            )));
        }
        self.bind(&node, &target)?;
        // By the kernel alone: a note may speak of an earlier publish.
        let read_only = self.is_read_only()?;
        self.expect_done(self.decide(|m| self.block_layer(m, read_only))?)
    }

    fn is_read_only(&self) -> Result<bool> {
        let attribute = self.device.number.sysfs().join("ro");
        let text = std::fs::read_to_string(&attribute)
            .map_err(Error::kernel("read", attribute.display()))?;
        Ok(text.trim() == "1")
    }

    /// For all users of the device; that the others agree was checked before.
    fn set_read_only(&self) -> Result<()> {
        if self.is_read_only()? == self.read_only {
            return Ok(());
        }
        let path = &self.device.path;
        let device = File::open(path).map_err(Error::kernel("open", path.display()))?;
        ioctl::set_read_only(&device, self.read_only)
            .map_err(Error::kernel("change whether it is read-only:", path.display()))
    }

    fn bind(&self, source: &OwnedFd, target: &OwnedFd) -> Result<()> {
        crash::point("publish.created");
        mounts::bind(source.as_fd(), target.as_fd())
            .map_err(Error::kernel("bind-mount at", self.target.display()))?;
        crash::point("publish.bound");
        Ok(())
    }

    fn expect_done(&self, action: PublishAction) -> Result<()> {
        match action {
            PublishAction::Done => Ok(()),
            other => Err(Error::Unavailable(format!(
                "the mount at {} did not last ({other:?}); try again",
                self.target.display()
            ))),
        }
    }
}

/// Opens a path without following a link, and makes sure of what it is.
fn open_as(path: &Path, wanted: FileType) -> Result<OwnedFd> {
    let opened = mounts::open_path(path).map_err(Error::kernel("open", path.display()))?;
    let stat = rustix::fs::fstat(&opened)
        .map_err(|e| Error::kernel("look at", path.display())(e.into()))?;
    let found = FileType::from_raw_mode(stat.st_mode);
    if found == wanted {
        return Ok(opened);
    }
    Err(Error::Precondition(format!(
        "{} is a {found:?}, but a {wanted:?} is needed there; remove it first",
        path.display()
    )))
}

fn create_file(path: &Path) -> Result<()> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
    match created {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::kernel("create", path.display())(e))
        }
        _ => Ok(()),
    }
}
