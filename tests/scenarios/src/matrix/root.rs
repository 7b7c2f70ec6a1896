//! A subsystem that is the host's own: without our prefix, from another port of the same
//! appliance, connected by hand. A diskless host has its root on one like it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::run;
use crate::stack::APPLIANCE;

const NQN: &str = "nqn.2014-08.com.example:root";
const CONFIG: &str = "/sys/kernel/config/nvmet";
/// Not the portal's: what happens there is not what is asked here.
const PORT: &str = "4421";
const PORT_ID: &str = "4421";
const IMAGE: &str = "/scratch/root.img";
const BYTES: u64 = 16 << 20;

/// Its controller, and the target's number for it: another number is another connection.
#[derive(Debug, PartialEq, Eq)]
struct Instance {
    name: String,
    cntlid: String,
    state: String,
}

pub(super) struct Root {
    instance: Instance,
}

fn attribute(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned()
}

/// All controllers of a subsystem.
pub(super) fn controllers_of(nqn: &str) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir("/sys/class/nvme")?.flatten().map(|e| e.path());
    Ok(all.filter(|dir| attribute(dir, "subsysnqn") == nqn).collect())
}

fn look() -> Result<Instance> {
    let found = controllers_of(NQN)?;
    ensure!(found.len() == 1, "{} controllers of {NQN}: {found:?}", found.len());
    let dir = found.first().context("no controller")?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Instance { name, cntlid: attribute(dir, "cntlid"), state: attribute(dir, "state") })
}

impl Root {
    pub(super) fn begin() -> Result<Self> {
        File::create(IMAGE)?.set_len(BYTES)?;
        let subsystem = format!("{CONFIG}/subsystems/{NQN}");
        let port = format!("{CONFIG}/ports/{PORT_ID}");
        for dir in [subsystem.clone(), format!("{subsystem}/namespaces/1"), port.clone()] {
            fs::create_dir(&dir).with_context(|| format!("make {dir}"))?;
        }
        for (file, value) in [
            (format!("{subsystem}/attr_allow_any_host"), "1"),
            (format!("{subsystem}/namespaces/1/device_path"), IMAGE),
            (format!("{subsystem}/namespaces/1/enable"), "1"),
            (format!("{port}/addr_adrfam"), "ipv4"),
            (format!("{port}/addr_trtype"), "tcp"),
            (format!("{port}/addr_traddr"), APPLIANCE),
            (format!("{port}/addr_trsvcid"), PORT),
        ] {
            fs::write(&file, value).with_context(|| format!("write {value} to {file}"))?;
        }
        // It listens in the namespace of whoever links it.
        let link = format!("{port}/subsystems/{NQN}");
        run(&["nsenter", "--net=/run/netns/rds", "ln", "-s", &subsystem, &link])?;
        let id = uuid::Uuid::new_v4();
        let (host, id) = (format!("nqn.2014-08.org.nvmexpress:uuid:{id}"), id.to_string());
        let words = ["nvme", "connect", "-t", "tcp", "-a", APPLIANCE, "-s", PORT, "-n", NQN];
        run(&[&words[..], &["--hostnqn", &host, "--hostid", &id]].concat())?;
        Ok(Self { instance: look()? })
    }

    /// The same controller, live, on the same connection.
    pub(super) fn check(&self) -> Result<()> {
        let now = look()?;
        ensure!(
            now == self.instance,
            "the host's own {NQN} was {:?} and is {now:?}",
            self.instance
        );
        Ok(())
    }

    pub(super) fn end(self) -> Result<()> {
        run(&["nvme", "disconnect", "-n", NQN])?;
        fs::remove_file(format!("{CONFIG}/ports/{PORT_ID}/subsystems/{NQN}"))?;
        fs::remove_dir(format!("{CONFIG}/ports/{PORT_ID}"))?;
        fs::remove_dir(format!("{CONFIG}/subsystems/{NQN}/namespaces/1"))?;
        fs::remove_dir(format!("{CONFIG}/subsystems/{NQN}"))?;
        Ok(())
    }
}
