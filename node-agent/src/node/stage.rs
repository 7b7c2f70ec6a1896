//! NodeStageVolume: connect, examine, format if blank, mount.
//!
//! A failed stage undoes nothing: the session stays, for the retry or for the unstage that
//! kubelet sends. Disconnecting here has once taken a mounted volume from its users.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rds_csi_proto::params::FsType;
use rustix::mount::MountFlags;
use tracing::{info, warn};
use uuid::Uuid;

use super::busy;
use super::decide::{self, Layer, StageAction};
use super::expand;
use super::format;
use super::locks::Operation;
use super::options::MountOptions;
use super::paths;
use super::record::{StageRecord, Step};
use super::request::{StageRequest, WantedAccess};
use super::selinux;
use super::sessions::Sessions;
use super::stranger;
use super::{LOCAL, Node};
use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::mounts::{self, Mount, MountTable};
use crate::kernel::probe::{self, Found};
use crate::kernel::{DeviceNumber, programs};
use crate::session::{Attached, Content};

/// Within kubelet's two minutes for a call, so that it hears the reason.
const ATTACH: Duration = Duration::from_secs(75);
/// Reading a few megabytes; a session that is lost meanwhile makes it wait.
const PROBE: Duration = Duration::from_secs(60);
/// Replaying the log of a large, busy file system.
const MOUNT: Duration = Duration::from_secs(300);
/// Tens of terabytes over a slow link; the kubelet's retries are told that it runs.
const MKFS: Duration = Duration::from_secs(900);

/// Stages a volume.
///
/// # Errors
/// With what is in the way and what to do about it.
pub(crate) async fn stage<S: Sessions>(node: &Node<S>, request: StageRequest) -> Result<()> {
    let operation = node.locks.begin(&request.volume, "NodeStageVolume")?;
    let given = request.staging.clone();
    let staging = operation
        .run("resolving the staging path", LOCAL, move || given.resolve_or_create_parent())
        .await?;
    let known = node.records.load(&operation).await?;
    let current = known.clone().filter(|r| node.records.is_current(r));
    if is_staged(node, &operation, &request, &staging, current.as_ref()).await? {
        return Ok(());
    }
    stranger::expect_none(node, &operation, &request.spec).await?;
    if let WantedAccess::Filesystem { options, .. } = &request.capability.access
        && let Some(context) = options.context.clone()
    {
        // Before anything is attached or formatted for a mount that cannot be.
        let look = move || selinux::expect_enabled(&context);
        operation.run("looking for SELinux", LOCAL, look).await?;
    }
    let interrupted = known
        .as_ref()
        .and_then(|r| r.interrupted_format(&request.spec.host_nqn))
        .map(str::to_owned);
    let mut record = StageRecord {
        boot_id: node.records.boot_id().to_owned(),
        host_nqn: request.spec.host_nqn.clone(),
        staging: staging.clone(),
        access: request.capability.access.to_record(),
        read_only: request.capability.read_only,
        // The proof that an unfinished file system is ours must outlive failed attempts.
        step: interrupted.clone().map_or(Step::Attaching, |uuid| Step::Formatting { uuid }),
        publishes: current.map(|r| r.publishes).unwrap_or_default(),
    };
    node.records.save(&operation, &record).await?;
    crash::point("stage.recorded");
    let attached = node.sessions.attach(request.spec.clone(), ATTACH).await?;
    crash::point("stage.attached");
    match &request.capability.access {
        WantedAccess::Block => {
            node.sessions.set_content(&request.volume, Content::Raw).await?;
        }
        WantedAccess::Filesystem { fs_type, options, .. } => {
            let stage =
                Filesystem { node, operation: &operation, attached: &attached, fs_type: *fs_type };
            stage.bring_up(&request, options, &mut record, interrupted).await?;
        }
    }
    record.step = Step::Staged;
    node.records.save(&operation, &record).await?;
    crash::point("stage.done");
    info!(volume = %request.volume, device = %attached.path.display(), staging = %staging.display(), "staged");
    Ok(())
}

/// Whether there is nothing to do.
async fn is_staged<S: Sessions>(
    node: &Node<S>,
    operation: &Operation,
    request: &StageRequest,
    staging: &Path,
    record: Option<&StageRecord>,
) -> Result<bool> {
    let Some(record) = record.filter(|r| r.step == Step::Staged) else { return Ok(false) };
    let Some(view) = node.sessions.view(&request.volume) else { return Ok(false) };
    if let WantedAccess::Filesystem { .. } = request.capability.access {
        // The kernel, not the record, says whether it is mounted.
        let number = view.device.as_ref().map(|d| d.number);
        if !is_mounted(operation, &record.staging, number).await? {
            return Ok(false);
        }
    }
    let wanted = request.capability.access.to_record();
    if record.staging != staging
        || record.access != wanted
        || record.read_only != request.capability.read_only
    {
        return Err(Error::Conflict(format!(
            "volume {} is already staged at {} as {:?}{}, but {:?}{} at {} is asked for now; unstage it first",
            request.volume,
            record.staging.display(),
            record.access,
            if record.read_only { ", read-only" } else { "" },
            wanted,
            if request.capability.read_only { ", read-only" } else { "" },
            staging.display(),
        )));
    }
    // Another epoch or portal is for the keeper to judge. The same one needs no session at
    // this moment: an outage is no reason to fail a volume that is in place.
    // After a restart of the agent its device is looked for first.
    Ok(view.spec == request.spec && view.device.is_some())
}

/// Without a number, anything at the path counts: the record says that it is ours.
async fn is_mounted(
    operation: &Operation,
    path: &Path,
    number: Option<DeviceNumber>,
) -> Result<bool> {
    if let Some(number) = number {
        return Ok(look(operation, path, number).await?.0 == StageAction::Done);
    }
    let path = path.to_owned();
    operation
        .run("reading the mount table", LOCAL, move || {
            Ok(!MountTable::read()?.at(&path).is_empty())
        })
        .await
}

/// What is to be done at the staging path, and the mount that is there.
async fn look(
    operation: &Operation,
    path: &Path,
    number: DeviceNumber,
) -> Result<(StageAction, Option<Mount>)> {
    let path = path.to_owned();
    operation
        .run("reading the mount table", LOCAL, move || {
            let table = MountTable::read()?;
            let mounts = table.at(&path);
            let layers: Vec<Layer> =
                mounts.iter().map(|m| Layer::of_filesystem(m, number)).collect();
            Ok((decide::stage(&path, &layers)?, mounts.first().map(|m| (*m).clone())))
        })
        .await
}

struct Filesystem<'a, S> {
    node: &'a Node<S>,
    operation: &'a Operation,
    attached: &'a Attached,
    fs_type: FsType,
}

impl<S: Sessions> Filesystem<'_, S> {
    async fn bring_up(
        &self,
        request: &StageRequest,
        options: &MountOptions,
        record: &mut StageRecord,
        interrupted: Option<String>,
    ) -> Result<()> {
        let number = self.attached.number;
        if let (StageAction::Done, Some(mount)) =
            look(self.operation, &record.staging, number).await?
        {
            // Mounted before a crash of ours, or before a journal was lost. What it is was
            // examined then. Whether it was for the same pods was not.
            selinux::expect(&mount, options.context.as_ref())?;
            return self.fill_device(request, record).await;
        }
        let found = self.probe().await?;
        let action = format::decide(
            &self.attached.path,
            &found,
            self.fs_type,
            interrupted.as_deref(),
            record.read_only,
        )?;
        let uuid = match action {
            format::Content::Use { uuid } => uuid,
            format::Content::Format(blank) => self.make(request, record, blank).await?,
        };
        let content = Content::Filesystem { fs_type: self.fs_type.as_str().to_owned(), uuid };
        self.node.sessions.set_content(&request.volume, content).await?;
        crash::point("stage.content");
        // From here on users may write, so a later stage must never take it for unfinished.
        record.step = Step::Mounting;
        self.node.records.save(self.operation, record).await?;
        crash::point("mount.recorded");
        let mut options = options.clone();
        if request.made_from_other {
            options.admit_same_uuid(self.fs_type);
        }
        self.mount(&record.staging, &options, record.read_only).await?;
        self.fill_device(request, record).await
    }

    /// Grows the file system of a volume that was made from a smaller one. Nobody else would:
    /// the orchestrator was given the size that it asked for.
    async fn fill_device(&self, request: &StageRequest, record: &StageRecord) -> Result<()> {
        if !request.made_from_other || record.read_only {
            return Ok(());
        }
        let fs_type = self.fs_type.as_str();
        let (program, arguments) = expand::grow(fs_type, &record.staging, self.attached)?;
        let device = &self.attached.path;
        programs::run(&program, &arguments, device, expand::GROW, self.operation.clone()).await
    }

    async fn probe(&self) -> Result<Found> {
        let device = self.attached.path.clone();
        let number = self.attached.number;
        self.operation
            .run("examining the content", PROBE, move || {
                expect_number(&device, number)?;
                probe::probe(&device)
            })
            .await
    }

    /// Makes a file system whose UUID is known to the journal before it is begun.
    async fn make(
        &self,
        request: &StageRequest,
        record: &mut StageRecord,
        blank: format::Blank,
    ) -> Result<String> {
        let device = &self.attached.path;
        // The mkfs of an agent that was killed lives on, and mkfs.btrfs does not keep the
        // device to itself while it writes.
        busy::expect_unused(self.attached.number, None).await?;
        let uuid = Uuid::new_v4().to_string();
        let (program, arguments) =
            format::mkfs(self.fs_type, &uuid, &request.mkfs_options, blank, device)?;
        record.step = Step::Formatting { uuid: uuid.clone() };
        self.node.records.save(self.operation, record).await?;
        crash::point("mkfs.recorded");
        info!(volume = %request.volume, fs_type = self.fs_type.as_str(), %uuid, ?blank, "making a file system");
        programs::run(&program, &arguments, device, MKFS, self.operation.clone()).await?;
        crash::point("mkfs.done");
        let made = self.probe().await?;
        let wanted =
            Found::Filesystem { fs_type: self.fs_type.as_str().to_owned(), uuid: uuid.clone() };
        if made == wanted {
            return Ok(uuid);
        }
        Err(Error::Program {
            program,
            target: device.clone(),
            output: format!(
                "it reported success, but the device now shows {made:?}; check mkfsOptions"
            ),
        })
    }

    async fn mount(&self, staging: &Path, options: &MountOptions, read_only: bool) -> Result<()> {
        let mount = Mounting {
            device: self.attached.path.clone(),
            number: self.attached.number,
            staging: staging.to_owned(),
            fs_type: self.fs_type,
            flags: if read_only { options.flags | MountFlags::RDONLY } else { options.flags },
            data: options.data.clone(),
        };
        self.operation.run("mounting", MOUNT, move || mount.run()).await
    }
}

/// The blocking part.
struct Mounting {
    device: PathBuf,
    number: DeviceNumber,
    staging: PathBuf,
    fs_type: FsType,
    flags: MountFlags,
    data: String,
}

impl Mounting {
    fn run(self) -> Result<()> {
        use std::os::fd::AsFd;
        paths::create_dir(&self.staging)?;
        crash::point("mount.directory");
        let target = mounts::open_path(&self.staging)
            .map_err(Error::kernel("open", self.staging.display()))?;
        expect_number(&self.device, self.number)?;
        mounts::mount_filesystem(
            &self.device,
            target.as_fd(),
            self.fs_type.as_str(),
            self.flags,
            &self.data,
        )
        .map_err(|error| {
            let what = format!(
                "{} ({}) at {} ({})",
                self.device.display(),
                self.fs_type.as_str(),
                self.staging.display(),
                format::mount_advice(self.fs_type, &self.device, &error)
            );
            Error::kernel("mount", what)(error)
        })?;
        crash::point("mount.done");
        let table = MountTable::read()?;
        match table.at(&self.staging)[..] {
            [mount] if Layer::of_filesystem(mount, self.number).ours => Ok(()),
            _ => {
                // What was just mounted is not what was meant: taken away again at once.
                if let Err(error) = mounts::unmount(&self.staging) {
                    warn!(%error, staging = %self.staging.display(), "a wrong mount could not be removed");
                }
                Err(Error::Unavailable(format!(
                    "{} changed while it was being mounted at {}",
                    self.device.display(),
                    self.staging.display()
                )))
            }
        }
    }
}

/// Makes sure that a name still means the device it was given for.
pub(crate) fn expect_number(device: &Path, number: DeviceNumber) -> Result<()> {
    let found = DeviceNumber::of_path(device)?;
    if found == number {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "{} is now device {found}, not {number}; try again",
        device.display()
    )))
}
