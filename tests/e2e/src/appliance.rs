//! A simulated appliance. Without a kernel target on this machine, where what is looked at is what
//! the controller had it do; or with one, in a guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::bench::NODES;
use crate::guests::Guests;
use crate::process::{Process, ours};

const LIMIT: Duration = Duration::from_secs(30);
/// tests/scenarios/src/stack.rs
const STATE_IN_GUEST: &str = "/scratch/rds/sim";

pub(crate) struct Appliance {
    state: PathBuf,
    pub(crate) url: String,
    /// A directory as `--rds-credentials` takes it.
    pub(crate) credentials: PathBuf,
    /// Where nodes find its volumes.
    pub(crate) nvme_address: &'static str,
    place: Place,
}

enum Place {
    Here { _process: Process },
    Guest(Arc<Guests>),
}

impl Appliance {
    /// With a pool that makes snapshots at once (`btrfs`) or by full copies (`xfs`).
    pub(crate) async fn start(dir: &Path, pool: &str) -> anyhow::Result<Self> {
        let state = dir.join("rds");
        let mut command = Command::new(ours("rds-sim")?);
        command
            .args(["--rest-addr", "127.0.0.1:0", "--ssh-addr", "127.0.0.1:0", "--no-nvmet"])
            .args(["--portal", "127.0.0.1:4420", "--allocate", "sparse"])
            .args(["--ssh-host-key", "ed25519", "--boot-stage-ms", "100"])
            .args(["--dir", "/raid10/volumes", "--pool", &format!("raid10:64G:{pool}")])
            .arg("--state-dir")
            .arg(&state);
        let process = Process::start(&mut command, dir, "rds-sim")?;
        let begun = Instant::now();
        let endpoints: Value = loop {
            let text = std::fs::read_to_string(state.join("endpoints.json")).unwrap_or_default();
            match serde_json::from_str(&text) {
                Ok(endpoints) => break endpoints,
                Err(_) if begun.elapsed() < LIMIT => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => bail!("rds-sim does not come up: {}", process.log.display()),
            }
        };
        let credentials = credentials(dir, &state)?;
        let rest = endpoints["rest"].as_str().context("no address")?;
        let (url, place) = (format!("https://{rest}"), Place::Here { _process: process });
        Ok(Self { state, url, credentials, nvme_address: "127.0.0.1", place })
    }

    /// The one in the first guest.
    pub(crate) fn in_guest(dir: &Path, guests: Arc<Guests>) -> anyhow::Result<Self> {
        Ok(Self {
            state: PathBuf::from(STATE_IN_GUEST),
            url: guests.rest_url(),
            credentials: credentials(dir, &guests.results)?,
            nvme_address: "10.99.0.2",
            place: Place::Guest(guests),
        })
    }

    /// `rds-sim ctl ...`.
    pub(crate) fn ctl(&self, command: &[&str]) -> anyhow::Result<Value> {
        let program = ours("rds-sim")?;
        if let Place::Guest(guests) = &self.place {
            let (program, state) =
                (program.display().to_string(), self.state.display().to_string());
            let words = [&[program.as_str(), "ctl", "--state-dir", &state], command].concat();
            return Ok(serde_json::from_str(&guests.run(NODES[0], &words)?).unwrap_or_default());
        }
        let mut program = Command::new(program);
        let out = program.args(["ctl", "--state-dir"]).arg(&self.state).args(command).output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        anyhow::ensure!(out.status.success(), "rds-sim ctl {command:?}: {said}");
        Ok(serde_json::from_slice(&out.stdout).unwrap_or_default())
    }

    /// Its file disks.
    pub(crate) fn disks(&self) -> anyhow::Result<Vec<Value>> {
        Ok(self.ctl(&["list"])?.as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn disk(&self, slot: &str) -> anyhow::Result<Option<Value>> {
        Ok(self.disks()?.into_iter().find(|disk| disk["slot"] == slot))
    }

    /// Files of volumes and snapshots that lie in the pool, whether a disk has them or not.
    pub(crate) fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        if let Place::Guest(guests) = &self.place {
            let script = format!("find {}/pools -type f", self.state.display());
            return Ok(guests.shell(NODES[0], &script)?.lines().map(PathBuf::from).collect());
        }
        let mut found = Vec::new();
        let mut folders = vec![self.state.join("pools")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }
}

/// A directory as `--rds-credentials` takes it, of what the simulator wrote down.
fn credentials(dir: &Path, written: &Path) -> anyhow::Result<PathBuf> {
    let credentials = dir.join("credentials");
    std::fs::create_dir(&credentials)?;
    std::fs::write(credentials.join("username"), "admin\n")?;
    std::fs::copy(written.join("password"), credentials.join("password"))?;
    std::fs::copy(written.join("cert.pem"), credentials.join("ca.crt"))?;
    Ok(credentials)
}
