//! A page of what several runs have seen.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::rows::{Row, Run};

const HEAD: &str = "\
# The fault matrix

<!-- Made by `make test-faults` (tests/faults.sh) of what its guests have seen. Do not edit. -->

Three volumes (ext4, xfs, raw block) are each written to by one process, which writes
numbered, checksummed records and syncs each one. It is never restarted. All faults below
happen to them, one after the other, in one boot of a virtual machine; then everything is
read back from the target with caches dropped. A row is good only if no write failed, all
three were written to again within two minutes, each session was Live with exactly one
controller, and the fault had really taken the sessions away (or stopped the I/O).

- **stood still**: the longest time without an acknowledged write, for ext4 / xfs / raw block.
  It contains the fault itself: 90 s without packets cannot be shorter than 90 s.
- **back after**: from the end of the cause until the last of the three had written again.
- **states**: what the session went through, of the volume that went through most.
  Nothing if it stayed Live.
- **failed**: writes that failed; on the three volumes always none.

Some faults are meant for volumes of their own, beside the three: what became of those is in
the last column, and the times in such a row show that the three were not disturbed.

Times are those of an emulated machine (no KVM) that shares two processors with other work.
They are many times longer than on hardware, and are worth something only beside each other.
";

/// Characters of a cell.
const CELL: usize = 300;

/// Prints the page for these runs.
pub(crate) fn print(date: &str, runs: &[PathBuf]) -> ExitCode {
    let runs: anyhow::Result<Vec<_>> = runs.iter().map(|path| Run::load(path)).collect();
    match runs {
        Ok(runs) => {
            print!("{}", page(date, &runs));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rds-scenario: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn page(date: &str, runs: &[Run]) -> String {
    let mut page = format!("{HEAD}\nRun on {date}.\n");
    for run in runs {
        let _ = write!(page, "\n{}", of_one(run));
    }
    page
}

/// One run's part.
pub(super) fn of_one(run: &Run) -> String {
    let mut text = format!(
        "## Linux {} ({}), `nvme_core.multipath={}`\n\n\
         | fault | stood still, s | back after, s | states | failed | seen | verdict |\n\
         |---|---|---|---|---|---|---|\n",
        run.kernel, run.release, run.multipath
    );
    for row in &run.rows {
        let _ = writeln!(text, "{}", line(row));
    }
    text.push('\n');
    for (name, failure) in &run.endings {
        let _ = match failure {
            None => writeln!(text, "- after all of them: {name}: good"),
            Some(why) => writeln!(text, "- after all of them: {name}: **FAILED**: {}", cell(why)),
        };
    }
    text
}

fn line(row: &Row) -> String {
    let [ext4, xfs, raw] = row.stalls;
    let back = row.back.map_or_else(|| "never".into(), |s| format!("{s:.1}"));
    let verdict =
        row.verdict.as_ref().map_or("good".into(), |why| format!("**FAILED**: {}", cell(why)));
    format!(
        "| {} | {ext4:.1} / {xfs:.1} / {raw:.1} | {back} | {} | {} | {} | {verdict} |",
        cell(&row.title),
        cell(row.path()),
        row.failed_writes,
        cell(&row.note),
    )
}

/// Text that stays within its cell: the run's log has all of it.
fn cell(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let short: String = first.chars().take(CELL).collect();
    short.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_seen_in_the_page() {
        let row = Row {
            title: "a | b".into(),
            stalls: [1.0, 2.25, 3.0],
            verdict: Some("two\nlines".into()),
            ..Row::default()
        };
        assert_eq!(line(&row), "| a \\| b | 1.0 / 2.2 / 3.0 | never |  | 0 |  | **FAILED**: two |");
    }
}
