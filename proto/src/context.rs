//! What ControllerPublish hands to the node: where the volume is, and as whom to connect.

use std::collections::HashMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{HostNqn, InvalidName, Nqn, Portal};

/// Keys of the publish context.
pub const HOST_NQN: &str = "hostNqn";
/// Subsystem NQN: in the publish context, and in the volume context of older volumes.
pub const NQN: &str = "nqn";
/// Data portal address, as an IP address.
pub const NVME_ADDRESS: &str = "nvmeAddress";
/// Data portal port.
pub const NVME_PORT: &str = "nvmePort";
/// What tells this attachment from others of the same host NQN; only there if there are such.
pub const ARRIVAL: &str = "arrival";

/// The attachment of one volume to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishContext {
    /// Which subsystem to connect to.
    pub nqn: Nqn,
    /// As whom: this attachment's epoch.
    pub host_nqn: HostNqn,
    /// Where.
    pub portal: Portal,
    /// For a volume whose nodes connect as the same host: which arrival of this node it is.
    /// Then the target cannot keep a node out that was detached by force, and the node's agent
    /// has to ask whether its attachment still exists before it lets I/O go on.
    pub arrival: Option<Arrival>,
}

/// Something that no other attachment of the volume has. It says nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Arrival(String);

impl Arrival {
    /// Named by a host NQN that nobody connects as: as unique as that.
    #[must_use]
    pub fn of(host: &HostNqn) -> Self {
        Self(host.host_id().to_owned())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Arrival {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(ContextError::Arrival(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Arrival {
    type Error = ContextError;

    fn try_from(text: String) -> Result<Self, ContextError> {
        text.parse()
    }
}

impl From<Arrival> for String {
    fn from(arrival: Arrival) -> Self {
        arrival.0
    }
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
    /// An arrival that no controller has made.
    #[error(
        "publish context: arrival is {0:?}, and not 1 to 64 letters, digits or '-': it has to be \
         passed on unchanged"
    )]
    Arrival(String),
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
            arrival: map.get(ARRIVAL).map(|text| text.parse()).transpose()?,
        })
    }

    /// The map that travels in ControllerPublishVolumeResponse.
    #[must_use]
    pub fn to_map(&self) -> HashMap<String, String> {
        let mut map = identity(&self.nqn, &self.host_nqn, self.arrival.as_ref());
        map.insert(NVME_ADDRESS.to_owned(), self.portal.address().to_string());
        map.insert(NVME_PORT.to_owned(), self.portal.port().to_string());
        map
    }
}

/// The part of a publish context that differs from one attachment of a volume to the next.
/// Where the portal is may change under an attachment that stays the same.
#[must_use]
pub fn identity(
    nqn: &Nqn,
    host_nqn: &HostNqn,
    arrival: Option<&Arrival>,
) -> HashMap<String, String> {
    let pair = |key: &str, value: String| (key.to_owned(), value);
    [pair(NQN, nqn.to_string()), pair(HOST_NQN, host_nqn.to_string())]
        .into_iter()
        .chain(arrival.map(|a| pair(ARRIVAL, a.as_str().to_owned())))
        .collect()
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
            arrival: None,
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

    #[test]
    fn an_arrival_travels_along_and_is_never_ignored() {
        let context = PublishContext {
            nqn: "nqn.2000-02.com.mikrotik:pvc-x".parse().unwrap(),
            host_nqn: HostNqn::random(),
            portal: Portal::parse("10.0.0.2", "4420").unwrap(),
            arrival: Some("a-1".parse().unwrap()),
        };
        let mut map = context.to_map();
        assert_eq!(PublishContext::from_map(&map).unwrap(), context);
        for bad in ["", "a b", &"x".repeat(65)] {
            map.insert(ARRIVAL.to_owned(), bad.to_owned());
            let message = PublishContext::from_map(&map).unwrap_err().to_string();
            assert!(message.contains("arrival"), "{message}");
        }
    }
}
