//! Running other programs, with errors that name them and say how to get them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

const SETUP_HINT: &str = "tests/vm/setup.sh installs what rds-vm needs";

/// Runs to the end and gives stdout; stderr is part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{shown}` ({SETUP_HINT})"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` ended with {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`output`], for those that print nothing of interest.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    let mut line = words.join(" ");
    // xz gets hundreds of file names; an error needs the first few.
    if line.len() > 300 {
        let cut = (0..=300).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        line.truncate(cut);
        line.push_str(" ...");
    }
    line
}
