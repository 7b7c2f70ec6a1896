//! The initramfs of one run: busybox, the modules that reach the shared root, the two
//! stages of the guest's init, and the job.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::cpio::Archive;
use crate::kernels::Kernel;
use crate::quote::{sh, sh_words};

const FIRST_STAGE: &str = include_str!("../guest/init.sh");
const LAST_STAGE: &str = include_str!("../guest/command.sh");

/// What the first stage needs before it sees `/lib/modules`; everything else is loaded
/// from there, with modprobe.
const BOOT_MODULES: [&str; 5] = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_ring"];

/// How long before the deadline the guest lists its blocked tasks.
const BLOCKED_TASKS_LEAD: Duration = Duration::from_secs(5);

/// What is process 1 in the guest while the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// A script of ours, which starts udev and the command.
    Script,
    /// This machine's systemd, with nothing in it but the command.
    Systemd,
}

impl Init {
    fn second_stage(self) -> &'static str {
        match self {
            Self::Script => include_str!("../guest/root.sh"),
            Self::Systemd => include_str!("../guest/systemd.sh"),
        }
    }
}

/// What the guest is to do.
pub(crate) struct Job<'a> {
    pub(crate) token: &'a str,
    pub(crate) init: Init,
    pub(crate) directory: &'a Path,
    pub(crate) command: &'a [String],
    pub(crate) environment: &'a [(String, String)],
    pub(crate) timeout: Duration,
}

/// The initramfs that runs `job` on `kernel`.
pub(crate) fn build(kernel: &Kernel, job: &Job<'_>) -> Result<Vec<u8>> {
    let mut archive = base()?;
    archive.file("init", 0o755, FIRST_STAGE.as_bytes());
    archive.file("second.sh", 0o755, job.init.second_stage().as_bytes());
    archive.file("command.sh", 0o755, LAST_STAGE.as_bytes());
    archive.file("job.sh", 0o600, script(kernel, job)?.as_bytes());
    archive.directory("modules");
    for (index, module) in boot_modules(kernel)?.iter().enumerate() {
        let data = fs::read(module).with_context(|| format!("reading {}", module.display()))?;
        archive.file(&format!("modules/{index:02}.ko"), 0o644, &data);
    }
    Ok(archive.finish())
}

/// The initramfs of a guest that says one line on its console and goes.
pub(crate) fn greeting(line: &str) -> Result<Vec<u8>> {
    let mut archive = base()?;
    let init = format!("#!/busybox sh\necho {}\n/busybox poweroff -f\n", sh(line));
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.finish())
}

fn base() -> Result<Archive> {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("busybox", 0o755, &busybox()?);
    Ok(archive)
}

fn busybox() -> Result<Vec<u8>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|file| file.is_file());
    let found = found.context("no busybox in PATH; tests/vm/setup.sh installs busybox-static")?;
    let data = fs::read(&found).with_context(|| format!("reading {}", found.display()))?;
    // A dynamic executable names its loader near the start; nothing could load it there.
    if data.iter().take(4096).copied().collect::<Vec<_>>().windows(8).any(|w| w == b"ld-linux") {
        bail!("{} is not static; tests/vm/setup.sh installs busybox-static", found.display());
    }
    Ok(data)
}

/// Files of the boot modules, each after those it depends on.
fn boot_modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for module in BOOT_MODULES {
        let listing =
            command::output(
                // Without the host's modprobe.d: its blacklists are not meant for the guest.
                Command::new("modprobe")
                    .args(["-C", "/dev/null", "-d"])
                    .arg(&kernel.directory)
                    .args(["-S", &kernel.release, "--show-depends", module]),
            )?;
        for file in insmod_lines(&listing) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// From `modprobe --show-depends`: lines `insmod FILE OPTIONS`, or `builtin NAME`.
fn insmod_lines(listing: &str) -> Vec<PathBuf> {
    let files = listing.lines().filter_map(|line| line.strip_prefix("insmod "));
    files
        .filter_map(|rest| rest.split(".ko").next().map(|stem| PathBuf::from(format!("{stem}.ko"))))
        .collect()
}

/// The job as shell: variables for the stages, and the command as a function.
fn script(kernel: &Kernel, job: &Job<'_>) -> Result<String> {
    let text = |path: &Path| {
        path.to_str().map(sh).with_context(|| format!("the path {} is not UTF-8", path.display()))
    };
    let blocked_after = job.timeout.saturating_sub(BLOCKED_TASKS_LEAD).max(job.timeout / 2);
    let mut script = format!(
        "TOKEN={}\nRELEASE={}\nKERNEL_DIR={}\nDIRECTORY={}\nBLOCKED_AFTER={}\n",
        sh(job.token),
        sh(&kernel.release),
        text(&kernel.directory)?,
        text(job.directory)?,
        blocked_after.as_secs().max(1),
    );
    for (name, value) in job.environment {
        script.push_str(&format!("export {name}={}\n", sh(value)));
    }
    let words = sh_words(job.command.iter().map(String::as_str));
    // By env, from PATH: busybox prefers its own applets to the programs of those names.
    script.push_str(&format!(
        "run_command() {{ cd {} && exec /usr/bin/env -- {words}; }}\n",
        text(job.directory)?
    ));
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modprobe_listings_give_files_in_order() {
        let listing = "builtin virtio\ninsmod /k dir/virtio_ring.ko \ninsmod /k/9p.ko opt=1\n";
        assert_eq!(
            insmod_lines(listing),
            [PathBuf::from("/k dir/virtio_ring.ko"), PathBuf::from("/k/9p.ko")]
        );
    }

    #[test]
    fn the_stages_are_shell_scripts_without_syntax_errors() {
        let second = [Init::Script, Init::Systemd].map(Init::second_stage);
        for stage in [FIRST_STAGE, second[0], second[1], LAST_STAGE] {
            let status = Command::new("sh").args(["-n", "-c", stage]).status();
            assert!(status.is_ok_and(|status| status.success()));
        }
    }
}
