//! What ControllerPublish hands to the node: where the volume is, and as whom to connect.

use std::collections::HashMap;

use crate::ids::{HostNqn, InvalidName, Nqn, Portal};

/// Keys of the publish context.
pub const HOST_NQN: &str = "hostNqn";
/// Subsystem NQN: in the publish context, and in the volume context of older volumes.
pub const NQN: &str = "nqn";
/// Data portal address, as an IP address.
pub const NVME_ADDRESS: &str = "nvmeAddress";
/// Data portal port.
pub const NVME_PORT: &str = "nvmePort";

/// The attachment of one volume to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishContext {
    /// Which subsystem to connect to.
    pub nqn: Nqn,
    /// As whom: this attachment's epoch.
    pub host_nqn: HostNqn,
    /// Where.
    pub portal: Portal,
}

/// A publish context that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A key is not there at all.
    #[error(
        "publish context has no {key:?}: the volume must be attached first \
         (ControllerPublishVolume), and its publish_context passed on unchanged"
    )]
    Missing {
        /// Which one.
        key: &'static str,
    },
    /// A key is there with an unusable value.
    #[error("publish context: {0}")]
    Invalid(#[from] InvalidName),
}

impl PublishContext {
    /// Reads what [`Self::to_map`] wrote.
    ///
    /// # Errors
    /// Names the key that is missing or malformed.
    pub fn from_map(map: &HashMap<String, String>) -> Result<Self, ContextError> {
        let get = |key: &'static str| {
            map.get(key)
                .map(String::as_str)
                .filter(|v| !v.is_empty())
                .ok_or(ContextError::Missing { key })
        };
        Ok(Self {
            host_nqn: get(HOST_NQN)?.parse()?,
            nqn: get(NQN)?.parse()?,
            portal: Portal::parse(get(NVME_ADDRESS)?, get(NVME_PORT)?)?,
        })
    }

    /// The map that travels in ControllerPublishVolumeResponse.
    #[must_use]
    pub fn to_map(&self) -> HashMap<String, String> {
        HashMap::from([
            (NQN.to_owned(), self.nqn.to_string()),
            (HOST_NQN.to_owned(), self.host_nqn.to_string()),
            (NVME_ADDRESS.to_owned(), self.portal.address().to_string()),
            (NVME_PORT.to_owned(), self.portal.port().to_string()),
        ])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn round_trip_and_each_missing_key_is_named() {
        let context = PublishContext {
            nqn: "nqn.2000-02.com.mikrotik:pvc-x".parse().unwrap(),
            host_nqn: HostNqn::random(),
            portal: Portal::parse("10.0.0.2", "4420").unwrap(),
        };
        let map = context.to_map();
        assert_eq!(PublishContext::from_map(&map).unwrap(), context);
        for key in [NQN, HOST_NQN, NVME_ADDRESS, NVME_PORT] {
            let mut partial = map.clone();
            partial.remove(key);
            let message = PublishContext::from_map(&partial).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}
