//! The command line. Each guess of ROUTEROS.md (`?`) is a switch here, with its default's reason.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use crate::control::command::ControlCommand;
use crate::ros::disk::ReadBack;

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

/// `NAME:BYTES` of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    pub name: String,
    pub bytes: u64,
}

impl std::str::FromStr for PoolSpec {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, bytes) = s.split_once(':').ok_or("expected NAME:BYTES")?;
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(format!("bad pool name {name:?}"));
        }
        let bytes = crate::ros::number::parse_size(bytes, crate::ros::number::Origin::Text)
            .ok_or_else(|| format!("bad size {bytes:?}"))?;
        Ok(PoolSpec { name: name.into(), bytes })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Identity {
    /// New serial and namespace UUID per export creation: what nvmet's source does.
    Random,
    /// As if MikroTik kept them.
    Fixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExistingFile {
    /// Use it; grow it when `file-size` is larger, never shrink it.
    Reuse,
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FullPool {
    Refuse,
    /// The item appears, but never a block device.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Allocate {
    /// As seen on XFS: the whole file at once.
    Full,
    /// For guests with little memory; the pool's limit still counts whole sizes.
    Sparse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportReadBack {
    /// `nvme-tcp-export` reads true once hosts can connect, false once they cannot.
    Actual,
    /// It reads what was last set.
    Configured,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NqnReadBack {
    Effective,
    Configured,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IdsAfterReboot {
    Keep,
    Renumber,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HostKey {
    /// RouterOS's default.
    Rsa,
    Ed25519,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SshJson {
    /// Numbers and booleans keep their console type.
    Typed,
    /// As REST does.
    Strings,
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
    /// `NAME:BYTES`; repeatable.
    #[arg(long, env = "RDS_CSI_POOL", default_value = "raid10:8G")]
    pub pool: Vec<PoolSpec>,
    /// A directory to make at start, as a RouterOS path (`/raid10/volumes`); repeatable.
    #[arg(long, env = "RDS_CSI_DIR")]
    pub dir: Vec<String>,
    /// A further name or address of the certificate; repeatable.
    #[arg(long, env = "RDS_CSI_SAN")]
    pub san: Vec<String>,
    /// A copy of the certificate, beside `<state-dir>/cert.pem`.
    #[arg(long, env = "RDS_CSI_TLS_CERT_OUT")]
    pub tls_cert_out: Option<PathBuf>,
    /// Bookkeeping only, for hosts without the nvmet module.
    #[arg(long, env = "RDS_CSI_NO_NVMET")]
    pub no_nvmet: bool,
    /// The RouterOS version that it claims to be.
    #[arg(long = "version", env = "RDS_CSI_VERSION", default_value = "7.24")]
    pub ros_version: String,
    #[command(flatten)]
    pub switches: Switches,
}

/// What nobody has verified on an appliance, and how long things take.
#[derive(Debug, Clone, Args)]
pub struct Switches {
    #[arg(long, env = "RDS_CSI_IDENTITY", value_enum, default_value = "random")]
    pub identity: Identity,
    /// `nvme-tcp-server-allow-host-name` may be a comma list. Default no: it is a scalar in the schema.
    #[arg(long, env = "RDS_CSI_ALLOW_HOST_LIST")]
    pub allow_host_list: bool,
    /// Turning an export off kills live controllers, as vanilla nvmet does. With `false` new connects
    /// are refused (as an invalid host) and live ones go on.
    #[arg(long, env = "RDS_CSI_EXPORT_OFF_KILLS", default_value_t = true, action = clap::ArgAction::Set)]
    pub export_off_kills: bool,
    #[arg(long, env = "RDS_CSI_EXISTING_FILE", value_enum, default_value = "reuse")]
    pub existing_file: ExistingFile,
    #[arg(
        long,
        env = "RDS_CSI_EXISTING_FILE_TEXT",
        default_value = "failure: file already exists"
    )]
    pub existing_file_text: String,
    #[arg(long, env = "RDS_CSI_FULL_POOL", value_enum, default_value = "refuse")]
    pub full_pool: FullPool,
    #[arg(long, env = "RDS_CSI_FULL_POOL_TEXT", default_value = "failure: not enough space")]
    pub full_pool_text: String,
    #[arg(long, env = "RDS_CSI_BAD_PATH_TEXT", default_value = "failure: no such directory")]
    pub bad_path_text: String,
    /// `/disk add` makes missing directories of `file-path`.
    #[arg(long, env = "RDS_CSI_CREATE_PARENTS")]
    pub create_parents: bool,
    /// `/disk set file-size` may be smaller than before.
    #[arg(long, env = "RDS_CSI_ALLOW_SHRINK")]
    pub allow_shrink: bool,
    #[arg(long, env = "RDS_CSI_ALLOCATE", value_enum, default_value = "full")]
    pub allocate: Allocate,
    #[arg(long, env = "RDS_CSI_EXPORT_READ_BACK", value_enum, default_value = "actual")]
    pub export_read_back: ExportReadBack,
    #[arg(long, env = "RDS_CSI_NQN_READ_BACK", value_enum, default_value = "effective")]
    pub nqn_read_back: NqnReadBack,
    #[arg(long, env = "RDS_CSI_IDS_AFTER_REBOOT", value_enum, default_value = "keep")]
    pub ids_after_reboot: IdsAfterReboot,
    #[arg(long, env = "RDS_CSI_SSH_JSON", value_enum, default_value = "typed")]
    pub ssh_json: SshJson,
    /// Console errors name the command and line, as in `no such item (/disk/set; line 1)`.
    #[arg(long, env = "RDS_CSI_SSH_ERROR_CONTEXT")]
    pub ssh_error_context: bool,
    /// Body of the first 200 answers after a boot: `html`, `empty`, `empty-list` or a literal text.
    #[arg(long, env = "RDS_CSI_BOOT_WRONG_BODY", default_value = "html")]
    pub boot_wrong_body: String,
    /// Length of each stage after a boot: refused, reset, 401, wrong body.
    #[arg(long, env = "RDS_CSI_BOOT_STAGE_MS", default_value_t = 500)]
    pub boot_stage_ms: u64,
    /// Added to each management request.
    #[arg(long, env = "RDS_CSI_LATENCY_MS", default_value_t = 0)]
    pub latency_ms: u64,
    /// From `add` to flag `B` and a size.
    #[arg(long, env = "RDS_CSI_CREATE_DELAY_MS", default_value_t = 100)]
    pub create_delay_ms: u64,
    /// From `nvme-tcp-export=yes` (and flag `B`) to flag `t`.
    #[arg(long, env = "RDS_CSI_EXPORT_DELAY_MS", default_value_t = 200)]
    pub export_delay_ms: u64,
    /// From `nvme-tcp-export=no` to the export's end.
    #[arg(long, env = "RDS_CSI_UNEXPORT_DELAY_MS", default_value_t = 50)]
    pub unexport_delay_ms: u64,
    /// A REST request is cut after this (manual: 60 s) and goes on running.
    #[arg(long, env = "RDS_CSI_REST_CUT_MS", default_value_t = 60_000)]
    pub rest_cut_ms: u64,
    /// Columns of console output.
    #[arg(long, env = "RDS_CSI_CONSOLE_WIDTH", default_value_t = 250)]
    pub console_width: usize,
}

impl Switches {
    pub fn read_back(&self) -> ReadBack {
        ReadBack {
            actual_export: self.export_read_back == ExportReadBack::Actual,
            effective_nqn: self.nqn_read_back == NqnReadBack::Effective,
        }
    }
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
        assert_eq!(serve.pool, [PoolSpec { name: "raid10".into(), bytes: 8 << 30 }]);
        assert_eq!(serve.sans(), ["127.0.0.1", "localhost"]);
        assert!(serve.switches.export_off_kills);
    }
}
