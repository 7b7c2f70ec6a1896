//! The kernel's target through /sys/kernel/config/nvmet.
//!
//! A subsystem per export with namespace 1, one port per port number, shared by all exports. nvmet
//! opens a port's listener with its first subsystem and closes it with its last; a **placeholder**
//! subsystem without namespaces, which no host may use, keeps it open when nothing is exported.
//! What was made is written to a ledger first, so that the next run can clean up after a kill.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::configfs::{
    ensure_dir, link, mkdir, names, read, rmdir, unlink, write, write_if_possible,
};
use super::{Hosts, Identity, Spec, Target, TargetError};
use crate::appliance::store;

const ROOT: &str = "/sys/kernel/config/nvmet";
const MODEL: &str = "Linux";
const FIRMWARE: &str = "5.6.3";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Ledger {
    subsystems: BTreeSet<String>,
    hosts: BTreeSet<String>,
    /// Port number to directory name.
    ports: BTreeMap<u16, u32>,
}

#[derive(Debug)]
pub struct Nvmet {
    root: PathBuf,
    address: IpAddr,
    portal_port: u16,
    placeholder: String,
    ledger: Ledger,
    ledger_path: PathBuf,
}

impl Nvmet {
    /// Opens configfs, loading modules and mounting it where needed, and removes what an earlier run left.
    pub fn open(
        address: IpAddr,
        portal_port: u16,
        ledger_path: PathBuf,
    ) -> Result<Nvmet, TargetError> {
        let root = PathBuf::from(ROOT);
        if !root.is_dir() {
            prepare_kernel();
        }
        if !root.is_dir() {
            return Err(TargetError::Other(format!(
                "{ROOT} is missing: load nvmet and nvmet-tcp, mount configfs"
            )));
        }
        let ledger = store::load(&ledger_path).map_err(|source| TargetError::Io {
            what: "read",
            path: ledger_path.clone(),
            source,
        })?;
        let placeholder = format!("nqn.2000-02.com.mikrotik:rds-sim-placeholder-{portal_port}");
        let mut nvmet = Nvmet {
            root,
            address,
            portal_port,
            placeholder,
            ledger: ledger.unwrap_or_default(),
            ledger_path,
        };
        nvmet.tear_down()?;
        Ok(nvmet)
    }

    fn subsystem(&self, nqn: &str) -> PathBuf {
        self.root.join("subsystems").join(nqn)
    }

    fn host(&self, nqn: &str) -> PathBuf {
        self.root.join("hosts").join(nqn)
    }

    fn port_dir(&self, id: u32) -> PathBuf {
        self.root.join("ports").join(id.to_string())
    }

    fn record(&self) -> Result<(), TargetError> {
        store::save(&self.ledger_path, &self.ledger).map_err(|source| TargetError::Io {
            what: "write",
            path: self.ledger_path.clone(),
            source,
        })
    }

    /// The port's directory, made on first use.
    fn ensure_port(&mut self, number: u16) -> Result<PathBuf, TargetError> {
        if let Some(dir) =
            self.ledger.ports.get(&number).map(|id| self.port_dir(*id)).filter(|d| d.is_dir())
        {
            return Ok(dir);
        }
        let id = (1..).find(|id| !self.port_dir(*id).exists()).unwrap_or(1);
        self.ledger.ports.insert(number, id);
        self.record()?;
        let dir = self.port_dir(id);
        mkdir(&dir)?;
        write(&dir.join("addr_adrfam"), if self.address.is_ipv4() { "ipv4" } else { "ipv6" })?;
        write(&dir.join("addr_trtype"), "tcp")?;
        write(&dir.join("addr_traddr"), &self.address.to_string())?;
        write(&dir.join("addr_trsvcid"), &number.to_string())?;
        Ok(dir)
    }

    fn remove_ports(&mut self) -> Result<(), TargetError> {
        for id in self.ledger.ports.values() {
            let dir = self.port_dir(*id);
            for name in names(&dir.join("subsystems")) {
                unlink(&dir.join("subsystems").join(name))?;
            }
            rmdir(&dir)?;
        }
        self.ledger.ports.clear();
        self.record()
    }

    fn make_subsystem(&mut self, nqn: &str) -> Result<PathBuf, TargetError> {
        if nqn.is_empty() || nqn.contains('/') {
            return Err(TargetError::Other(format!("configfs cannot name {nqn:?}")));
        }
        let dir = self.subsystem(nqn);
        if dir.exists() && !self.ledger.subsystems.contains(nqn) {
            return Err(TargetError::Other(format!("{nqn} exists and is not ours")));
        }
        self.ledger.subsystems.insert(nqn.to_owned());
        self.record()?;
        mkdir(&dir)?;
        Ok(dir)
    }

    fn make_namespace(
        &self,
        subsystem: &Path,
        spec: &Spec,
        identity: Option<&Identity>,
    ) -> Result<(), TargetError> {
        let ns = subsystem.join("namespaces/1");
        mkdir(&ns)?;
        write(&ns.join("device_path"), &spec.file.to_string_lossy())?;
        if let Some(identity) = identity {
            write(&ns.join("device_uuid"), &identity.uuid)?;
        }
        // nvmet cannot use direct I/O on tmpfs in 6.1, nor over an overlay of one: there, buffered.
        let tmpfs = statfs(&spec.file).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC);
        write(&ns.join("buffered_io"), if tmpfs { "1" } else { "0" })?;
        match write(&ns.join("enable"), "1") {
            Err(_) if !tmpfs => {
                write(&ns.join("buffered_io"), "1")?;
                write(&ns.join("enable"), "1")
            }
            other => other,
        }
    }

    fn build(&mut self, spec: &Spec, identity: Option<&Identity>) -> Result<Identity, TargetError> {
        let dir = self.make_subsystem(&spec.nqn)?;
        // Before anything can discover it: afterwards the kernel refuses.
        write_if_possible(&dir.join("attr_model"), MODEL);
        write_if_possible(&dir.join("attr_firmware"), FIRMWARE);
        if let Some(identity) = identity {
            write(&dir.join("attr_serial"), &identity.serial)?;
        }
        self.make_namespace(&dir, spec, identity)?;
        self.set_hosts(&spec.nqn, &spec.hosts)?;
        let made = Identity {
            serial: read(&dir.join("attr_serial")).unwrap_or_default(),
            uuid: read(&dir.join("namespaces/1/device_uuid")).unwrap_or_default(),
        };
        let port = self.ensure_port(spec.port)?;
        link(&dir, &port.join("subsystems").join(&spec.nqn))?;
        Ok(made)
    }

    fn remove_subsystem(&mut self, nqn: &str) -> Result<(), TargetError> {
        // The port first: that is what drops live controllers.
        for id in self.ledger.ports.values() {
            unlink(&self.port_dir(*id).join("subsystems").join(nqn))?;
        }
        let dir = self.subsystem(nqn);
        for name in names(&dir.join("namespaces")) {
            let ns = dir.join("namespaces").join(name);
            write(&ns.join("enable"), "0")?;
            rmdir(&ns)?;
        }
        self.clear_hosts(&dir)?;
        rmdir(&dir)?;
        self.ledger.subsystems.remove(nqn);
        self.record()
    }

    fn clear_hosts(&mut self, subsystem: &Path) -> Result<(), TargetError> {
        for host in names(&subsystem.join("allowed_hosts")) {
            unlink(&subsystem.join("allowed_hosts").join(&host))?;
            self.forget_host(&host);
        }
        Ok(())
    }

    /// Removes a host's directory unless another export still allows it.
    fn forget_host(&mut self, host: &str) {
        let used = names(&self.root.join("subsystems"))
            .iter()
            .any(|s| self.subsystem(s).join("allowed_hosts").join(host).is_symlink());
        if !used && self.ledger.hosts.contains(host) && rmdir(&self.host(host)).is_ok() {
            self.ledger.hosts.remove(host);
        }
    }
}

impl Target for Nvmet {
    fn export(
        &mut self,
        spec: &Spec,
        identity: Option<&Identity>,
    ) -> Result<Identity, TargetError> {
        let existed = self.subsystem(&spec.nqn).exists();
        let made = self.build(spec, identity);
        if made.is_err() && !existed {
            self.remove_subsystem(&spec.nqn)
                .unwrap_or_else(|e| tracing::error!("undoing {}: {e}", spec.nqn));
        }
        made
    }

    fn set_hosts(&mut self, nqn: &str, hosts: &Hosts) -> Result<(), TargetError> {
        let dir = self.subsystem(nqn);
        let any = dir.join("attr_allow_any_host");
        let Hosts::Only(wanted) = hosts else {
            self.clear_hosts(&dir)?;
            return write(&any, "1");
        };
        if read(&any).as_deref() != Some("0") {
            write(&any, "0")?;
        }
        for host in names(&dir.join("allowed_hosts")) {
            if !wanted.contains(&host) {
                unlink(&dir.join("allowed_hosts").join(&host))?;
                self.forget_host(&host);
            }
        }
        for host in wanted {
            if host.contains('/') {
                return Err(TargetError::Other(format!("configfs cannot name {host:?}")));
            }
            if !self.host(host).is_dir() {
                self.ledger.hosts.insert(host.clone());
                self.record()?;
            }
            ensure_dir(&self.host(host))?;
            link(&self.host(host), &dir.join("allowed_hosts").join(host))?;
        }
        Ok(())
    }

    fn unexport(&mut self, nqn: &str) -> Result<(), TargetError> {
        if self.subsystem(nqn).is_dir() { self.remove_subsystem(nqn) } else { Ok(()) }
    }

    fn open_portal(&mut self) -> Result<(), TargetError> {
        let nqn = self.placeholder.clone();
        if !self.subsystem(&nqn).is_dir() {
            self.make_subsystem(&nqn)?;
        }
        let port = self.ensure_port(self.portal_port)?;
        link(&self.subsystem(&nqn), &port.join("subsystems").join(&nqn))
    }

    fn close_portal(&mut self) -> Result<(), TargetError> {
        let nqn = self.placeholder.clone();
        self.unexport(&nqn)
    }

    fn tear_down(&mut self) -> Result<(), TargetError> {
        for nqn in self.ledger.subsystems.clone() {
            self.remove_subsystem(&nqn)?;
        }
        self.remove_ports()?;
        for host in self.ledger.hosts.clone() {
            self.forget_host(&host);
        }
        self.record()
    }

    fn describe(&self, nqn: &str) -> Value {
        let dir = self.subsystem(nqn);
        let ns = dir.join("namespaces/1");
        let linked = self
            .ledger
            .ports
            .values()
            .any(|p| self.port_dir(*p).join("subsystems").join(nqn).is_symlink());
        json!({
            "present": dir.is_dir(),
            "kernel": true,
            "linked": linked,
            "serial": read(&dir.join("attr_serial")),
            "model": read(&dir.join("attr_model")),
            "firmware": read(&dir.join("attr_firmware")),
            "allow_any_host": read(&dir.join("attr_allow_any_host")),
            "allowed_hosts": names(&dir.join("allowed_hosts")),
            "device_uuid": read(&ns.join("device_uuid")),
            "device_path": read(&ns.join("device_path")),
            "buffered_io": read(&ns.join("buffered_io")),
            "enabled": read(&ns.join("enable")),
        })
    }
}

/// Best effort: what is still missing afterwards is reported by the caller.
fn prepare_kernel() {
    let run = |program: &str, args: &[&str]| match std::process::Command::new(program)
        .args(args)
        .output()
    {
        Ok(out) if !out.status.success() => {
            tracing::debug!("{program}: {}", String::from_utf8_lossy(&out.stderr).trim_end());
        }
        Ok(_) => {}
        Err(e) => tracing::debug!("{program}: {e}"),
    };
    run("modprobe", &["-a", "configfs", "nvmet", "nvmet-tcp"]);
    if !Path::new("/sys/kernel/config/nvmet").is_dir() {
        run("mount", &["-t", "configfs", "none", "/sys/kernel/config"]);
    }
}
