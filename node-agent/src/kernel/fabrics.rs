//! Connecting and disconnecting controllers, as nvme-cli does it but without it.
//!
//! `/dev/nvme-fabrics` takes one line of options and answers `instance=N,cntlid=M` once
//! the controller is live. The write can sleep uninterruptibly, so callers run it on a
//! thread that may be abandoned, and read its outcome back from sysfs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::kernel::sysfs::{ControllerState, is_gone};
use crate::session::SessionSpec;

const FABRICS: &str = "/dev/nvme-fabrics";

/// Seconds after which a lost controller gives its I/O back to the shield. With a shield
/// exactly one layer may queue, and it is not this one.
const FAST_IO_FAIL_SHIELDED: i32 = 0;

/// Seconds for which the kernel reconnects by itself where other nodes connect as the same
/// host: a connection may go on only after it was asked whether this node still has the volume.
const NEVER_BY_ITSELF: i32 = 0;

/// The option line for a session.
#[must_use]
pub fn options(spec: &SessionSpec) -> String {
    let mut line = format!(
        "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={},ctrl_loss_tmo={},\
         reconnect_delay={},keep_alive_tmo={},nr_io_queues={}",
        spec.portal.address(),
        spec.portal.port(),
        spec.nqn,
        spec.host_nqn,
        spec.host_nqn.host_id(),
        if spec.arrival.is_some() { NEVER_BY_ITSELF } else { spec.ctrl_loss_tmo },
        spec.reconnect_delay,
        spec.keep_alive_tmo,
        spec.nr_io_queues,
    );
    if spec.shield {
        line.push_str(&format!(",fast_io_fail_tmo={FAST_IO_FAIL_SHIELDED}"));
    }
    line
}

/// Connects a controller and returns its instance number.
///
/// # Errors
/// Whatever the kernel answers; `EALREADY` means that there is one already.
pub fn connect(spec: &SessionSpec) -> Result<u32> {
    let target = format!("{} at {}", spec.nqn, spec.portal);
    let mut device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(FABRICS)
        .map_err(Error::kernel("open (is the module nvme_tcp loaded?)", FABRICS))?;
    let line = options(spec);
    debug!(options = %line, "connecting");
    device.write_all(line.as_bytes()).map_err(Error::kernel("connect to", &target))?;
    let mut answer = [0u8; 256];
    let n = device
        .read(&mut answer)
        .map_err(Error::kernel("read the outcome of connecting to", &target))?;
    let answer = String::from_utf8_lossy(answer.get(..n).unwrap_or_default()).into_owned();
    parse_instance(&answer).ok_or_else(|| {
        Error::Unavailable(format!("connecting to {target}: the kernel answered {answer:?}"))
    })
}

fn parse_instance(answer: &str) -> Option<u32> {
    answer.trim().split(',').find_map(|part| part.strip_prefix("instance=")?.parse().ok())
}

/// A controller that stands under a name and is of a given subsystem, held so that what is
/// done to it cannot meet another one: names are reused as soon as a controller is gone,
/// but the directory that was opened stays this controller's, and dead once it is.
#[derive(Debug)]
pub struct Held {
    dir: OwnedFd,
    name: String,
}

impl Held {
    /// Finds it; `None` if there is none of that name, or it is of another subsystem.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn find(name: &str, nqn: &str) -> Result<Option<Self>> {
        Self::find_in(Path::new("/sys/class/nvme"), name, nqn)
    }

    fn find_in(class: &Path, name: &str, nqn: &str) -> Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(class.join(name), flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(e) if is_gone(&e.into()) => return Ok(None),
            Err(e) => return Err(Error::kernel("open", name)(e.into())),
        };
        let held = Self { dir, name: name.to_owned() };
        let found = held.read("subsysnqn")?;
        Ok((found.as_deref() == Some(nqn)).then_some(held))
    }

    /// Its state; `None` once it is gone.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn state(&self) -> Result<Option<ControllerState>> {
        Ok(self.read("state")?.map(|text| ControllerState::parse(&text)))
    }

    /// Asks the kernel to look for its namespaces again.
    ///
    /// # Errors
    /// If it is gone.
    pub fn rescan(&self) -> Result<()> {
        self.order("rescan_controller", "rescan")
    }

    /// Deletes it. I/O in it fails up to the shield. Returns when it is gone, which can take
    /// as long as the target needs to time out: abandon the call, do not hurry it.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn delete(&self) -> Result<()> {
        self.order("delete_controller", "delete")
    }

    /// Makes sure that the kernel gives it up when it is lost. That was said when it was made,
    /// but some vendors' udev rules say otherwise of every controller.
    ///
    /// # Errors
    /// If it is gone, or the kernel does not take it.
    pub fn never_reconnect(&self) -> Result<()> {
        let attribute = "ctrl_loss_tmo";
        let never = NEVER_BY_ITSELF.to_string();
        if self.read(attribute)?.as_ref() == Some(&never) {
            return Ok(());
        }
        warn!(controller = self.name, "it was told to reconnect by itself (a udev rule?)");
        self.write(attribute, &never, "set ctrl_loss_tmo of")?;
        match self.read(attribute)? {
            Some(now) if now == never => Ok(()),
            now => Err(Error::Unavailable(format!(
                "{} would reconnect by itself: its {attribute} is {now:?} after 0 was written",
                self.name
            ))),
        }
    }

    fn read(&self, attribute: &str) -> Result<Option<String>> {
        let mut text = String::new();
        let read = rustix::fs::openat(&self.dir, attribute, OFlags::RDONLY, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|fd| File::from(fd).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Some(text.trim().to_owned())),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(Error::kernel("read", format!("{attribute} of {}", self.name))(e)),
        }
    }

    fn order(&self, attribute: &str, action: &'static str) -> Result<()> {
        self.write(attribute, "1", action)
    }

    fn write(&self, attribute: &str, value: &str, action: &'static str) -> Result<()> {
        rustix::fs::openat(&self.dir, attribute, OFlags::WRONLY, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|fd| File::from(fd).write_all(value.as_bytes()))
            .map_err(Error::kernel(action, &self.name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use std::fs;

    #[test]
    fn a_name_that_another_subsystem_has_by_now_is_not_ours() {
        let class = tempfile::tempdir().unwrap();
        let dir = class.path().join("nvme0");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("subsysnqn"), "nqn.a\n").unwrap();
        fs::write(dir.join("state"), "live\n").unwrap();
        fs::write(dir.join("delete_controller"), "").unwrap();
        let find = |nqn| Held::find_in(class.path(), "nvme0", nqn).unwrap();
        assert!(find("nqn.ab").is_none() && find("nqn").is_none());
        let held = find("nqn.a").unwrap();
        assert_eq!(held.state().unwrap(), Some(ControllerState::Live));

        // It goes, and another volume's controller gets its name.
        fs::rename(&dir, class.path().join("gone")).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("delete_controller"), "").unwrap();
        held.delete().unwrap();
        assert_eq!(fs::read_to_string(dir.join("delete_controller")).unwrap(), "");
        fs::remove_dir_all(class.path().join("gone")).unwrap();
        assert!(held.delete().is_err());
        assert_eq!(held.state().unwrap(), None);
        assert!(find("nqn.a").is_none());
    }

    #[test]
    fn a_shared_volume_is_not_left_to_the_kernel() {
        let mut spec = SessionSpec {
            volume: "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e21".parse().unwrap(),
            nqn: "nqn.a:b".parse().unwrap(),
            host_nqn: rds_csi_proto::ids::HostNqn::random(),
            portal: rds_csi_proto::ids::Portal::parse("10.0.0.2", "4420").unwrap(),
            ctrl_loss_tmo: -1,
            reconnect_delay: 1,
            keep_alive_tmo: 5,
            nr_io_queues: 1,
            shield: true,
            io_timeout_secs: 0,
            reattach_check_secs: 60,
            arrival: None,
        };
        assert!(options(&spec).contains(",ctrl_loss_tmo=-1,"));
        spec.arrival = Some("a-1".parse().unwrap());
        assert!(options(&spec).contains(",ctrl_loss_tmo=0,"));

        let class = tempfile::tempdir().unwrap();
        let dir = class.path().join("nvme0");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("subsysnqn"), "nqn.a:b\n").unwrap();
        let held = Held::find_in(class.path(), "nvme0", "nqn.a:b").unwrap().unwrap();
        for (found, left) in [("0\n", "0\n"), ("6", "0")] {
            fs::write(dir.join("ctrl_loss_tmo"), found).unwrap();
            held.never_reconnect().unwrap();
            assert_eq!(fs::read_to_string(dir.join("ctrl_loss_tmo")).unwrap(), left);
        }
        // Nobody takes what is written here.
        fs::write(dir.join("ctrl_loss_tmo"), "off\n").unwrap();
        held.never_reconnect().unwrap_err();
    }

    #[test]
    fn the_kernels_answer_is_read() {
        assert_eq!(parse_instance("instance=3,cntlid=7\n"), Some(3));
        assert_eq!(parse_instance("instance=-1,cntlid=0\n"), None);
        assert_eq!(parse_instance(""), None);
    }
}
