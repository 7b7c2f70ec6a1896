//! Names that are parsed once, at the edge, and cannot be wrong inside.
//!
//! A volume id becomes a file name on the appliance, a device-mapper name and a path
//! component on the node; an NQN goes into a comma-separated option string of the kernel.
//! So each type admits exactly the characters that are safe in all those places.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a name was refused: what it was, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {expected}")]
pub struct InvalidName {
    /// The kind of name, for people: "volume id".
    pub what: &'static str,
    /// What was given, cut to a length that fits a log line.
    pub value: String,
    /// What would have been accepted.
    pub expected: &'static str,
}

impl InvalidName {
    fn new(what: &'static str, value: &str, expected: &'static str) -> Self {
        let value = value.chars().take(80).collect();
        Self { what, value, expected }
    }
}

/// A name that serialises as its text and is checked again whenever it is read.
macro_rules! text_name {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

/// `pvc-<uuid>`: the volume's name in Kubernetes, its slot on the appliance, and the
/// stem of its file and device names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

/// Names volumes whose CSI name is not of the form `pvc-<uuid>`: version 5 UUIDs in this
/// namespace, so that the same name always gives the same volume.
const VOLUME_NAMESPACE: Uuid = Uuid::from_u128(0x8a1c_6f0e_52d7_4b0b_9a57_2f1d_3f6b_6e10);

impl VolumeId {
    /// The id of the volume that a CreateVolume request names. A provisioner's own
    /// `pvc-<uuid>` is kept; any other name maps to one deterministically.
    #[must_use]
    pub fn from_request_name(name: &str) -> Self {
        name.parse().unwrap_or_else(|_| {
            Self(format!("pvc-{}", Uuid::new_v5(&VOLUME_NAMESPACE, name.as_bytes())))
        })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.strip_prefix("pvc-").is_some_and(is_canonical) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new("volume id", text, "expected pvc-<uuid>, in lower case"))
        }
    }
}
text_name!(VolumeId);

/// `snap-<uuid>`: a snapshot's id in CSI.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

/// As [`VOLUME_NAMESPACE`], for snapshots.
const SNAPSHOT_NAMESPACE: Uuid = Uuid::from_u128(0x5f0b_27a4_9c1e_4d63_8b0f_64e1_d2a9_7c35);

impl SnapshotId {
    /// The id of the snapshot that a CreateSnapshot request names. The `snapshot-<uuid>` of
    /// the external snapshotter keeps its UUID; any other name maps to one deterministically.
    #[must_use]
    pub fn from_request_name(name: &str) -> Self {
        let uuid = name.strip_prefix("snapshot-").filter(|uuid| is_canonical(uuid));
        match uuid {
            Some(uuid) => Self(format!("snap-{uuid}")),
            None => Self(format!("snap-{}", Uuid::new_v5(&SNAPSHOT_NAMESPACE, name.as_bytes()))),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The UUID in it.
    #[must_use]
    pub fn uuid(&self) -> &str {
        self.0.get("snap-".len()..).unwrap_or_default()
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.strip_prefix("snap-").is_some_and(is_canonical) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new("snapshot id", text, "expected snap-<uuid>, in lower case"))
        }
    }
}
text_name!(SnapshotId);

/// The canonical form only: two spellings of one thing would be two locks.
fn is_canonical(uuid: &str) -> bool {
    Uuid::try_parse(uuid).is_ok_and(|u| u.hyphenated().to_string() == uuid)
}

/// What this cluster calls an appliance: the StorageClass key `rds`, a metric's label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RdsName(String);

impl RdsName {
    /// What a name must look like, for people.
    pub const ACCEPTED: &str = "a name of 1 to 63 lower-case letters, digits and hyphens, one of the controller's appliances";

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RdsName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=63).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new("appliance name", text, Self::ACCEPTED))
        }
    }
}
text_name!(RdsName);

/// The longest NQN that NVMe allows, in bytes (NVMe base specification, 4.5).
const NQN_MAX: usize = 223;

fn nqn_is_safe(text: &str) -> bool {
    text.starts_with("nqn.")
        && text.len() <= NQN_MAX
        // No comma, equals sign or white space: those separate the kernel's options.
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

/// A subsystem's NVMe qualified name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nqn(String);

impl Nqn {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Nqn {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if nqn_is_safe(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new(
                "NQN",
                text,
                "expected nqn.<date>.<domain>:<name>, at most 223 letters, digits or ._:-",
            ))
        }
    }
}
text_name!(Nqn);

/// The host NQN of one attachment, `nqn.2014-08.org.nvmexpress:uuid:<random>`.
///
/// It is an epoch: whoever holds an older one for the same volume has lost it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostNqn(String);

const HOST_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

impl HostNqn {
    /// A fresh one, never used before.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{HOST_NQN_PREFIX}{}", Uuid::new_v4()))
    }

    /// A fresh one that is never given to anybody: an export that admits only this host
    /// admits none. It can be told from an attachment's, whoever reads it later: its UUID is
    /// of version 8 (RFC 9562, free for applications), those of [`Self::random`] of version 4.
    #[must_use]
    pub fn closed() -> Self {
        let custom = uuid::Builder::from_custom_bytes(Uuid::new_v4().into_bytes()).into_uuid();
        Self(format!("{HOST_NQN_PREFIX}{custom}"))
    }

    /// Whether it was made by [`Self::closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        Uuid::try_parse(self.host_id()).is_ok_and(|u| u.get_version_num() == 8)
    }

    /// The one that belongs to a node within a shared attachment: it follows from this one,
    /// and neither this one nor another node's follows from it.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Self {
        let epoch = Uuid::try_parse(self.host_id()).unwrap_or_default();
        Self(format!("{HOST_NQN_PREFIX}{}", Uuid::new_v5(&epoch, node.as_bytes())))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host id that belongs to it. Linux 6.3 and later refuse one host id under two
    /// host NQNs (drivers/nvme/host/fabrics.c, `nvmf_host_add`), so it is the NQN's UUID.
    #[must_use]
    pub fn host_id(&self) -> &str {
        self.0.get(HOST_NQN_PREFIX.len()..).unwrap_or_default()
    }
}

impl FromStr for HostNqn {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let uuid = text.strip_prefix(HOST_NQN_PREFIX).unwrap_or_default();
        if Uuid::try_parse(uuid).is_ok_and(|u| u.hyphenated().to_string() == uuid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new(
                "host NQN",
                text,
                "expected nqn.2014-08.org.nvmexpress:uuid:<uuid>",
            ))
        }
    }
}
text_name!(HostNqn);

/// Where a target listens for NVMe/TCP: an address, not a name. The node must be able to
/// reconnect while name resolution is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Portal(SocketAddr);

/// The port that the NVMe over Fabrics specification assigns.
pub const DEFAULT_NVME_PORT: u16 = 4420;

impl Portal {
    #[must_use]
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self(SocketAddr::new(address, port))
    }
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.ip()
    }
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        self.0
    }

    /// From the two texts of a volume context.
    ///
    /// # Errors
    /// If the address is not an IP address or the port is not 1 to 65535.
    pub fn parse(address: &str, port: &str) -> Result<Self, InvalidName> {
        let ip = address.parse().map_err(|_| {
            InvalidName::new("NVMe address", address, "expected an IPv4 or IPv6 address")
        })?;
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self::new(ip, port)),
            _ => Err(InvalidName::new("NVMe port", port, "expected a number from 1 to 65535")),
        }
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Kubernetes node's name: a DNS subdomain (RFC 1123), 1 to 253 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let bytes = text.as_bytes();
        if bytes.len() <= 253
            && edge(bytes.first().copied())
            && edge(bytes.last().copied())
            && bytes.iter().copied().all(inner)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new(
                "node name",
                text,
                "expected 1 to 253 lower-case letters, digits, '-' or '.', as Kubernetes names nodes",
            ))
        }
    }
}
text_name!(NodeName);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_provisioners_name_is_kept_and_others_map_to_one_id() {
        let own = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
        assert_eq!(VolumeId::from_request_name(own).as_str(), own);
        let a = VolumeId::from_request_name("sanity-volume");
        assert_eq!(a, VolumeId::from_request_name("sanity-volume"));
        assert_ne!(a, VolumeId::from_request_name("sanity-volume2"));
    }

    #[test]
    fn the_snapshotters_uuid_is_kept_and_other_names_map_to_one_id() {
        let uuid = "3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
        let id = SnapshotId::from_request_name(&format!("snapshot-{uuid}"));
        assert_eq!((id.as_str(), id.uuid()), (format!("snap-{uuid}").as_str(), uuid));
        assert_eq!(id.as_str().parse::<SnapshotId>().unwrap(), id);
        // Not two names for one snapshot.
        assert_ne!(SnapshotId::from_request_name(id.as_str()), id);
        assert!(format!("snapshot-{uuid}").parse::<SnapshotId>().is_err());
        assert!(format!("pvc-{uuid}").parse::<SnapshotId>().is_err());
    }

    #[test]
    fn volume_ids_have_one_spelling() {
        for bad in [
            "",
            "pvc-",
            "raid10",
            "../raid10",
            "pvc-3F1E1C0A-9D6E-4A3C-8F54-0C7A6A0B7E11",
            "pvc-3f1e1c0a9d6e4a3c8f540c7a6a0b7e11",
            "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11\n",
        ] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nqns_cannot_carry_kernel_options() {
        assert!("nqn.2000-02.com.mikrotik:pvc-1".parse::<Nqn>().is_ok());
        for bad in ["nqn.a,traddr=1.2.3.4", "nqn.a b", "nqn.a=b", "iqn.2000", ""] {
            assert!(bad.parse::<Nqn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_host_nqn_carries_its_host_id() {
        let closed = HostNqn::closed();
        assert!(closed.is_closed() && closed.as_str().parse::<HostNqn>().unwrap().is_closed());
        assert!(closed != HostNqn::closed() && !HostNqn::random().is_closed());
        let nqn = HostNqn::random();
        assert_eq!(nqn.as_str().parse::<HostNqn>().unwrap(), nqn);
        assert!(nqn.as_str().ends_with(nqn.host_id()));
        assert_eq!(nqn.host_id().len(), 36);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "\\PC{0,60}") {
            if let Ok(id) = text.parse::<VolumeId>() { prop_assert_eq!(id.as_str(), &text); }
            if let Ok(nqn) = text.parse::<Nqn>() { prop_assert_eq!(nqn.as_str(), &text); }
            if let Ok(node) = text.parse::<NodeName>() { prop_assert_eq!(node.as_str(), &text); }
            let any = VolumeId::from_request_name(&text);
            prop_assert_eq!(any.as_str().parse::<VolumeId>().unwrap(), any);
        }
    }
}
