//! Which access a volume can be asked for.

use rds_csi_proto::csi::VolumeCapability;
use rds_csi_proto::csi::volume_capability::AccessType;
use rds_csi_proto::csi::volume_capability::access_mode::Mode;
use rds_csi_proto::params::FsType;

use super::owner::Sharing;
use crate::error::Error;

/// Reads one capability and says on which terms the volume would be attached.
///
/// # Errors
/// `INVALID_ARGUMENT`, saying what to use instead.
pub fn check(capability: &VolumeCapability) -> Result<Sharing, Error> {
    let mode = capability
        .access_mode
        .as_ref()
        .ok_or_else(|| Error::Invalid("volume_capability has no access_mode".into()))?;
    let shared = match mode.mode() {
        Mode::SingleNodeWriter
        | Mode::SingleNodeReaderOnly
        | Mode::SingleNodeSingleWriter
        | Mode::SingleNodeMultiWriter => None,
        Mode::MultiNodeReaderOnly => Some("ReadOnlyMany"),
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => Some("ReadWriteMany"),
        Mode::Unknown => {
            return Err(Error::Invalid(format!("access mode {} is not known", mode.mode)));
        }
    };
    match (&capability.access_type, shared) {
        (None, _) => {
            Err(Error::Invalid("volume_capability has no access_type (block or mount)".into()))
        }
        (Some(AccessType::Mount(_)), Some(name)) => Err(Error::Invalid(format!(
            "{name} is not possible with a file system: one mounted on two nodes is destroyed. \
             Use accessModes [ReadWriteOnce], or volumeMode: Block with {name} (KubeVirt live migration)"
        ))),
        (Some(AccessType::Mount(mount)), None) => {
            FsType::parse(&mount.fs_type)?;
            Ok(Sharing::Exclusive)
        }
        (Some(AccessType::Block(_)), Some(_)) => Ok(Sharing::Shared),
        (Some(AccessType::Block(_)), None) => Ok(Sharing::Exclusive),
    }
}

/// Reads all capabilities of a request; none at all is an error.
///
/// # Errors
/// As [`check`].
pub fn check_all(capabilities: &[VolumeCapability]) -> Result<(), Error> {
    if capabilities.is_empty() {
        return Err(Error::Invalid("volume_capabilities is required".into()));
    }
    capabilities.iter().try_for_each(|c| check(c).map(drop))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rds_csi_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use tonic::Code;

    fn cap(access_type: Option<AccessType>, mode: Mode) -> VolumeCapability {
        VolumeCapability { access_type, access_mode: Some(AccessMode { mode: mode.into() }) }
    }

    #[test]
    fn shared_file_systems_are_refused_with_the_way_out() {
        let mount = || Some(AccessType::Mount(MountVolume::default()));
        let block = || Some(AccessType::Block(BlockVolume {}));
        for mode in
            [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter]
        {
            let error = check(&cap(mount(), mode)).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains("volumeMode: Block"), "{error}");
            assert_eq!(check(&cap(block(), mode)).unwrap(), Sharing::Shared);
        }
        for mode in [
            Mode::SingleNodeWriter,
            Mode::SingleNodeReaderOnly,
            Mode::SingleNodeSingleWriter,
            Mode::SingleNodeMultiWriter,
        ] {
            assert_eq!(check(&cap(mount(), mode)).unwrap(), Sharing::Exclusive);
            assert_eq!(check(&cap(block(), mode)).unwrap(), Sharing::Exclusive);
        }
        assert!(check(&cap(None, Mode::SingleNodeWriter)).is_err());
        assert!(check(&cap(block(), Mode::Unknown)).is_err());
        assert!(check_all(&[]).is_err());
    }

    #[test]
    fn an_unknown_file_system_is_refused() {
        let ntfs = MountVolume { fs_type: "ntfs".into(), ..MountVolume::default() };
        let error = check(&cap(Some(AccessType::Mount(ntfs)), Mode::SingleNodeWriter)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
}
