//! Every management request: one JSON line each in `requests.jsonl`, and counts for `ctl stats`.
//! Paths and item names only, never property values: those may be passwords.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct Record<'a> {
    /// Milliseconds since the epoch at which it was done.
    pub time: u64,
    pub transport: &'static str,
    pub verb: &'a str,
    pub path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<&'a str>,
    /// HTTP status; the same numbers stand for outcomes over SSH.
    pub status: u16,
    /// From arrival to completion, waiting for its turn included. In microseconds, since a
    /// bench takes it from its client's own time.
    pub us: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Count {
    pub requests: u64,
    pub failed: u64,
    pub total_ms: u64,
    pub max_ms: u64,
}

#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
    counts: Mutex<BTreeMap<String, Count>>,
}

impl Journal {
    pub fn open(path: &Path) -> io::Result<Journal> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Journal { file: Mutex::new(file), counts: Mutex::default() })
    }

    pub fn write(&self, record: &Record<'_>) {
        let mut line = serde_json::to_vec(record).unwrap_or_default();
        line.push(b'\n');
        if let Err(e) = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line) {
            tracing::warn!("requests.jsonl: {e}");
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts
            .entry(format!("{} {} {}", record.transport, record.verb, record.path))
            .or_default();
        count.requests += 1;
        count.failed += u64::from(record.status >= 400);
        count.total_ms += record.us / 1000;
        count.max_ms = count.max_ms.max(record.us / 1000);
    }

    pub fn counts(&self) -> BTreeMap<String, Count> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn reset(&self) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Whole microseconds.
pub fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
