//! A node for the tests, and the volume on it.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::{FutureExt, StreamExt};
use rds_csi_proto::agent::NoticeKind;

use super::*;
use crate::notices::Notices;

/// One volume on a loop device.
#[derive(Clone)]
pub(super) struct Loop {
    pub(super) file: PathBuf,
    pub(super) state: Arc<Mutex<LoopState>>,
    notices: Notices,
}

pub(super) struct LoopState {
    /// False as after a restart of the agent, until it has looked.
    pub(super) device_known: bool,
    pub(super) session: Option<(SessionSpec, Attached)>,
    pub(super) contents: Vec<Content>,
    pub(super) state: State,
    /// What lies between the file and the volume, if anything.
    pub(super) mapping: Option<Mapping>,
}

/// A device-mapper device over the loop device, whose table a test may change.
pub(super) struct Mapping {
    name: String,
    table: String,
}

impl Mapping {
    /// `table` as dmsetup takes it, with `DEV` for the loop device.
    pub(super) fn new(table: impl Into<String>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { name: format!("test-{}-{n}", std::process::id()), table: table.into() }
    }

    /// The same, readable and writable all over.
    pub(super) fn linear() -> Self {
        Self::new(format!("0 {} linear DEV 0", SIZE / 512))
    }

    fn create(&self, over: &Path) -> PathBuf {
        let table = self.table.replace("DEV", over.to_str().unwrap());
        run("dmsetup", &["create", &self.name, "--noudevsync", "--table", &table]);
        let minor = run("dmsetup", &["info", "-c", "--noheadings", "-o", "minor", &self.name]);
        PathBuf::from(format!("/dev/dm-{minor}"))
    }

    /// What was waiting is sent to the new table, as when a session is replaced.
    fn change(&self, table: &str) {
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", &self.name]);
        run("dmsetup", &["load", &self.name, "--table", table]);
        run("dmsetup", &["resume", "--noudevsync", &self.name]);
    }

    fn remove(&self) {
        // udev may still look at it.
        let _ = Command::new("dmsetup")
            .args(["remove", "--retry", "--noudevsync", &self.name])
            .output();
    }
}

pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Sessions for Loop {
    async fn attach(&self, spec: SessionSpec, _: Duration) -> Result<Attached> {
        let mut state = self.state.lock().unwrap();
        state.device_known = true;
        if let Some((known, attached)) = &state.session {
            return if *known == spec {
                Ok(attached.clone())
            } else {
                Err(Error::Conflict("attached as somebody else".into()))
            };
        }
        let below = PathBuf::from(run("losetup", &["-f", "--show", self.file.to_str().unwrap()]));
        // An earlier test may have left this loop device read-only.
        run("blockdev", &["--setrw", below.to_str().unwrap()]);
        let path = state.mapping.as_ref().map_or(below.clone(), |mapping| mapping.create(&below));
        let attached = Attached {
            number: DeviceNumber::of_path(&path)?,
            path,
            size_bytes: fs::metadata(&self.file).unwrap().len(),
        };
        state.session = Some((spec, attached.clone()));
        Ok(attached)
    }

    fn view(&self, volume: &VolumeId) -> Option<SessionView> {
        self.views().into_iter().find(|v| v.spec.volume == *volume)
    }

    fn views(&self) -> Vec<SessionView> {
        let state = self.state.lock().unwrap();
        let view = |(spec, attached): &(SessionSpec, Attached)| SessionView {
            spec: spec.clone(),
            state: state.state,
            since_unix_ms: 0,
            reason: "as the test wants it".into(),
            device: state.device_known.then(|| attached.clone()),
            namespace: None,
            controller: None,
            failing_io: false,
            outages: 0,
            last_outage_ms: 0,
            attempts: 0,
        };
        state.session.iter().map(view).collect()
    }

    async fn set_content(&self, _: &VolumeId, content: Content) -> Result<()> {
        self.state.lock().unwrap().contents.push(content);
        Ok(())
    }

    async fn detach(&self, _: &VolumeId, _: Duration) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let Some((_, attached)) = &state.session else { return Ok(()) };
        // As device-mapper does: not while it is open.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
        if rustix::fs::open(&attached.path, flags, rustix::fs::Mode::empty()).is_err() {
            return Err(Error::Precondition("the device is still open".into()));
        }
        if let Some(mapping) = &state.mapping {
            mapping.remove();
        }
        self.free();
        state.session = None;
        Ok(())
    }

    async fn fail(&self, _: &VolumeId) -> Result<()> {
        Ok(())
    }
    fn notices(&self) -> &Notices {
        &self.notices
    }
}

impl Loop {
    /// What people are to hear of, as kinds.
    pub(super) fn told(&self) -> Vec<NoticeKind> {
        let mut stream = Box::pin(self.notices.stream());
        let mut kinds = Vec::new();
        while let Some(Some(notice)) = stream.next().now_or_never() {
            kinds.push(notice.unwrap().kind());
        }
        kinds
    }

    /// Lets go of the file.
    fn free(&self) {
        for device in self.devices() {
            let _ = Command::new("losetup").args(["-d", &device]).status();
        }
    }

    /// The loop devices over the file.
    pub(super) fn devices(&self) -> Vec<String> {
        let listed = run("losetup", &["-n", "-O", "NAME", "-j", self.file.to_str().unwrap()]);
        listed.lines().map(str::to_owned).collect()
    }

    /// The volume's device, once it is attached.
    pub(super) fn device(&self) -> Attached {
        self.state.lock().unwrap().session.as_ref().unwrap().1.clone()
    }

    /// Changes what lies between the file and the volume.
    pub(super) fn map(&self, table: &str) {
        let table = table.replace("DEV", &self.devices()[0]);
        self.state.lock().unwrap().mapping.as_ref().unwrap().change(&table);
    }

    /// Nothing goes through and nothing fails, as behind a shield without a path.
    pub(super) fn suspend(&self) {
        let state = self.state.lock().unwrap();
        let name = &state.mapping.as_ref().unwrap().name;
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", name]);
    }

    /// What waited goes on.
    pub(super) fn resume(&self) {
        let state = self.state.lock().unwrap();
        run("dmsetup", &["resume", "--noudevsync", &state.mapping.as_ref().unwrap().name]);
    }

    /// The target is cut off for good: whatever is sent to it fails.
    pub(super) fn cut_off(&self) {
        self.map(&format!("0 {} error", SIZE / 512));
    }
}

/// Of the volume, in bytes.
pub(super) const SIZE: u64 = 400 << 20;

/// A node with one volume of 400 MiB, and directories as kubelet makes them.
pub(super) struct Host {
    dir: tempfile::TempDir,
    pub(super) sessions: Loop,
    pub(super) journal: Journal,
    pub(super) service: NodeService<Loop>,
    pub(super) context: HashMap<String, String>,
}

pub(super) const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

impl Host {
    pub(super) fn new() -> Self {
        Self::over(None, None)
    }

    /// With something between the file and the volume.
    pub(super) fn mapped(mapping: Mapping) -> Self {
        Self::over(None, Some(mapping))
    }

    /// Another node, to which the volume of a first one is attached now.
    pub(super) fn after(first: &Self) -> Self {
        Self::over(Some(&first.sessions.file), None)
    }

    fn over(file: Option<&Path>, mapping: Option<Mapping>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = file.map_or_else(|| dir.path().join("volume.img"), Path::to_owned);
        let options = fs::OpenOptions::new().write(true).create(true).truncate(false).clone();
        options.open(&file).unwrap().set_len(SIZE).unwrap();
        fs::create_dir(dir.path().join("staging")).unwrap();
        let state = LoopState {
            device_known: false,
            session: None,
            contents: Vec::new(),
            state: State::Live,
            mapping,
        };
        let sessions =
            Loop { file, state: Arc::new(Mutex::new(state)), notices: Notices::default() };
        let (journal, _) = Journal::open(&dir.path().join("state")).unwrap();
        let context = PublishContext {
            nqn: "nqn.2000-02.com.mikrotik:pvc-x".parse().unwrap(),
            host_nqn: HostNqn::random(),
            portal: Portal::parse("10.0.0.2", "4420").unwrap(),
            arrival: None,
        };
        let config = NodeConfig { node_id: "test".into(), max_volumes: 0 };
        let service = NodeService::new(sessions.clone(), journal.clone(), config).unwrap();
        Self { dir, sessions, journal, service, context: context.to_map() }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.dir.path().canonicalize().unwrap().join(name).to_str().unwrap().to_owned()
    }

    pub(super) fn layers(&self, name: &str) -> usize {
        MountTable::read().unwrap().at(Path::new(&self.path(name))).len()
    }

    /// What the kernel says of the staging path.
    pub(super) fn mountinfo(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let staging = self.path("staging");
        table.lines().filter(|l| l.contains(&staging)).collect()
    }

    pub(super) fn record(&self) -> Option<StageRecord> {
        self.journal.get(Table::Stages, VOLUME).unwrap()
    }

    pub(super) async fn stage(&self, capability: VolumeCapability) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: VOLUME.into(),
            publish_context: self.context.clone(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(capability),
            ..NodeStageVolumeRequest::default()
        };
        self.service.node_stage_volume(Request::new(request)).await.map(|_| ())
    }

    pub(super) async fn publish(
        &self,
        target: &str,
        capability: VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: VOLUME.into(),
            publish_context: self.context.clone(),
            staging_target_path: self.path("staging"),
            target_path: self.path(target),
            volume_capability: Some(capability),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        self.service.node_publish_volume(Request::new(request)).await.map(|_| ())
    }

    pub(super) async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: VOLUME.into(), target_path: self.path(target) };
        self.service.node_unpublish_volume(Request::new(request)).await.map(|_| ())
    }

    pub(super) async fn unstage(&self) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: self.path("staging"),
        };
        self.service.node_unstage_volume(Request::new(request)).await.map(|_| ())
    }

    pub(super) async fn stats(&self, path: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: VOLUME.into(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        Ok(self.service.node_get_volume_stats(Request::new(request)).await?.into_inner())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // After a failed assertion too: no mount and no loop device is left behind.
        if let Ok(table) = MountTable::read() {
            let root = self.dir.path().canonicalize().unwrap();
            let mut ours: Vec<_> =
                table.iter().map(|m| &m.mount_point).filter(|p| p.starts_with(&root)).collect();
            ours.reverse();
            for path in ours {
                let _ = mounts::unmount(path);
            }
        }
        if let Some(mapping) = &self.sessions.state.lock().unwrap().mapping {
            mapping.remove();
        }
        self.sessions.free();
    }
}

pub(super) fn with(access_type: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(super) fn fs_with(fs_type: &str, flags: &[&str]) -> VolumeCapability {
    let mount = MountVolume {
        fs_type: fs_type.into(),
        mount_flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        ..MountVolume::default()
    };
    with(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

pub(super) fn fs(fs_type: &str) -> VolumeCapability {
    fs_with(fs_type, &[])
}

pub(super) fn block() -> VolumeCapability {
    with(AccessType::Block(BlockVolume {}), Mode::MultiNodeMultiWriter)
}

pub(super) fn scribble(device: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut device = fs::OpenOptions::new().write(true).open(device)?;
    device.write_all(&[7; 4096])?;
    device.sync_all()
}

/// Growing ext4 online needs this capability (fs/ext4/resize.c, `ext4_resize_begin`), which
/// root has not got on every machine.
pub(super) fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & (1 << 24) != 0
}

pub(super) fn code(result: Result<(), Status>) -> Code {
    result.unwrap_err().code()
}
