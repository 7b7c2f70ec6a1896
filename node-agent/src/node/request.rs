//! Requests, checked once: behind this file nothing can be malformed.

use std::collections::HashMap;

use rds_csi_proto::context::PublishContext;
use rds_csi_proto::csi::volume_capability::AccessType;
use rds_csi_proto::csi::volume_capability::access_mode::Mode;
use rds_csi_proto::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability};
use rds_csi_proto::ids::VolumeId;
use rds_csi_proto::params::{FsType, VolumeParams, context_keys};

use super::options::MountOptions;
use super::paths::GivenPath;
use super::record::Access;
use crate::error::{Error, Result};
use crate::session::SessionSpec;

/// I/O queues when nothing else is asked for: each is a TCP connection, and a hundred
/// volumes on a large host must not become thousands of them.
const QUEUES: usize = 4;

/// The volume id of a request that needs a well-formed one.
pub(crate) fn volume_id(text: &str) -> Result<VolumeId> {
    present("volume_id", text)?;
    text.parse().map_err(|e| Error::Invalid(format!("wrong volume id: {e}")))
}

/// The volume id of a request about a volume that is here. A malformed one cannot be, and
/// csi-sanity wants to hear just that.
pub(crate) fn known_volume_id(text: &str) -> Result<VolumeId> {
    present("volume_id", text)?;
    text.parse().map_err(|e| Error::NotFound(format!("no such volume on this node: {e}")))
}

/// Refuses an empty field.
pub(crate) fn present(what: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::Invalid(format!("{what} is missing from the request")));
    }
    Ok(())
}

/// What a volume capability asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capability {
    pub(crate) access: WantedAccess,
    /// By access mode or mount option.
    pub(crate) read_only: bool,
    /// One writer, one target path (ReadWriteOncePod).
    pub(crate) single_writer: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedAccess {
    Block,
    Filesystem {
        fs_type: FsType,
        flags: Vec<String>,
        options: MountOptions,
        /// Who may use it besides its owner: the pod's fsGroup.
        group: Option<u32>,
    },
}

impl WantedAccess {
    /// As the journal keeps it.
    pub(crate) fn to_record(&self) -> Access {
        match self {
            Self::Block => Access::Block,
            Self::Filesystem { fs_type, flags, .. } => {
                Access::Filesystem { fs_type: fs_type.as_str().to_owned(), flags: flags.clone() }
            }
        }
    }
}

/// Reads a volume capability.
///
/// # Errors
/// Says what is missing, or what this driver cannot do.
pub(crate) fn capability(
    given: Option<&VolumeCapability>,
    context: &HashMap<String, String>,
) -> Result<Capability> {
    let invalid = |text: &str| Error::Invalid(text.to_owned());
    let given = given.ok_or_else(|| invalid("volume_capability is missing from the request"))?;
    let mode = given.access_mode.as_ref().map_or(Mode::Unknown, |m| m.mode());
    let access_type = given
        .access_type
        .as_ref()
        .ok_or_else(|| invalid("volume_capability has neither \"block\" nor \"mount\""))?;
    let is_block = matches!(access_type, AccessType::Block(_));
    let mut read_only = match mode {
        Mode::Unknown => return Err(invalid("volume_capability has no access mode")),
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter => {
            false
        }
        Mode::SingleNodeReaderOnly => true,
        Mode::MultiNodeReaderOnly if is_block => true,
        Mode::MultiNodeMultiWriter | Mode::MultiNodeSingleWriter if is_block => false,
        Mode::MultiNodeReaderOnly | Mode::MultiNodeMultiWriter | Mode::MultiNodeSingleWriter => {
            return Err(invalid(
                "a file system on this storage can be mounted on one node only; \
                 use an access mode for a single node, or volumeMode: Block",
            ));
        }
    };
    let access = match access_type {
        AccessType::Block(_) => WantedAccess::Block,
        AccessType::Mount(mount) => {
            // Older volumes carry their file system in the volume context.
            let older = context.get(context_keys::FS_TYPE).map_or("", String::as_str);
            let name = if mount.fs_type.is_empty() { older } else { &mount.fs_type };
            let fs_type = FsType::parse(name).map_err(|e| Error::Invalid(e.to_string()))?;
            let options = MountOptions::parse(fs_type, &mount.mount_flags)?;
            read_only |= options.read_only;
            let group = group(&mount.volume_mount_group)?;
            WantedAccess::Filesystem { fs_type, flags: mount.mount_flags.clone(), options, group }
        }
    };
    Ok(Capability { access, read_only, single_writer: mode == Mode::SingleNodeSingleWriter })
}

/// kubelet gives the pod's fsGroup as a number in a string.
fn group(text: &str) -> Result<Option<u32>> {
    if text.is_empty() {
        return Ok(None);
    }
    // The largest number means "leave it as it is" to the kernel.
    match text.parse() {
        Ok(group) if group != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Some(group))
        }
        _ => Err(Error::Invalid(format!(
            "volume_mount_group {text:?} is not the number of a group (0 to 4294967294)"
        ))),
    }
}

/// A stage request.
#[derive(Debug, Clone)]
pub(crate) struct StageRequest {
    pub(crate) volume: VolumeId,
    pub(crate) staging: GivenPath,
    pub(crate) capability: Capability,
    pub(crate) spec: SessionSpec,
    pub(crate) mkfs_options: Vec<String>,
    /// Whether it was made from a snapshot or another volume.
    pub(crate) made_from_other: bool,
}

impl StageRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// Names the first field that is missing or malformed.
    pub(crate) fn parse(request: &NodeStageVolumeRequest) -> Result<Self> {
        present("volume_id", &request.volume_id)?;
        let staging = GivenPath::parse("staging_target_path", &request.staging_target_path)?;
        let capability = capability(request.volume_capability.as_ref(), &request.volume_context)?;
        let volume = volume_id(&request.volume_id)?;
        let invalid = |e: &dyn std::fmt::Display| Error::Invalid(e.to_string());
        let context =
            PublishContext::from_map(&request.publish_context).map_err(|e| invalid(&e))?;
        let params =
            VolumeParams::from_volume_context(&request.volume_context).map_err(|e| invalid(&e))?;
        let spec = session_spec(&volume, context, &params);
        if spec.arrival.is_some() && !spec.shield {
            return Err(Error::Invalid(format!(
                "volume {volume} may be on two nodes at once (its publish context has an arrival), \
                 which takes the shield: only that can hold I/O until it is known whether this \
                 node still has the volume; leave shield: \"false\" out of the StorageClass"
            )));
        }
        let made_from_other = request.volume_context.contains_key(context_keys::MADE_FROM);
        let mkfs_options = params.mkfs_options;
        Ok(Self { volume, staging, capability, spec, mkfs_options, made_from_other })
    }
}

fn session_spec(volume: &VolumeId, context: PublishContext, params: &VolumeParams) -> SessionSpec {
    let session = &params.session;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let queues = u32::try_from(cpus.min(QUEUES)).unwrap_or(1);
    SessionSpec {
        volume: volume.clone(),
        nqn: context.nqn,
        host_nqn: context.host_nqn,
        portal: context.portal,
        ctrl_loss_tmo: session.ctrl_loss_tmo,
        reconnect_delay: session.reconnect_delay,
        keep_alive_tmo: session.keep_alive_tmo,
        nr_io_queues: session.nr_io_queues.unwrap_or(queues),
        shield: session.shield,
        io_timeout_secs: session.io_timeout.map_or(0, |t| t.as_secs()),
        reattach_check_secs: session.reattach_check.as_secs(),
        arrival: context.arrival,
    }
}

/// A publish request.
#[derive(Debug, Clone)]
pub(crate) struct PublishRequest {
    pub(crate) volume: VolumeId,
    pub(crate) staging: GivenPath,
    pub(crate) target: GivenPath,
    pub(crate) capability: Capability,
    pub(crate) read_only: bool,
}

impl PublishRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// Names the first field that is missing or malformed.
    pub(crate) fn parse(request: &NodePublishVolumeRequest) -> Result<Self> {
        present("volume_id", &request.volume_id)?;
        let target = GivenPath::parse("target_path", &request.target_path)?;
        let capability = capability(request.volume_capability.as_ref(), &request.volume_context)?;
        let volume = volume_id(&request.volume_id)?;
        let staging = GivenPath::parse("staging_target_path", &request.staging_target_path)?;
        if staging == target {
            return Err(Error::Invalid("target_path and staging_target_path are the same".into()));
        }
        let read_only = request.readonly || capability.read_only;
        Ok(Self { volume, staging, target, capability, read_only })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rds_csi_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use rds_csi_proto::ids::{HostNqn, Portal};

    use super::*;

    fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
        let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    fn block(mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    fn stage() -> NodeStageVolumeRequest {
        let context = PublishContext {
            nqn: "nqn.2000-02.com.mikrotik:pvc-x".parse().unwrap(),
            host_nqn: HostNqn::random(),
            portal: Portal::parse("10.0.0.2", "4420").unwrap(),
            arrival: None,
        };
        NodeStageVolumeRequest {
            volume_id: "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".into(),
            publish_context: context.to_map(),
            staging_target_path: "/staging".into(),
            volume_capability: Some(mount("xfs", Mode::SingleNodeWriter)),
            ..NodeStageVolumeRequest::default()
        }
    }

    #[test]
    fn each_missing_field_is_named() {
        type Spoil = fn(&mut NodeStageVolumeRequest);
        let cases: [(&str, Spoil); 5] = [
            ("volume_id", |r| r.volume_id.clear()),
            ("staging_target_path", |r| r.staging_target_path.clear()),
            ("volume_capability", |r| r.volume_capability = None),
            ("hostNqn", |r| r.publish_context.clear()),
            ("access mode", |r| {
                r.volume_capability.as_mut().unwrap().access_mode = None;
            }),
        ];
        for (field, spoil) in cases {
            let mut request = stage();
            StageRequest::parse(&request).unwrap();
            spoil(&mut request);
            let error = StageRequest::parse(&request).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.to_string().contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn session_parameters_reach_the_spec() {
        let mut request = stage();
        request.volume_context =
            HashMap::from([("keepAliveTmo".into(), "9".into()), ("nrIoQueues".into(), "7".into())]);
        let spec = StageRequest::parse(&request).unwrap().spec;
        assert_eq!((spec.keep_alive_tmo, spec.nr_io_queues, spec.ctrl_loss_tmo), (9, 7, -1));
        assert!(spec.shield);
    }

    /// With its defaults, the Go driver of the same name leaves keep-alive to the kernel.
    #[test]
    fn a_volume_of_the_go_driver_is_staged_with_a_shield() {
        let mut request = stage();
        request.volume_context = [
            ("rdsAddress", "rds.example"),
            ("nvmeAddress", "10.42.68.1"),
            ("nvmePort", "4420"),
            ("nqn", "nqn.2000-02.com.mikrotik:pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11"),
            ("volumePath", "/storage-pool/metal-csi/pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11.img"),
            ("ctrlLossTmo", "-1"),
            ("reconnectDelay", "5"),
            ("keepAliveTmo", "0"),
            ("migrationTimeoutSeconds", "300"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let staged = StageRequest::parse(&request).unwrap();
        assert_eq!((staged.spec.keep_alive_tmo, staged.spec.reconnect_delay), (5, 5));
        assert!(staged.spec.shield && !staged.made_from_other);
    }

    #[test]
    fn a_volume_that_two_nodes_may_have_needs_the_shield() {
        let mut request = stage();
        request.publish_context.insert("arrival".into(), "a-1".into());
        let spec = StageRequest::parse(&request).unwrap().spec;
        assert_eq!(spec.arrival, Some("a-1".parse().unwrap()));
        request.volume_context.insert("shield".into(), "false".into());
        let error = StageRequest::parse(&request).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.to_string().contains("shield"), "{error}");
        request.publish_context.remove("arrival");
        StageRequest::parse(&request).unwrap();
    }

    #[test]
    fn access_modes() {
        let none = HashMap::new();
        let read = |c: &VolumeCapability| capability(Some(c), &none);
        assert!(read(&mount("", Mode::MultiNodeMultiWriter)).is_err());
        assert!(!read(&block(Mode::MultiNodeMultiWriter)).unwrap().read_only);
        assert!(read(&mount("", Mode::SingleNodeReaderOnly)).unwrap().read_only);
        assert!(read(&mount("", Mode::SingleNodeSingleWriter)).unwrap().single_writer);
        assert!(read(&mount("ntfs", Mode::SingleNodeWriter)).is_err());
        let older = HashMap::from([("fsType".to_owned(), "btrfs".to_owned())]);
        let found = capability(Some(&mount("", Mode::SingleNodeWriter)), &older).unwrap();
        assert!(matches!(found.access, WantedAccess::Filesystem { fs_type: FsType::Btrfs, .. }));
    }

    #[test]
    fn a_group_is_a_number() {
        let of = |text: &str| {
            let mut capability = mount("", Mode::SingleNodeWriter);
            if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
                mount.volume_mount_group = text.into();
            }
            super::capability(Some(&capability), &HashMap::new())
        };
        for (text, number) in [("", None), ("0", Some(0)), ("4294967294", Some(u32::MAX - 1))] {
            let access = of(text).unwrap().access;
            let is = matches!(access, WantedAccess::Filesystem { group, .. } if group == number);
            assert!(is, "{text:?}: {access:?}");
        }
        for text in ["-1", "+1", " 1", "disk", "4294967295", "4294967296", "1.0"] {
            let error = of(text).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.to_string().contains("volume_mount_group"), "{error}");
        }
    }

    #[test]
    fn a_fake_id_is_malformed_or_not_here_depending_on_the_call() {
        let id = "fake-vol-id-1234";
        assert_eq!(volume_id(id).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(known_volume_id(id).unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(known_volume_id("").unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
