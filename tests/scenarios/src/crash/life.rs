//! One volume's whole life, under an agent that dies on the way.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rds_csi_proto::csi::VolumeCapability;
use rds_csi_proto::csi::volume_capability::AccessType;
use tonic::{Code, Status};

use super::world::{self, Facts};
use crate::csi::{Csi, Volume, filesystem, raw_block};
use crate::demo::{no_devices, status};
use crate::process::{results, run};
use crate::stack::Stack;

const MIB: i64 = 1 << 20;
const SMALL: i64 = 64 * MIB;
const LARGE: i64 = 96 * MIB;
/// The pod's fsGroup.
const GROUP: &str = "4242";
/// All repetitions of a call, with the restarts between them.
const PATIENCE: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(200);
/// Where the pod's data is in a raw volume.
const AT: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Filesystem,
    Raw,
}

impl Kind {
    fn capability(self) -> VolumeCapability {
        let mut capability = match self {
            Self::Raw => raw_block(),
            Self::Filesystem => filesystem("ext4"),
        };
        if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
            mount.volume_mount_group = GROUP.into();
        }
        capability
    }
}

/// What was there after each call.
pub(crate) type Ends = HashMap<Call, Facts>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Stage,
    Publish,
    /// A second pod, which may only read.
    PublishReader,
    /// After the controller has grown it, which takes its session away for a moment.
    Expand,
    UnpublishReader,
    Unpublish,
    Unstage,
}

impl Call {
    const ALL: [Self; 7] = [
        Self::Stage,
        Self::Publish,
        Self::PublishReader,
        Self::Expand,
        Self::UnpublishReader,
        Self::Unpublish,
        Self::Unstage,
    ];

    /// A raw device is read-only for all of its users or for none.
    fn is_of(self, kind: Kind) -> bool {
        kind == Kind::Filesystem || !matches!(self, Self::PublishReader | Self::UnpublishReader)
    }
}

pub(crate) struct Life<'a> {
    stack: &'a mut Stack,
    kind: Kind,
    /// What the agent dies at, not having died there yet.
    armed: Vec<String>,
    died_at: BTreeSet<String>,
}

impl<'a> Life<'a> {
    pub(crate) fn new(stack: &'a mut Stack, kind: Kind) -> Self {
        Self { stack, kind, armed: Vec::new(), died_at: BTreeSet::new() }
    }

    /// The life that others are compared with.
    pub(crate) async fn uninterrupted(mut self) -> Result<Ends> {
        let ends = self.live(None).await?;
        ensure!(self.died_at.is_empty(), "the agent died although it was not asked to");
        Ok(ends)
    }

    /// Dies at each point once; tells at which.
    pub(crate) async fn dying_at_each(
        mut self,
        points: &[String],
        reference: &Ends,
    ) -> Result<BTreeSet<String>> {
        self.armed = points.to_vec();
        self.live(Some(reference)).await?;
        Ok(self.died_at)
    }

    /// Dies at the `times`-th passage of one point; false if there are not so many.
    pub(crate) async fn dying_at(
        mut self,
        point: &str,
        times: u32,
        reference: &Ends,
    ) -> Result<bool> {
        self.armed = vec![format!("{point}:{times}")];
        self.live(Some(reference)).await?;
        Ok(!self.died_at.is_empty())
    }

    async fn live(&mut self, reference: Option<&Ends>) -> Result<Ends> {
        let mut csi = self.stack.csi().await?;
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let created = csi.create(&name, SMALL, self.kind.capability(), HashMap::new()).await;
        let mut volume = created.map_err(status("create"))?;
        csi.attach(&mut volume).await.map_err(status("attach"))?;
        self.start_agent().await?;

        let mut ends = Ends::new();
        let mut identity = None;
        let kind = self.kind;
        for call in Call::ALL.into_iter().filter(|call| call.is_of(kind)) {
            if call == Call::Expand {
                self.write(&volume)?;
                identity = Some(self.identity(&volume)?);
                csi.grow(&volume, LARGE).await.map_err(status("grow"))?;
            }
            self.repeat(&csi, &volume, call).await.with_context(|| format!("{call:?}"))?;
            if call == Call::Expand {
                self.expect_grown(&volume)?;
            }
            match reference.and_then(|r| r.get(&call)) {
                Some(wanted) => world::becomes(self.stack, &volume, wanted)
                    .await
                    .with_context(|| format!("after {call:?}, killed at {:?}", self.died_at))?,
                None => drop(ends.insert(call, world::look(self.stack, &volume)?)),
            }
        }
        no_devices()?;
        self.expect_data(&volume)?;
        ensure!(
            Some(self.identity(&volume)?) == identity,
            "the volume was formatted again after it had been used"
        );
        self.expect_formats(&volume)?;
        csi.detach(&volume).await.map_err(status("detach"))?;
        csi.delete(&volume).await.map_err(status("delete"))?;
        Ok(ends)
    }

    async fn start_agent(&mut self) -> Result<()> {
        let armed = self.armed.join(",");
        self.stack.restart_agent_crashing_at(&armed).await
    }

    /// Makes a call until it succeeds, with a new agent whenever the old one has died.
    async fn repeat(&mut self, csi: &Csi, volume: &Volume, call: Call) -> Result<()> {
        let began = Instant::now();
        loop {
            let answer = make(&mut csi.clone(), volume, call).await;
            if let Some(point) = self.stack.agent_crashed_at()? {
                // It may have died after its answer was on the way.
                self.armed.retain(|armed| armed.split(':').next() != Some(point.as_str()));
                ensure!(self.died_at.insert(point.clone()), "it died twice at {point}");
                self.start_agent().await?;
            } else if let Err(status) = &answer {
                ensure!(may_be_repeated(status), "{:?}: {}", status.code(), status.message());
                tokio::time::sleep(PAUSE).await;
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(status) if began.elapsed() > PATIENCE => {
                    bail!("it does not succeed: {:?}: {}", status.code(), status.message())
                }
                Err(_) => {}
            }
        }
    }

    /// As the pod does.
    fn write(&self, volume: &Volume) -> Result<()> {
        let (path, at) = match self.kind {
            Kind::Filesystem => (volume.target.join("data"), 0),
            Kind::Raw => (volume.target.clone(), AT),
        };
        let file = File::options()
            .write(true)
            .create(self.kind == Kind::Filesystem)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        file.write_all_at(&data(&volume.id), at)?;
        file.sync_all().context("sync")
    }

    /// What the pod has, not what a call says.
    fn expect_grown(&self, volume: &Volume) -> Result<()> {
        let target = volume.target.to_str().context("path")?;
        let size: i64 = match self.kind {
            Kind::Raw => run(&["blockdev", "--getsize64", target])?.trim().parse()?,
            Kind::Filesystem => {
                let told = run(&["stat", "-f", "-c", "%S %b", target])?;
                let (block, blocks) = told.trim().split_once(' ').context(told.clone())?;
                block.parse::<i64>()? * blocks.parse::<i64>()?
            }
        };
        // A file system keeps some of it to itself.
        let least = if self.kind == Kind::Raw { LARGE } else { SMALL + (LARGE - SMALL) / 2 };
        ensure!(size >= least, "it has {size} bytes after it was expanded to {LARGE}");
        Ok(())
    }

    /// In the file behind the export: nothing is mounted any more.
    fn expect_data(&self, volume: &Volume) -> Result<()> {
        let mut file = File::open(self.stack.backing_file(&volume.id))?;
        let wanted = data(&volume.id);
        let mut block = vec![0; wanted.len()];
        file.seek(SeekFrom::Start(0))?;
        while file.read_exact(&mut block).is_ok() {
            if block == wanted {
                return Ok(());
            }
        }
        bail!("what the pod wrote is not on the volume")
    }

    /// The file system's UUID (ext4's superblock, at 1 KiB), if there is one.
    fn identity(&self, volume: &Volume) -> Result<[u8; 16]> {
        let mut uuid = [0; 16];
        if self.kind == Kind::Filesystem {
            let file = File::open(self.stack.backing_file(&volume.id))?;
            file.read_exact_at(&mut uuid, 1024 + 0x68)?;
            ensure!(uuid != [0; 16], "there is no file system on it");
        }
        Ok(uuid)
    }

    /// Formatting is repeated only after a death before its end was written down.
    fn expect_formats(&self, volume: &Volume) -> Result<()> {
        let log = fs::read_to_string(results().join("agent.log"))?;
        let formats = log
            .lines()
            .filter(|l| l.contains("making a file system") && l.contains(&volume.id))
            .count();
        let unfinished = |p: &&String| {
            ["mkfs.", "stage.content", "journal.", "session.copied"]
                .iter()
                .any(|part| p.starts_with(part))
        };
        let most = match self.kind {
            Kind::Filesystem => 1 + self.died_at.iter().filter(unfinished).count(),
            Kind::Raw => 0,
        };
        ensure!(formats <= most, "formatted {formats} times, killed at {:?}", self.died_at);
        Ok(())
    }
}

async fn make(csi: &mut Csi, volume: &Volume, call: Call) -> Result<(), Status> {
    match call {
        Call::Stage => csi.stage(volume).await,
        Call::Publish => csi.publish(volume).await,
        Call::PublishReader => csi.publish_at(volume, &reader(volume), true).await,
        Call::Expand => csi.expand(volume, LARGE).await,
        Call::UnpublishReader => csi.unpublish_at(volume, &reader(volume)).await,
        Call::Unpublish => csi.unpublish(volume).await,
        Call::Unstage => csi.unstage(volume).await,
    }
}

/// Where the second pod has it.
fn reader(volume: &Volume) -> PathBuf {
    PathBuf::from(volume.target.to_string_lossy().replace("pod-1", "pod-2"))
}

fn may_be_repeated(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::FailedPrecondition
    )
}

/// 4 KiB that no other volume has.
fn data(volume: &str) -> Vec<u8> {
    volume.bytes().cycle().take(4096).collect()
}
