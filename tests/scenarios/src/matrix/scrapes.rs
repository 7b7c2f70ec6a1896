//! The agent's numbers, asked for all the time while volumes stand still: an answer that is late
//! or cut short, a number below zero or a counter that falls is what earlier drivers had.

use std::collections::HashMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::stack::METRICS;

const PAUSE: Duration = Duration::from_millis(700);
/// Far less than any outage of a volume takes, and much for an emulated guest.
const LIMIT: Duration = Duration::from_secs(4);
const STARTED: &str = "process_start_time_seconds";
const STATE: &str = "rds_csi_agent_volume_state{";

/// Scrapes that go on beside everything else.
pub(super) struct Scrapes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Told>>,
}

#[derive(Default)]
pub(super) struct Told {
    answers: u32,
    /// Of those, with a volume whose session was not live.
    in_outages: u32,
    slowest: Duration,
}

impl Scrapes {
    pub(super) fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || go_on(&ended)) }
    }

    pub(super) fn end(self) -> Result<Told> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok().context("the thread that scrapes panicked")?
    }
}

impl Told {
    /// A run in which volumes were lost must have asked meanwhile.
    pub(super) fn expect_outage(&self) -> Result<()> {
        ensure!(self.in_outages > 0, "no answer came from the middle of an outage");
        Ok(())
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} answers, {} of them while a session was lost, the slowest after {:.1?}",
            self.answers, self.in_outages, self.slowest
        )
    }
}

fn go_on(stop: &AtomicBool) -> Result<Told> {
    let (mut told, mut before) = (Told::default(), None);
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(PAUSE);
        let began = Instant::now();
        let Some(text) = scrape()? else { continue };
        let took = began.elapsed();
        ensure!(took < LIMIT, "an answer took {took:?}");
        let now = Numbers::parse(&text)?;
        now.check(before.as_ref()).with_context(|| format!("in\n{text}"))?;
        told.answers += 1;
        told.in_outages += u32::from(now.has_outage());
        told.slowest = told.slowest.max(took);
        before = Some(now);
    }
    Ok(told)
}

/// `None` while there is no agent, or one that ends.
fn scrape() -> Result<Option<String>> {
    let mut answer = Vec::new();
    let exchange = TcpStream::connect(METRICS).and_then(|mut stream| {
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: agent\r\n\r\n")?;
        // As long as it says, and not until the connection ends: an agent that ends just now
        // may take its time for that.
        let mut part = [0; 16 << 10];
        while body(&answer).is_none() {
            match stream.read(&mut part)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => answer.extend_from_slice(&part[..n]),
            }
        }
        Ok(())
    });
    match exchange {
        Ok(()) => Ok(body(&answer)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            bail!("no whole answer within {LIMIT:?}, only {:?}", String::from_utf8_lossy(&answer))
        }
        Err(_) => Ok(None),
    }
}

/// What a good answer carries, once all of it is there.
fn body(answer: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length: usize =
        head.lines().find_map(|l| l.strip_prefix("content-length: "))?.parse().ok()?;
    (head.starts_with("HTTP/1.1 200") && body.len() == length).then(|| body.to_owned())
}

/// Each series with its value.
struct Numbers(HashMap<String, f64>);

impl Numbers {
    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        let number = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        let parse = |line: &str| number(line).with_context(|| format!("what is {line:?}?"));
        Ok(Self(lines.map(parse).collect::<Result<_>>()?))
    }

    fn has_outage(&self) -> bool {
        let lost = |s: &str| s.starts_with(STATE) && !s.contains("state=\"Live\"");
        self.0.iter().any(|(series, value)| lost(series) && *value > 0.0)
    }

    fn check(&self, before: Option<&Self>) -> Result<()> {
        for (series, value) in &self.0 {
            ensure!(*value >= 0.0, "{series} is {value}");
        }
        // Another agent counts from zero; its start tells them apart.
        let Some(before) = before.filter(|b| b.0.get(STARTED) == self.0.get(STARTED)) else {
            return Ok(());
        };
        for (series, old) in &before.0 {
            let name = series.split('{').next().unwrap_or_default();
            let counts = ["_total", "_count", "_sum", "_bucket"].iter().any(|e| name.ends_with(e));
            match self.0.get(series) {
                Some(new) => ensure!(!counts || new >= old, "{series} fell from {old} to {new}"),
                None => ensure!(!counts, "{series} is gone; it was {old}"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Numbers> {
        Numbers::parse(&format!("# HELP x y\n{STARTED} 5\n{text}\n"))
    }

    #[test]
    fn what_is_wrong_with_numbers_is_seen() -> Result<()> {
        let first = of("a_total 3\nb{volume=\"x y\"} 2.5")?;
        first.check(None)?;
        first.check(Some(&first))?;
        of("a_total 4\nb{volume=\"x y\"} 1")?.check(Some(&first))?;
        // A volume that is taken away takes its gauges with it.
        of("a_total 3")?.check(Some(&first))?;
        for wrong in ["a_total 2", "a_total -1", "b 1"] {
            assert!(of(wrong)?.check(Some(&first)).is_err(), "{wrong}");
        }
        let restarted = Numbers::parse("process_start_time_seconds 6\na_total 0\n")?;
        restarted.check(Some(&first))?;
        assert!(Numbers::parse("a_total\n").is_err());
        assert!(of("rds_csi_agent_volume_state{state=\"Lost\",volume=\"a\"} 1")?.has_outage());
        assert!(!of("rds_csi_agent_volume_state{state=\"Live\",volume=\"a\"} 1")?.has_outage());
        Ok(())
    }
}
