//! The command line: parsed once, and valid from then on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use hyper::Uri;
use rds_csi_proto::ids::NodeName;

use crate::rules::owner::ClusterId;
use crate::rules::path::AppliancePath;

/// CSI controller for a MikroTik ROSE Data Server (RDS), over NVMe/TCP.
///
/// Kubernetes features (leader election, PV annotations, Events) are not active in this
/// version, with or without --no-kubernetes: run one replica.
#[derive(Debug, Clone, Parser)]
#[command(name = "rds-csi-controller", version)]
pub struct Args {
    /// Where to serve CSI: unix:///path/to/csi.sock
    #[arg(long, env = "RDS_CSI_ENDPOINT", value_name = "unix:///PATH")]
    pub endpoint: UnixEndpoint,

    /// REST service of the appliance (RouterOS service www-ssl)
    #[arg(long, env = "RDS_CSI_RDS_URL", value_name = "https://HOST[:PORT]")]
    pub rds_url: RestUrl,

    /// Directory with the files username, password, ca.crt and/or cert.sha256; read again
    /// whenever it is used. TLS verification cannot be switched off
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

    /// Owner tag: items on the appliance that carry another one are never touched. Give each
    /// cluster its own (the uid of the kube-system namespace is a good choice) and never
    /// change it while volumes exist
    #[arg(long, env = "RDS_CSI_CLUSTER_ID", default_value = DEFAULT_CLUSTER)]
    pub cluster_id: ClusterId,

    /// CSI driver name
    #[arg(long, env = "RDS_CSI_DRIVER_NAME", default_value = rds_csi_proto::DRIVER_NAME)]
    pub driver_name: DriverName,

    /// Address of the NVMe/TCP portal for nodes, when the StorageClass has no nvmeAddress
    /// [default: the host of --rds-url]
    #[arg(long, env = "RDS_CSI_NVME_ADDRESS", value_name = "HOST")]
    pub nvme_address: Option<Host>,

    /// Names of the nodes that exist, for use without Kubernetes: attaching to any other is
    /// NOT_FOUND. Without it, any well-formed name is taken for a node
    #[arg(long, env = "RDS_CSI_NODES", value_name = "NAME,...", value_delimiter = ',')]
    pub nodes: Vec<NodeName>,

    /// Serve /metrics and /healthz here
    #[arg(long, env = "RDS_CSI_METRICS_ADDR", value_name = "ADDR:PORT")]
    pub metrics_addr: Option<SocketAddr>,

    /// Do not use the Kubernetes API
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

/// The cluster id of those who do not choose one.
pub const DEFAULT_CLUSTER: &str = "default";

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

/// `https://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestUrl {
    host: Host,
    port: u16,
}

impl RestUrl {
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.as_str()
    }
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
    /// For the Host header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host().contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for RestUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

impl FromStr for RestUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("ssh:") {
            return Err("the SSH transport comes with a later version; use https://HOST[:PORT] \
                        (RouterOS service www-ssl)"
                .into());
        }
        if text.starts_with("http:") {
            return Err("plain HTTP would send the password in the clear; use https://".into());
        }
        let expected = || "expected https://HOST[:PORT], without user or path".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let authority = uri.authority().ok_or_else(expected)?;
        let bare = uri.path_and_query().is_none_or(|p| p.as_str() == "/");
        if uri.scheme_str() != Some("https") || !bare || authority.as_str().contains('@') {
            return Err(expected());
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // `host:` and ports beyond 65535 are not ports to http::Uri.
            None if authority.as_str().len() == authority.host().len() => 443,
            None => return Err(expected()),
        };
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Ok(Self { host: host.parse()?, port })
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
    fn urls() {
        for (text, want) in [
            ("https://10.0.0.1", "10.0.0.1:443"),
            ("https://rds.example/", "rds.example:443"),
            ("https://[fd00::1]:8443", "[fd00::1]:8443"),
        ] {
            assert_eq!(text.parse::<RestUrl>().unwrap().to_string(), want);
        }
        for (text, why) in [
            ("ssh://admin@10.0.0.1", "https://"),
            ("http://10.0.0.1", "in the clear"),
            ("https://u:p@10.0.0.1", "without user"),
            ("https://10.0.0.1/rest", "without user or path"),
            ("https://10.0.0.1:99999", "expected"),
            ("10.0.0.1", "expected"),
            ("", "expected"),
        ] {
            let error = text.parse::<RestUrl>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_documented_command_line_is_accepted() {
        let line = "x --endpoint unix:///csi/csi.sock --rds-url https://h --rds-credentials /c \
                    --volume-path /pool/dir --no-kubernetes --metrics-addr 127.0.0.1:9";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert!(args.no_kubernetes);
        assert_eq!(args.cluster_id.as_str(), DEFAULT_CLUSTER);
        let ssh = line.replace("https://h", "ssh://admin@h");
        let error = Args::try_parse_from(ssh.split_whitespace()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("use https://"), "{error}");
    }
}
