//! Boots a real kernel in QEMU, over this machine's own root file system, and runs a
//! command in it as root. What that is for: rds-csi's subject is what the kernel does
//! when storage goes away, and neither developers' machines nor CI let tests try that.
//!
//! In the order that a run goes through them:
//! [`choose`] which kernel package, [`kernels`] fetches and unpacks it, [`accel`] finds out
//! whether KVM works, [`initramfs`] (by [`cpio`], [`quote`]) packs the guest's init and the
//! job, [`qemu`] is the machine, [`guest`] (by [`stream`]) sees it through to its end,
//! [`console`] tells what its kernel said. [`peer`] is a second guest beside it.
//! [`layout`] knows where files are, [`command`]
//! runs other programs, [`run`] ties it together.

mod accel;
mod choose;
mod command;
mod console;
mod cpio;
mod guest;
mod initramfs;
mod kernels;
mod layout;
mod peer;
mod qemu;
mod quote;
mod run;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::accel::Accel;
use crate::choose::Series;
use crate::initramfs::Init;
use crate::layout::Layout;
use crate::run::{Beside, Multipath, Request, STATUS_NO_GUEST, Until};

/// Runs a command as root under a real Linux kernel, in a virtual machine that sees this
/// machine's files (read only, with an overlay in memory).
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where kernels, logs and results are kept [default: `vm` in cargo's target directory]
    #[arg(long, env = "RDS_VM_DIR", global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Downloads and unpacks kernels (nothing is installed); does nothing when they are there
    Prepare(PrepareArgs),
    /// Boots a guest and runs a command in it
    ///
    /// Exits with the command's status; 124 when it ran out of time, 125 when the guest did
    /// not boot or died.
    Run(RunArgs),
}

#[derive(Args)]
struct PrepareArgs {
    /// Kernel series
    #[arg(long, num_args = 1.., default_values = ["6.1", "6.12"])]
    kernel: Vec<Series>,
    /// Take the kernel from these packages instead of from apt; for one --kernel only
    #[arg(long, num_args = 1..)]
    deb: Vec<PathBuf>,
}

#[derive(Args)]
struct RunArgs {
    /// Kernel series
    #[arg(long)]
    kernel: Series,
    /// Native NVMe multipathing, the module parameter nvme_core.multipath
    #[arg(long, value_enum, default_value = "Y", ignore_case = true)]
    multipath: Multipath,
    /// Another argument for the kernel, such as `security=selinux`; may be repeated
    #[arg(long = "kernel-argument", value_name = "ARGUMENT", allow_hyphen_values = true)]
    kernel_arguments: Vec<String>,
    /// Seconds that the command may take, not counting the boot
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Process 1 is this machine's systemd, with none of the services enabled here
    #[arg(long)]
    systemd: bool,
    /// The command shuts the guest down: that it ends, and in time, is success
    #[arg(long)]
    until_shutdown: bool,
    /// Keep the guest's scratch disk, made anew, in this file
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Directory that the guest sees as /results, writable [default: vm/results/RUN]
    #[arg(long)]
    results: Option<PathBuf>,
    /// File for the guest's console [default: vm/log/RUN.log]
    #[arg(long)]
    log: Option<PathBuf>,
    /// KVM or emulation [default: KVM if it boots a kernel, tried once]
    #[arg(long, value_enum, env = "RDS_VM_ACCEL")]
    accel: Option<Accel>,
    /// Boots a second guest beside this one, in which a shell runs this command
    ///
    /// The two have a link of their own: here 10.98.0.1, there 10.98.0.2. It writes its results
    /// to /results/peer, and ends with this guest.
    #[arg(long, value_name = "COMMAND", conflicts_with = "plugin")]
    peer: Option<String>,
    /// Gives the guest a way to this machine: what listens on its loopback is at 10.0.2.2, and
    /// through it the guest reaches what this machine does; a second guest has one of its own
    #[arg(long)]
    host_network: bool,
    /// Makes the guest's TCP port GUEST reachable as port HOST of this machine's loopback; may be
    /// repeated, not for a second guest
    #[arg(long = "forward", value_name = "HOST:GUEST", value_parser = forward, requires = "host_network")]
    forwards: Vec<(u16, u16)>,
    /// This is the second guest, and standard input its end of the link
    #[arg(long, hide = true, conflicts_with = "peer")]
    linked: bool,
    /// Emulate with this QEMU plugin, FILE[,ARGUMENT=VALUE...]; see tests/profile
    #[arg(long, value_name = "PLUGIN", conflicts_with = "accel")]
    plugin: Option<String>,
    /// Environment variable for the command; NAME alone passes the present value on
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = environment)]
    env: Vec<(String, String)>,
    /// The command, run in the current directory
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn environment(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, std::env::var(text).unwrap_or_default()),
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || !name.chars().all(letters)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(format!("'{name}' is not a name that a shell can export"));
    }
    Ok((name.to_owned(), value))
}

fn forward(text: &str) -> Result<(u16, u16), String> {
    let ports = text.split_once(':').and_then(|(host, guest)| {
        Some((host.parse().ok().filter(|p| *p > 0)?, guest.parse().ok().filter(|p| *p > 0)?))
    });
    ports.ok_or_else(|| format!("'{text}' is not two TCP ports, such as 8080:80"))
}

fn main() -> ExitCode {
    match act(Cli::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("rds-vm: {error:#}");
            ExitCode::from(STATUS_NO_GUEST)
        }
    }
}

fn act(cli: Cli) -> Result<u8> {
    let layout = Layout::find(cli.dir)?;
    match cli.action {
        Action::Prepare(args) => {
            anyhow::ensure!(
                args.deb.is_empty() || args.kernel.len() == 1,
                "--deb gives one kernel: name its series with one --kernel"
            );
            for series in args.kernel {
                let kernel = kernels::prepare(&layout, series, &args.deb)?;
                eprintln!(
                    "rds-vm: {series} is {} in {}",
                    kernel.release,
                    kernel.directory.display()
                );
            }
            Ok(0)
        }
        Action::Run(args) => run::run(&layout, &request(args)),
    }
}

fn request(args: RunArgs) -> Request {
    Request {
        series: args.kernel,
        multipath: args.multipath,
        kernel_arguments: args.kernel_arguments,
        timeout: Duration::from_secs(args.timeout),
        memory_mib: args.memory,
        accel: args.accel,
        results: args.results,
        log: args.log,
        environment: args.env,
        plugin: args.plugin,
        command: args.command,
        init: if args.systemd { Init::Systemd } else { Init::Script },
        host_network: args.host_network.then_some(args.forwards),
        until: if args.until_shutdown { Until::Shutdown } else { Until::Exit },
        scratch: args.scratch,
        beside: match (args.peer, args.linked) {
            (Some(command), _) => Beside::Second(command),
            (None, true) => Beside::First,
            (None, false) => Beside::Nobody,
        },
    }
}
