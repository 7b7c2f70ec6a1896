//! docs/getting-started.md, of which each box of shell is run as it is written there.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::appliance::Appliance;
use crate::cluster::Cluster;
use crate::process::{theirs, tools};

const GUIDE: &str = "docs/getting-started.md";
/// One box, and the heading that it is under.
struct Step {
    heading: String,
    commands: String,
}

pub(crate) struct Guide {
    dir: PathBuf,
    kubeconfig: PathBuf,
    steps: std::vec::IntoIter<Step>,
}

impl Guide {
    /// In a folder that looks like a checkout of this project, with the appliance's three files.
    pub(crate) fn new(
        dir: &Path,
        cluster: &Cluster,
        appliance: &Appliance,
    ) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let dir = dir.join("guide");
        std::fs::create_dir_all(dir.join("bin"))?;
        for folder in ["deploy", "docs"] {
            symlink(root.join(folder), dir.join(folder))?;
        }
        for file in ["username", "password", "ca.crt"] {
            std::fs::copy(appliance.credentials.join(file), dir.join(file))?;
        }
        symlink(tools().join("helm").canonicalize()?, dir.join("bin/helm"))?;
        let kubectl = dir.join("bin/kubectl");
        let program = theirs("rds-kube-controllers")?;
        std::fs::write(
            &kubectl,
            format!("#!/bin/sh\nexec {} kubectl \"$@\"\n", program.display()),
        )?;
        std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755))?;
        let steps = steps(&std::fs::read_to_string(root.join(GUIDE))?);
        ensure!(steps.len() > 5, "{GUIDE} has {} boxes of shell", steps.len());
        Ok(Self { dir, kubeconfig: cluster.server.kubeconfig(), steps: steps.into_iter() })
    }

    /// Runs what comes before the first box in which the text is, or all that is left.
    pub(crate) async fn until(&mut self, text: &str) -> anyhow::Result<()> {
        while let Some(step) = self.steps.as_slice().first() {
            if !text.is_empty() && step.commands.contains(text) {
                return Ok(());
            }
            let Some(step) = self.steps.next() else { break };
            let mut command = Command::new("bash");
            let path = std::env::var("PATH").unwrap_or_default();
            command
                .args(["-euo", "pipefail", "-c", &step.commands])
                .current_dir(&self.dir)
                .env("PATH", format!("{}:{path}", self.dir.join("bin").display()))
                .env("KUBECONFIG", &self.kubeconfig)
                .env("HOME", &self.dir);
            let output = tokio::task::spawn_blocking(move || command.output()).await??;
            let said = String::from_utf8_lossy(&output.stdout);
            let complaint = String::from_utf8_lossy(&output.stderr);
            println!("  {}\n    {}", step.heading, said.trim().replace('\n', "\n    "));
            ensure!(output.status.success(), "{:?}: {}", step.commands, complaint.trim());
        }
        ensure!(text.is_empty(), "no box of {GUIDE} has {text:?}");
        Ok(())
    }
}

fn steps(guide: &str) -> Vec<Step> {
    let (mut heading, mut steps) = (String::new(), Vec::new());
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            line.clone_into(&mut heading);
        }
        if line == "```sh" {
            let commands: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
            steps.push(Step { heading: heading.clone(), commands: commands.join("\n") });
        }
    }
    steps
}
