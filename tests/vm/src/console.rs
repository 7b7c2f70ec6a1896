//! The guest's console log: its end, and what the kernel complained about.

use std::fs;
use std::path::Path;

/// Enough for the call trace of a panic.
const TAIL_LINES: usize = 60;

/// How the kernel begins a report that somebody should read.
const COMPLAINTS: [&str; 11] = [
    "Kernel panic",
    "BUG:",
    "kernel BUG at",
    "Oops:",
    "general protection fault",
    "WARNING: ",
    "blocked for more than",
    "soft lockup",
    "rcu_sched self-detected stall",
    "Out of memory",
    "rds-vm: boot failed",
];

fn is_complaint(line: &str) -> bool {
    COMPLAINTS.iter().any(|start| line.contains(start))
}

pub(crate) fn contains(log: &Path, text: &str) -> bool {
    read(log).contains(text)
}

/// What the kernel complained about, each line once.
pub(crate) fn complaints(log: &Path) -> Vec<String> {
    let text = read(log);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| is_complaint(line)) {
        let line = line.trim_end().to_owned();
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// The end of the log for a terminal: complaints in red when `colour`.
pub(crate) fn tail(log: &Path, colour: bool) -> String {
    let text = read(log);
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    tail.iter().map(|line| format!("  {}\n", highlight(line, colour))).collect()
}

fn highlight(line: &str, colour: bool) -> String {
    match (is_complaint(line), colour) {
        (true, true) => format!("\x1b[1;31m{line}\x1b[0m"),
        (true, false) => format!(">>> {line}"),
        (false, _) => line.to_owned(),
    }
}

/// A console may hold any bytes; a log that cannot be read has nothing to show.
fn read(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stands_out_and_an_nvme_message_does_not() {
        assert_eq!(
            highlight("[ 1.0] Kernel panic - not syncing: Fatal exception", false),
            ">>> [ 1.0] Kernel panic - not syncing: Fatal exception"
        );
        assert!(highlight("[ 1.0] Oops: 0000 [#1]", true).starts_with("\x1b[1;31m"));
        assert_eq!(
            highlight("[ 1.0] nvme nvme0: I/O timeout", true),
            "[ 1.0] nvme nvme0: I/O timeout"
        );
    }
}
