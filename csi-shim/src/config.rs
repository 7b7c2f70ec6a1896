//! The command line. Each flag also reads `RDS_CSI_<FLAG>`, so that a manifest can set it.

use std::path::PathBuf;

use clap::{Parser, builder::FalseyValueParser};
use rds_csi_proto::ids::NodeName;

use crate::topology::Segment;

/// CSI node plugin without privileges: forwards kubelet's calls to the rds-node-agent.
#[derive(Debug, Clone, Parser)]
#[command(name = "rds-csi-shim", version)]
pub struct Args {
    /// Where to serve CSI: unix:///path or /path.
    #[arg(long, env = "RDS_CSI_ENDPOINT", value_parser = unix_path)]
    pub endpoint: PathBuf,

    /// The node-agent's socket. Mount its directory into the container, not the socket
    /// itself: the agent makes a new socket whenever it starts.
    #[arg(long, env = "RDS_CSI_AGENT_SOCKET", default_value = "/run/rds-csi/agent.sock")]
    pub agent_socket: PathBuf,

    /// This node's name in Kubernetes; it is the node's id in CSI too.
    #[arg(long, env = "RDS_CSI_NODE_NAME")]
    pub node_name: NodeName,

    /// Where this node is, as KEY=VALUE: kubelet labels the Node with it, and volumes can be kept
    /// to nodes by it. May be given more than once. Needed only where not every node reaches the
    /// appliance.
    #[arg(long, env = "RDS_CSI_TOPOLOGY", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub topology: Vec<Segment>,

    /// The name that StorageClasses call this driver by.
    #[arg(long, env = "RDS_CSI_DRIVER_NAME", default_value = rds_csi_proto::DRIVER_NAME,
          value_parser = driver_name)]
    pub driver_name: String,

    /// kubelet's plugins_registry directory, as mounted here.
    #[arg(long, env = "RDS_CSI_REGISTRATION_DIR", default_value = "/registration")]
    pub registration_dir: PathBuf,

    /// The CSI socket as kubelet sees it
    /// [default: /var/lib/kubelet/plugins/DRIVER_NAME/csi.sock].
    #[arg(long, env = "RDS_CSI_KUBELET_ENDPOINT", value_parser = unix_path)]
    pub kubelet_endpoint: Option<PathBuf>,

    /// Do not register with kubelet (tests, other orchestrators).
    #[arg(long, env = "RDS_CSI_NO_REGISTRATION", value_parser = FalseyValueParser::new())]
    pub no_registration: bool,

    /// How to reach the Kubernetes API, outside of a pod: a kubeconfig with a token, in JSON, as
    /// `kubectl config view --raw --flatten -o json` prints it
    /// [default: the pod's service account].
    #[arg(long, env = "RDS_CSI_KUBECONFIG", value_name = "FILE", conflicts_with = "no_kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Do not talk to a Kubernetes API server. Then nobody tells the agent whether an attachment
    /// still exists: block volumes that two nodes may have are refused.
    #[arg(long, env = "RDS_CSI_NO_KUBERNETES", value_parser = FalseyValueParser::new())]
    pub no_kubernetes: bool,
}

impl Args {
    /// The path that kubelet is told to find us at.
    #[must_use]
    pub fn kubelet_endpoint(&self) -> PathBuf {
        self.kubelet_endpoint.clone().unwrap_or_else(|| {
            PathBuf::from("/var/lib/kubelet/plugins").join(&self.driver_name).join("csi.sock")
        })
    }

    /// Our socket in kubelet's plugins_registry.
    #[must_use]
    pub fn registration_socket(&self) -> PathBuf {
        self.registration_dir.join(format!("{}-reg.sock", self.driver_name))
    }
}

/// `unix:///p`, `unix:/p` and `/p` all name `/p`: sidecars and tools differ in what they take.
fn unix_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.len() > 1 && path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err("expected unix:///absolute/path or /absolute/path".to_owned())
    }
}

/// CSI's rule for driver names (spec, GetPluginInfo): they become part of file names.
fn driver_name(text: &str) -> Result<String, String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
    {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 63 letters, digits, '-' or '.', with a letter or digit at both ends"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(extra: &[&str]) -> Result<Args, clap::Error> {
        let base = ["rds-csi-shim", "--endpoint", "unix:///csi/csi.sock", "--node-name", "n1"];
        Args::try_parse_from(base.iter().chain(extra))
    }

    #[test]
    fn the_documented_command_line_is_accepted() {
        let args = parse(&[
            "--agent-socket",
            "/run/rds-csi/agent.sock",
            "--no-registration",
            "--no-kubernetes",
        ])
        .unwrap();
        assert_eq!(args.endpoint, PathBuf::from("/csi/csi.sock"));
        assert!(args.no_registration && args.no_kubernetes);
        assert_eq!(
            args.kubelet_endpoint(),
            PathBuf::from("/var/lib/kubelet/plugins/rds.csi.srvlab.io/csi.sock")
        );
        assert_eq!(
            args.registration_socket(),
            PathBuf::from("/registration/rds.csi.srvlab.io-reg.sock")
        );
    }

    #[test]
    fn endpoints_come_in_three_spellings_and_relative_ones_are_refused() {
        for text in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(unix_path(text).unwrap(), PathBuf::from("/csi/csi.sock"), "{text}");
        }
        for text in ["", "/", "unix://", "csi.sock", "tcp://127.0.0.1:1"] {
            assert!(unix_path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn topology_is_given_more_than_once_or_in_a_list() {
        assert!(parse(&[]).unwrap().topology.is_empty());
        let twice = parse(&["--topology", "zone=a", "--topology", "example.org/rack=7"]).unwrap();
        assert_eq!(twice.topology.len(), 2);
        // As the environment gives it.
        let list = parse(&["--topology", "zone=a,example.org/rack=7"]).unwrap();
        assert_eq!(list.topology, twice.topology);
        let refused = parse(&["--topology", "zone"]).unwrap_err().to_string();
        assert!(refused.contains("KEY=VALUE"), "{refused}");
    }

    #[test]
    fn names_that_cannot_be_file_names_are_refused() {
        assert!(parse(&["--driver-name", "../x"]).is_err());
        assert!(parse(&["--driver-name", ""]).is_err());
        assert!(
            Args::try_parse_from(["s", "--endpoint", "/s", "--node-name", "Not_A_Node"]).is_err()
        );
    }
}
