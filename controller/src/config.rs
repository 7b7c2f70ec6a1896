//! The command line: parsed once, and valid from then on.

mod url;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use rds_csi_proto::ids::{NodeName, RdsName};

pub(crate) use self::url::user_name;
pub use self::url::{RdsUrl, Scheme};
use crate::adopt::AdoptArgs;
use crate::kubernetes::KubernetesArgs;
use crate::orphans::OrphanArgs;
use crate::rules::owner::ClusterId;
use crate::rules::path::AppliancePath;
use crate::rules::topology::Segment;

/// CSI controller for a MikroTik ROSE Data Server (RDS), over NVMe/TCP.
///
/// In Kubernetes several replicas may run: one leads, and the others stand by.
#[derive(Debug, Clone, Parser)]
#[command(name = "rds-csi-controller", version)]
pub struct Args {
    /// Where to serve CSI: unix:///path/to/csi.sock
    #[arg(long, env = "RDS_CSI_ENDPOINT", value_name = "unix:///PATH")]
    pub endpoint: UnixEndpoint,

    /// The appliance: its REST service (RouterOS service www-ssl), or its SSH service
    #[arg(
        long,
        env = "RDS_CSI_RDS_URL",
        value_name = "https://HOST[:PORT]|ssh://USER@HOST[:PORT]"
    )]
    pub rds_url: RdsUrl,

    /// Directory with the files username, password, and for REST ca.crt and/or cert.sha256,
    /// for SSH ssh-host-key (the pinned key or its fingerprint) and optionally
    /// ssh-privatekey; read again whenever it is used. The appliance is always verified
    #[arg(long, env = "RDS_CSI_RDS_CREDENTIALS", value_name = "DIR")]
    pub rds_credentials: PathBuf,

    /// Directory on the appliance for volume files, such as /raid10/volumes. May be given
    /// several times: the first is the default, and the StorageClass key volumePath must lie
    /// in one of them. No file outside is ever touched
    #[arg(
        long,
        env = "RDS_CSI_VOLUME_PATH",
        value_name = "/POOL/DIR",
        required = true,
        value_delimiter = ','
    )]
    pub volume_path: Vec<AppliancePath>,

    /// What this cluster calls the appliance of --rds-url (StorageClass parameter rds)
    #[arg(long, env = "RDS_CSI_RDS_NAME", value_name = "NAME", default_value = DEFAULT_NAME)]
    pub rds_name: RdsName,

    /// Where the appliance of --rds-url is reached from: nodes that have all of these
    /// segments [default: from everywhere]
    #[arg(long, env = "RDS_CSI_RDS_TOPOLOGY", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub rds_topology: Vec<Segment>,

    /// A JSON file with further appliances, chosen by the StorageClass parameter rds; see
    /// docs/appliances.md
    #[arg(long, env = "RDS_CSI_RDS_CONFIG", value_name = "FILE")]
    pub rds_config: Option<PathBuf>,

    /// Owner tag: items on the appliance that carry another one are never touched. Give each
    /// cluster its own (the uid of the kube-system namespace is a good choice) and never
    /// change it while volumes exist
    #[arg(long, env = "RDS_CSI_CLUSTER_ID", default_value = DEFAULT_CLUSTER)]
    pub cluster_id: ClusterId,

    /// CSI driver name
    #[arg(long, env = "RDS_CSI_DRIVER_NAME", default_value = rds_csi_proto::DRIVER_NAME)]
    pub driver_name: DriverName,

    /// Address of the NVMe/TCP portal of the appliance of --rds-url, for nodes, when the StorageClass has no nvmeAddress
    /// [default: the host of --rds-url]
    #[arg(long, env = "RDS_CSI_NVME_ADDRESS", value_name = "HOST")]
    pub nvme_address: Option<Host>,

    /// Names of the nodes that exist, for use without Kubernetes: attaching to any other is
    /// NOT_FOUND. Without it, any well-formed name is taken for a node
    #[arg(long, env = "RDS_CSI_NODES", value_name = "NAME,...", value_delimiter = ',')]
    pub nodes: Vec<NodeName>,

    /// Let a second node have any ReadWriteMany block volume without proof that it is for a
    /// live migration, as the StorageClass key allowSharedBlock does for its own volumes:
    /// all users must then agree among themselves who writes (docs/rwx.md)
    #[arg(
        long,
        env = "RDS_CSI_ALLOW_SHARED_BLOCK",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    pub allow_shared_block: bool,

    /// Give each node of a ReadWriteMany block volume a host NQN of its own. Only for a
    /// RouterOS that is known to take a list in nvme-tcp-server-allow-host-name
    #[arg(
        long,
        env = "RDS_CSI_ALLOW_HOST_LIST",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    pub allow_host_list: bool,

    /// Whether an export counts as off only when the appliance's NVMe/TCP portal says so
    /// itself: auto where the controller can reach the portal; always (a detach fails while
    /// it cannot); never (what RouterOS prints is trusted)
    #[arg(long, env = "RDS_CSI_PROVE_EXPORT_OFF", value_enum, default_value = "auto")]
    pub prove_export_off: ProveOff,

    /// Serve /metrics and /healthz here
    #[arg(long, env = "RDS_CSI_METRICS_ADDR", value_name = "ADDR:PORT")]
    pub metrics_addr: Option<SocketAddr>,

    /// With --metrics-addr: how often, in seconds, the appliance is asked for its health,
    /// disks and load, while no call uses it. 0: never
    #[arg(
        long,
        env = "RDS_CSI_READINGS_INTERVAL",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(..=3600)
    )]
    pub readings_interval: u64,

    #[command(flatten)]
    pub orphans: OrphanArgs,

    #[command(flatten)]
    pub adoption: AdoptArgs,

    #[command(flatten)]
    pub kubernetes: KubernetesArgs,

    /// Do not use the Kubernetes API: no leader is elected, so run one controller
    #[arg(
        long,
        env = "RDS_CSI_NO_KUBERNETES",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    pub no_kubernetes: bool,
}

/// When the portal is asked whether an export is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProveOff {
    Auto,
    Always,
    Never,
}

/// The cluster id of those who do not choose one.
pub const DEFAULT_CLUSTER: &str = "default";

/// The name of an appliance for which none is chosen.
pub(crate) const DEFAULT_NAME: &str = "default";

/// A unix socket's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixEndpoint(pub PathBuf);

impl FromStr for UnixEndpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') && !path.ends_with('/') => Ok(Self(path.into())),
            _ => Err("expected unix:///path/to/csi.sock".into()),
        }
    }
}

/// A host name or an IP address (without brackets).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl Host {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = !text.is_empty()
            && text.len() <= 253
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        if name || text.parse::<IpAddr>().is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is neither a host name nor an IP address"))
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A CSI plugin name: a domain name of at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverName(String);

impl DriverName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DriverName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        let ok = bytes.len() <= 63
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(b));
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected a domain name of at most 63 characters (CSI, GetPluginInfo)".into())
        }
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_documented_command_line_is_accepted() {
        let line = "x --endpoint unix:///csi/csi.sock --rds-url https://h --rds-credentials /c \
                    --volume-path /pool/dir --no-kubernetes --metrics-addr 127.0.0.1:9";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert!(args.no_kubernetes);
        assert_eq!(args.cluster_id.as_str(), DEFAULT_CLUSTER);
        let ssh = line.replace("https://h", "ssh://admin@h");
        let args = Args::try_parse_from(ssh.split_whitespace()).unwrap();
        assert_eq!(args.rds_url.to_string(), "h:22");
        let http = line.replace("https://h", "http://h");
        let error = Args::try_parse_from(http.split_whitespace()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
