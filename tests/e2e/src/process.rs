//! Programs that end with us, and what they wrote.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

pub(crate) struct Process {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Process {
    /// With its output in `<dir>/<name>.log`, after what is there already.
    pub(crate) fn start(command: &mut Command, dir: &Path, name: &str) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            // Held open by the Child: rds-kube-controllers ends when we do.
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Its log, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<PathBuf> {
        self.has_ended().then(|| self.log.clone())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Beside this program, where cargo builds all of them.
pub(crate) fn ours(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.exists(), "{} is missing: cargo build --workspace", path.display());
    Ok(path)
}

/// Built by tests/kube/sidecars.sh.
pub(crate) fn theirs(name: &str) -> anyhow::Result<PathBuf> {
    let path = tools().join("sidecars").join(name);
    anyhow::ensure!(path.exists(), "{} is missing: tests/kube/sidecars.sh", path.display());
    Ok(path)
}

pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
