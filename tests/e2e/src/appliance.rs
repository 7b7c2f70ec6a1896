//! A simulated appliance, without a kernel target: what is looked at here is what the controller
//! had it do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::process::{Process, ours};

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Appliance {
    state: PathBuf,
    pub(crate) url: String,
    /// A directory as `--rds-credentials` takes it.
    pub(crate) credentials: PathBuf,
    _process: Process,
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
        let credentials = dir.join("credentials");
        std::fs::create_dir(&credentials)?;
        std::fs::write(credentials.join("username"), "admin\n")?;
        std::fs::copy(state.join("password"), credentials.join("password"))?;
        std::fs::copy(state.join("cert.pem"), credentials.join("ca.crt"))?;
        let rest = endpoints["rest"].as_str().context("no address")?;
        Ok(Self { state, url: format!("https://{rest}"), credentials, _process: process })
    }

    /// `rds-sim ctl ...`.
    pub(crate) fn ctl(&self, command: &[&str]) -> anyhow::Result<Value> {
        let mut program = Command::new(ours("rds-sim")?);
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
