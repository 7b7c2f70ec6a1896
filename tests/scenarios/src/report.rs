//! Tells the story as it happens, and sums it up: one line a case (`ok NAME` or
//! `FAILED NAME`, which tests/run.sh counts) and a table of the faults.

use std::time::{Duration, Instant};

use comfy_table::{Table, presets};

/// One fault and what was seen of it.
pub(crate) struct Row {
    pub(crate) fault: String,
    /// How long the agent says the session was gone.
    pub(crate) outage: Option<Duration>,
    /// How long the writers stood still.
    pub(crate) stalls: [Duration; 2],
    pub(crate) failed_writes: usize,
}

/// A run's record.
pub(crate) struct Report {
    began: Instant,
    title: String,
    rows: Vec<Row>,
    failed: Vec<String>,
    passed: usize,
}

impl Report {
    pub(crate) fn new(title: &str) -> Self {
        Self {
            began: Instant::now(),
            title: title.to_owned(),
            rows: Vec::new(),
            failed: Vec::new(),
            passed: 0,
        }
    }

    /// A line of the timeline.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        println!("[{:6.1} s] {}", self.began.elapsed().as_secs_f64(), text.as_ref());
    }

    pub(crate) fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Records a case; an error is printed whole.
    pub(crate) fn case(&mut self, name: &str, result: anyhow::Result<()>) -> bool {
        let name = format!("{}: {name}", self.title);
        match result {
            Ok(()) => {
                println!("ok {name}");
                self.passed += 1;
                true
            }
            Err(error) => {
                println!("FAILED {name}: {error:#}");
                self.failed.push(name);
                false
            }
        }
    }

    /// Prints the table and the sum; true if nothing failed.
    pub(crate) fn finish(&self) -> bool {
        let seconds = |d: Duration| format!("{:.1} s", d.as_secs_f64());
        if !self.rows.is_empty() {
            let mut table = Table::new();
            table.load_preset(presets::ASCII_MARKDOWN).set_header([
                "fault",
                "session gone",
                "I/O stall, file system",
                "I/O stall, raw block",
                "failed writes",
            ]);
            for row in &self.rows {
                table.add_row([
                    row.fault.clone(),
                    row.outage.map_or_else(|| "-".into(), seconds),
                    seconds(row.stalls[0]),
                    seconds(row.stalls[1]),
                    row.failed_writes.to_string(),
                ]);
            }
            println!("\n{}\n\n{table}\n", self.title);
        }
        let (passed, failed) = (self.passed, self.failed.len());
        println!("{}: {passed} cases passed, {failed} failed", self.title);
        self.failed.is_empty()
    }
}
