//! The command line. Each guess of ROUTEROS.md (`?`) is a switch here, with its default's reason.

mod switches;
mod values;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;

pub use self::switches::Switches;
pub use self::values::*;
use crate::control::command::ControlCommand;
use crate::ros::policy::Policy;
use crate::ros::version::Version;

/// What was asked for. Two parsers, since clap cannot have a subcommand beside required flags
/// that the subcommand does without.
#[derive(Debug)]
pub enum Invocation {
    Serve(Box<Serve>),
    Ctl(Ctl),
}

impl Invocation {
    /// Reads a command line, program name included.
    pub fn parse_from(words: Vec<OsString>) -> Result<Invocation, clap::Error> {
        if words.get(1).is_some_and(|w| w == "ctl") {
            let words = words.into_iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, w)| w);
            return Ctl::try_parse_from(words).map(Invocation::Ctl);
        }
        Serve::try_parse_from(words).map(|serve| Invocation::Serve(Box::new(serve)))
    }
}

/// Talks to a running rds-sim through its control socket; prints JSON.
#[derive(Debug, Parser)]
#[command(name = "rds-sim ctl")]
pub struct Ctl {
    #[arg(long, env = "RDS_CSI_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Default: `<state-dir>/control.sock`.
    #[arg(long, env = "RDS_CSI_CONTROL_ADDR")]
    pub control_addr: Option<PathBuf>,
    #[command(subcommand)]
    pub command: ControlCommand,
}

/// A RouterOS stand-in whose exports are real kernel NVMe/TCP targets.
///
/// Prints the SSH host key's fingerprint and `ready` once it serves. `rds-sim ctl --help` tells
/// how to order faults.
#[derive(Debug, Clone, Parser)]
#[command(name = "rds-sim")]
pub struct Serve {
    #[arg(long, env = "RDS_CSI_STATE_DIR")]
    pub state_dir: PathBuf,
    #[arg(long, env = "RDS_CSI_REST_ADDR")]
    pub rest_addr: SocketAddr,
    #[arg(long, env = "RDS_CSI_SSH_ADDR")]
    pub ssh_addr: SocketAddr,
    /// Address and port of the NVMe/TCP target.
    #[arg(long, env = "RDS_CSI_PORTAL")]
    pub portal: SocketAddr,
    /// A control command to carry out before `ready`, such as `"delay 100"`; repeatable.
    #[arg(long, env = "RDS_CSI_FAULT", value_delimiter = ';')]
    pub fault: Vec<String>,
    #[arg(long, env = "RDS_CSI_USER", default_value = "admin")]
    pub user: String,
    /// Default: generated and written to `<state-dir>/password`.
    #[arg(long, env = "RDS_CSI_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
    /// Public keys that may log in over SSH, in authorized_keys form.
    #[arg(long, env = "RDS_CSI_AUTHORIZED_KEYS")]
    pub authorized_keys: Option<PathBuf>,
    #[arg(long, env = "RDS_CSI_SSH_HOST_KEY", value_enum, default_value = "rsa")]
    pub ssh_host_key: HostKey,
    /// Default: `<state-dir>/control.sock`.
    #[arg(long, env = "RDS_CSI_CONTROL_ADDR")]
    pub control_addr: Option<PathBuf>,
    /// `NAME:BYTES[:xfs|btrfs]`; repeatable.
    #[arg(long, env = "RDS_CSI_POOL", default_value = "raid10:8G")]
    pub pool: Vec<PoolSpec>,
    /// A directory to make at start, as a RouterOS path (`/raid10/volumes`); repeatable.
    #[arg(long, env = "RDS_CSI_DIR")]
    pub dir: Vec<String>,
    /// A further name or address of the certificate; repeatable.
    #[arg(long, env = "RDS_CSI_SAN")]
    pub san: Vec<String>,
    /// What is wrong with the certificate, if anything.
    #[arg(long, env = "RDS_CSI_CERTIFICATE", value_enum, default_value = "self-signed")]
    pub certificate: Certificate,
    /// What the user may do; REST needs read, write, test, api and rest-api.
    #[arg(
        long,
        env = "RDS_CSI_POLICIES",
        value_enum,
        value_delimiter = ',',
        default_value = "read,write,test,api,rest-api,ssh"
    )]
    pub policies: Vec<Policy>,
    /// A copy of the certificate, beside `<state-dir>/cert.pem`.
    #[arg(long, env = "RDS_CSI_TLS_CERT_OUT")]
    pub tls_cert_out: Option<PathBuf>,
    /// Bookkeeping only, for hosts without the nvmet module.
    #[arg(long, env = "RDS_CSI_NO_NVMET")]
    pub no_nvmet: bool,
    /// The RouterOS version that it claims to be.
    #[arg(long = "version", env = "RDS_CSI_VERSION", default_value = "7.24")]
    pub ros_version: Version,
    #[command(flatten)]
    pub switches: Switches,
}

impl Serve {
    pub fn control_path(&self) -> PathBuf {
        self.control_addr.clone().unwrap_or_else(|| self.state_dir.join("control.sock"))
    }

    /// Names and addresses of the certificate. A wildcard address is no name.
    pub fn sans(&self) -> Vec<String> {
        let mut sans = vec!["localhost".to_owned(), IpAddr::from([127, 0, 0, 1]).to_string()];
        if !self.rest_addr.ip().is_unspecified() {
            sans.push(self.rest_addr.ip().to_string());
        }
        sans.extend(self.san.iter().cloned());
        sans.sort();
        sans.dedup();
        sans
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Serve::command().debug_assert();
        Ctl::command().debug_assert();
        let parse = |line: &str| {
            Invocation::parse_from(line.split(' ').map(OsString::from).collect()).unwrap()
        };
        assert!(matches!(parse("rds-sim ctl --state-dir /x list"), Invocation::Ctl(_)));
        let line = "rds-sim --state-dir /x --rest-addr 127.0.0.1:1 --ssh-addr 127.0.0.1:2 --portal 127.0.0.1:3";
        let Invocation::Serve(serve) = parse(line) else { panic!("not serve") };
        assert_eq!(
            serve.pool,
            [PoolSpec { name: "raid10".into(), bytes: 8 << 30, kind: PoolKind::Xfs }]
        );
        assert_eq!(serve.sans(), ["127.0.0.1", "localhost"]);
        assert!(serve.switches.export_off_kills);
    }
}
