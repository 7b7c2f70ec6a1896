//! The process itself, under the names that all Prometheus clients use.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::reading::Reading;
use crate::error::Result;

const RESIDENT: Reading = Reading::gauge("process_resident_memory_bytes", "Resident memory");
const VIRTUAL: Reading = Reading::gauge("process_virtual_memory_bytes", "Virtual memory");
const THREADS: Reading = Reading::gauge("process_threads", "Threads");
const CPU: Reading = Reading::counter("process_cpu_seconds_total", "User and system time spent");
const OPEN: Reading = Reading::gauge("process_open_fds", "Open file descriptors");
const MOST: Reading = Reading::gauge("process_max_fds", "File descriptors that may be open");
const START: Reading =
    Reading::gauge("process_start_time_seconds", "Start, in seconds of Unix time");

/// Reads `/proc/self`; what cannot be read is not shown.
pub struct Process {
    descs: Vec<Desc>,
}

impl Process {
    /// # Errors
    /// If a metric is declared wrongly.
    pub fn new() -> Result<Self> {
        let all = [RESIDENT, VIRTUAL, THREADS, CPU, OPEN, MOST, START];
        Ok(Self { descs: all.iter().map(Reading::desc).collect::<Result<_>>()? })
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        let times = ticks.and_then(|ticks| times(&stat, ticks as f64));
        // One of them is the directory that is being read.
        let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64 - 1.0);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        vec![
            RESIDENT.one(status_bytes(&status, "VmRSS")),
            VIRTUAL.one(status_bytes(&status, "VmSize")),
            THREADS.one(times.map(|t| t.threads)),
            CPU.one(times.map(|t| t.cpu)),
            OPEN.one(open),
            MOST.one(limit.map(|n| n as f64)),
            START.one(times.and_then(|t| Some(boot_time()? + t.start))),
        ]
    }
}

/// A value in KiB of `/proc/self/status`, in bytes.
fn status_bytes(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    /// Seconds.
    cpu: f64,
    threads: f64,
    /// Seconds after the boot.
    start: f64,
}

/// proc(5), fields 14, 15, 20, 22. The name in parentheses may hold anything, also
/// parentheses.
fn times(stat: &str, ticks_per_second: f64) -> Option<Times> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Times {
        cpu: (field(14)? + field(15)?) / ticks_per_second,
        threads: field(20)?,
        start: field(22)? / ticks_per_second,
    })
}

/// When the host booted, in seconds of Unix time.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 9 0 12345 1 2";
        assert_eq!(times(stat, 100.0), Some(Times { cpu: 2.0, threads: 9.0, start: 123.45 }));
        assert_eq!(times("7 (x", 100.0), None);
        let status = "Name:\tx\nVmLck:\t    8 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(status_bytes(status, "VmRSS"), Some(f64::from(1 << 20)));
        assert_eq!(status_bytes(status, "VmSwap"), None);
    }

    #[test]
    fn this_process_is_shown_whole() {
        let shown = Process::new().unwrap().collect();
        let value = |name: &str| {
            let family = shown.iter().find(|f| f.name() == name).unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        assert!(shown.iter().all(|family| family.get_metric().len() == 1), "{shown:?}");
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
