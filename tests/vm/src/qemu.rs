//! QEMU's command line.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::accel::Accel;
use crate::peer::End;
use crate::quote::qemu;

/// By which command.sh knows the interface to this machine.
const HOST_MAC: &str = "52:54:00:97:00:01";

const PROGRAM: &str = "qemu-system-x86_64";

/// Kernel arguments of every guest.
///
/// - `quiet`: a serial console is slow when emulated; the second stage turns messages on.
/// - `panic=-1` with `-no-reboot`: a panic ends QEMU at once; `oops=panic`: so does a bug,
///   after which no test means anything.
/// - `mitigations=off`, no LSM, no audit: time.
/// - `no_timer_check`, `nmi_watchdog=0`: emulated timers are late and must not be judged.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off apparmor=0 \
     selinux=0 audit=0 no_timer_check nmi_watchdog=0 random.trust_cpu=on";

/// A machine with nothing but a kernel and a console.
pub(crate) struct Machine<'a> {
    pub(crate) accel: Accel,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) console: &'a Path,
    pub(crate) kernel_arguments: &'a str,
    pub(crate) plugin: Option<&'a str>,
}

/// What a guest that runs a command has in addition.
pub(crate) struct Devices<'a> {
    pub(crate) scratch: &'a Path,
    pub(crate) results: &'a Path,
    /// To the guest beside this one.
    pub(crate) link: Option<&'a End>,
    /// Pairs of a port of this machine's loopback and one of the guest.
    pub(crate) host_network: Option<&'a [(u16, u16)]>,
}

impl Machine<'_> {
    pub(crate) fn command(&self) -> Command {
        // setpriv: however this process ends, the kernel then ends QEMU.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", PROGRAM, "-nodefaults", "-no-user-config"]);
        command.args(["-machine", "q35,usb=off,vmport=off", "-display", "none", "-no-reboot"]);
        command.args(self.accel.arguments());
        if let Some(plugin) = self.plugin {
            command.args(["-plugin", plugin]);
        }
        command.args(["-smp", "2", "-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        command.arg("-append").arg(format!("{KERNEL_ARGUMENTS} {}", self.kernel_arguments));
        command.arg("-chardev").arg(format!("file,id=console,path={}", option(self.console)));
        command.args(["-serial", "chardev:console"]);
        // Its own group: Ctrl-C is for this process to handle, not for QEMU.
        command.process_group(0).stdin(Stdio::null());
        command
    }
}

impl Devices<'_> {
    /// The guest's port is the process's standard output: a descriptor needs no path that
    /// two runs could share, and none that is too long for a socket.
    pub(crate) fn add(&self, command: &mut Command, port: OwnedFd) -> Result<()> {
        let share = |name: &str, path: &Path, more: &str| {
            format!(
                "local,path={},mount_tag={name},security_model=none,multidevs=remap{more}",
                option(path)
            )
        };
        command.arg("-virtfs").arg(share("hostroot", Path::new("/"), ",readonly=on"));
        command.arg("-virtfs").arg(share("results", self.results, ""));
        command.arg("-drive").arg(format!(
            "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file={}",
            option(self.scratch)
        ));
        command.args(["-device", "virtio-blk-pci,drive=scratch,serial=rds-scratch"]);
        command.args(["-device", "virtio-serial-pci", "-chardev", "socket,id=out,fd=1"]);
        command.args(["-device", "virtserialport,chardev=out,name=rds.out"]);
        command.stdout(Stdio::from(port));
        if let Some(end) = self.link {
            command.stdin(end.stdin()?).args(["-netdev", "socket,id=link,fd=0"]);
            // Without a ROM: nothing boots from it, and the file is another package's.
            let device = format!("virtio-net-pci,netdev=link,romfile=,mac={}", end.place.mac());
            command.args(["-device", &device]);
        }
        if let Some(forwards) = self.host_network {
            let mut network = "user,id=host".to_owned();
            for (here, there) in forwards {
                network += &format!(",hostfwd=tcp:127.0.0.1:{here}-:{there}");
            }
            let device = format!("virtio-net-pci,netdev=host,romfile=,mac={HOST_MAC}");
            command.args(["-netdev", &network, "-device", &device]);
        }
        Ok(())
    }
}

/// A running QEMU; it does not outlive this value.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let child = command.spawn().with_context(|| {
            format!("starting {PROGRAM} by setpriv; tests/vm/setup.sh installs qemu-system-x86 and util-linux")
        })?;
        Ok(Self { child })
    }

    pub(crate) fn ended(&mut self) -> bool {
        // An error means that there is no such child any more.
        self.child.try_wait().map_or(true, |status| status.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU's version, or that there is none, as a key for what was found out about it.
pub(crate) fn version() -> Result<String> {
    let text = crate::command::output(Command::new(PROGRAM).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn option(path: &Path) -> String {
    qemu(&PathBuf::from(path).to_string_lossy())
}
