//! How states, times and spans are written for people.

use std::ffi::OsStr;
use std::io::IsTerminal;

use comfy_table::{Cell, Color};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rds_csi_proto::agent::State;

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    /// On a terminal, for a person who did not say no.
    On,
    Off,
}

impl Colours {
    /// For standard output, by the rule of no-color.org.
    pub(super) fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR");
        Self::choose(std::io::stdout().is_terminal(), refused.as_deref())
    }

    fn choose(terminal: bool, no_color: Option<&OsStr>) -> Self {
        let refused = no_color.is_some_and(|value| !value.is_empty());
        if terminal && !refused { Self::On } else { Self::Off }
    }

    /// A table's cell.
    pub(super) fn cell(self, text: &str, colour: Color) -> Cell {
        match self {
            Self::On => Cell::new(text).fg(colour),
            Self::Off => Cell::new(text),
        }
    }

    /// A word of a line.
    pub(super) fn word(self, text: &str, colour: Color) -> String {
        let code = match colour {
            // The bright ones, as in tables.
            Color::Green => 92,
            Color::Yellow => 93,
            Color::Red => 91,
            _ => return text.to_owned(),
        };
        match self {
            Self::On => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

/// Green works, yellow comes back by itself, red needs somebody.
pub(super) fn colour_of(state: State) -> Color {
    match state {
        State::Live => Color::Green,
        State::Degraded | State::Connecting | State::Backoff | State::Lost => Color::Yellow,
        State::Blocked | State::Fenced => Color::Red,
        State::Unspecified | State::Absent | State::Draining => Color::Reset,
    }
}

/// `2026-01-31 13:05:09.250` where the person is. A time that no calendar has is given as the
/// number that it was.
pub(super) fn local_time(at_unix_ms: i64) -> String {
    time_in(at_unix_ms, &TimeZone::system())
}

fn time_in(at_unix_ms: i64, zone: &TimeZone) -> String {
    match Timestamp::from_millisecond(at_unix_ms) {
        Ok(at) => at.to_zoned(zone.clone()).strftime("%F %T%.3f").to_string(),
        Err(_) => format!("{at_unix_ms} ms"),
    }
}

/// How long ago, as far as the wall clock can tell.
pub(super) fn ago(at_unix_ms: i64, now_unix_ms: i64) -> String {
    span(u64::try_from(now_unix_ms.saturating_sub(at_unix_ms)).unwrap_or(0))
}

/// `450 ms`, `12 s`, `5 min`, `3 h`, `2 d`
pub(super) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spans_are_short_and_true() {
        let said: Vec<_> =
            [0, 999, 1_500, 119_999, 120_000, 7_200_000, 172_800_000].map(span).into();
        assert_eq!(said, ["0 ms", "999 ms", "1.5 s", "120.0 s", "2 min", "2 h", "2 d"]);
    }

    #[test]
    fn colours_are_for_terminals_of_people_who_want_them() {
        assert_eq!(Colours::choose(true, None), Colours::On);
        assert_eq!(Colours::choose(true, Some(OsStr::new(""))), Colours::On);
        assert_eq!(Colours::choose(true, Some(OsStr::new("1"))), Colours::Off);
        assert_eq!(Colours::choose(false, None), Colours::Off);
        assert_eq!(Colours::On.word("Blocked", Color::Red), "\x1b[91mBlocked\x1b[0m");
        assert_eq!(Colours::Off.word("Blocked", Color::Red), "Blocked");
    }

    #[test]
    fn times_are_local_and_a_senseless_one_is_still_printed() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(time_in(1_700_000_000_250, &zone), "2023-11-15 00:13:20.250");
        assert_eq!(time_in(i64::MAX, &zone), format!("{} ms", i64::MAX));
    }

    #[test]
    fn a_time_in_the_future_is_no_time_ago() {
        assert_eq!(ago(2_000, 1_000), "0 ms");
        assert_eq!(ago(i64::MIN, i64::MAX), span(i64::MAX.unsigned_abs()));
    }
}
