//! What a new volume is filled from.

use std::fmt;
use std::str::FromStr;

use rds_csi_proto::csi::VolumeContentSource;
use rds_csi_proto::csi::volume_content_source::{SnapshotSource, Type as Csi, VolumeSource};
use rds_csi_proto::ids::{SnapshotId, VolumeId};

use crate::error::Error;

/// A snapshot, or another volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

impl Source {
    /// Reads a request's. An id of another form was never given out, so it does not exist.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` without an id, `NOT_FOUND` for one that cannot be.
    pub fn from_csi(source: VolumeContentSource) -> Result<Self, Error> {
        let empty = || Error::Invalid("volume_content_source names neither".into());
        match source.r#type {
            Some(Csi::Snapshot(SnapshotSource { snapshot_id })) if !snapshot_id.is_empty() => {
                let id = snapshot_id.parse().map_err(|_| Error::NoSuchSnapshot(snapshot_id))?;
                Ok(Self::Snapshot(id))
            }
            Some(Csi::Volume(VolumeSource { volume_id })) if !volume_id.is_empty() => {
                Ok(Self::Volume(volume_id.parse().map_err(|_| Error::NotFound(volume_id))?))
            }
            _ => Err(empty()),
        }
    }

    /// What to say if it is not there.
    #[must_use]
    pub fn missing(&self) -> Error {
        match self {
            Self::Snapshot(id) => Error::NoSuchSnapshot(id.to_string()),
            Self::Volume(id) => Error::NotFound(id.to_string()),
        }
    }

    /// As it is answered, each time.
    #[must_use]
    pub fn to_csi(&self) -> VolumeContentSource {
        let r#type = match self {
            Self::Snapshot(id) => Csi::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
            Self::Volume(id) => Csi::Volume(VolumeSource { volume_id: id.to_string() }),
        };
        VolumeContentSource { r#type: Some(r#type) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => id.fmt(f),
            Self::Volume(id) => id.fmt(f),
        }
    }
}

impl FromStr for Source {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text.parse() {
            Ok(id) => Ok(Self::Snapshot(id)),
            Err(_) => text.parse().map(Self::Volume).map_err(drop),
        }
    }
}
