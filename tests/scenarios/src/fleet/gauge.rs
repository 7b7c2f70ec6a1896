//! What is measured from outside: the agent's process, its metrics, the portal's connections.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::stack::METRICS;

/// The portal, as /proc/net/tcp prints a remote address: 10.99.0.2:4420.
const PORTAL: &str = "0200630A:1144";
const ESTABLISHED: &str = "01";
const SYN_SENT: &str = "02";

/// The agent's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// A line of /proc/PID/status, in KiB or without a unit.
    pub(crate) fn status(self, key: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        let value = line.and_then(|l| l.split_whitespace().next()).context(key.to_owned())?;
        Ok(value.parse()?)
    }

    /// Where its memory is, for whoever has to find out why there is so much.
    pub(crate) fn largest_mappings(self) -> Result<String> {
        let text = fs::read_to_string(format!("/proc/{}/smaps", self.0))?;
        let (mut mappings, mut header) = (Vec::new(), "");
        for line in text.lines() {
            if line.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()) {
                header = line;
            } else if let Some(rest) = line.strip_prefix("Rss:") {
                let kib: u64 = rest.split_whitespace().next().context("Rss")?.parse()?;
                mappings.push((kib, header));
            }
        }
        mappings.sort_unstable_by(|a, b| b.cmp(a));
        let lines = mappings.iter().take(12).map(|(kib, header)| format!("  {kib:>7} {header}"));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// User and system time, of threads that have ended too.
    pub(super) fn cpu(self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        let fields: Vec<_> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

/// How the portal's connections peak; sampled until dropped.
pub(super) struct Connections {
    peaks: Arc<Peaks>,
}

#[derive(Default)]
struct Peaks {
    established: AtomicUsize,
    opening: AtomicUsize,
    volumes: AtomicUsize,
    stop: AtomicBool,
}

impl Connections {
    pub(super) fn watch() -> Result<Self> {
        let peaks = Arc::new(Peaks::default());
        let own = peaks.clone();
        std::thread::Builder::new().name("sampler".into()).spawn(move || {
            let mut scraped = Instant::now();
            while !own.stop.load(Ordering::SeqCst) {
                own.sample();
                if scraped.elapsed() > Duration::from_millis(200) {
                    let under_way = scrape("/metrics")
                        .ok()
                        .and_then(|text| value(&text, "rds_csi_agent_connects_under_way"));
                    own.volumes.fetch_max(under_way.unwrap_or(0.0) as usize, Ordering::SeqCst);
                    scraped = Instant::now();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })?;
        Ok(Self { peaks })
    }

    /// Connections that were established, connections that were being opened, and volumes that
    /// the agent was connecting, each at its peak.
    pub(super) fn peaks(&self) -> (usize, usize, usize) {
        let peak = |n: &AtomicUsize| n.load(Ordering::SeqCst);
        (peak(&self.peaks.established), peak(&self.peaks.opening), peak(&self.peaks.volumes))
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.peaks.stop.store(true, Ordering::SeqCst);
    }
}

impl Peaks {
    fn sample(&self) {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let in_state = |state| {
            let is = |line: &&str| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.get(2) == Some(&PORTAL) && words.get(3) == Some(&state)
            };
            table.lines().filter(is).count()
        };
        self.established.fetch_max(in_state(ESTABLISHED), Ordering::SeqCst);
        self.opening.fetch_max(in_state(SYN_SENT), Ordering::SeqCst);
    }
}

/// What the agent answers on its metrics address.
pub(super) fn scrape(path: &str) -> Result<String> {
    scrape_at(METRICS, path)
}

/// The same from anybody.
pub(crate) fn scrape_at(address: &str, path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: metrics\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// The value of one series, written as it is printed.
pub(crate) fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?.parse().ok()
}

/// All series of a metric: labels and value.
pub(super) fn series<'a>(text: &'a str, name: &str) -> Vec<(&'a str, f64)> {
    let parse = |line: &'a str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        Some((labels, value.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// How long this machine takes for what the agent does each second: small reads in sysfs, and
/// taking apart and putting together what they say. Of a guest and its host, the ratio says
/// how slow the guest is. (Arithmetic in registers would not do: an emulator is nearly as fast
/// as its host in that, and ten times slower at memory and calls.)
pub(crate) fn speed() -> Result<(f64, f64)> {
    const READS: u32 = 3_000;
    const TEXTS: u32 = 20_000;
    let mut fastest = (f64::INFINITY, f64::INFINITY);
    for _ in 0..5 {
        let began = Instant::now();
        for _ in 0..READS {
            fs::read_to_string("/sys/class/net/lo/mtu")?;
        }
        let read = began.elapsed().as_secs_f64() * 1e9 / f64::from(READS);
        let began = Instant::now();
        for n in 0..TEXTS {
            std::hint::black_box(text(std::hint::black_box(n)));
        }
        let compute = began.elapsed().as_secs_f64() * 1e9 / f64::from(TEXTS);
        fastest = (fastest.0.min(read), fastest.1.min(compute));
    }
    Ok(fastest)
}

/// A line as device-mapper and sysfs give them, made, taken apart and kept by name.
fn text(n: u32) -> usize {
    let line = format!("2 0 0 0 1 1 A 0 1 0 259:{n} A 0 rds-pvc-{n:08x} live {}", n * 512);
    let words: HashMap<String, u64> = line
        .split_whitespace()
        .map(|word| (word.to_owned(), word.parse().unwrap_or_default()))
        .collect();
    words.len()
}
