//! What the command line prints: tables for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Cell, Row, Table, presets};
use rds_csi_proto::agent::{State, StatusReply, Transition, Volume, VolumeReply};
use serde_json::Value;

use crate::session::record::state_name;

use super::json::{self, Failed};
use super::style::{Colours, ago, colour_of, local_time, span};

/// How a command prints what it learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs: versioned and stable.
    Json,
    /// For people with wide terminals.
    Wide,
}

/// Prints in one format.
pub(super) struct Printer<W> {
    pub(super) format: Format,
    pub(super) colours: Colours,
    /// The wall clock, for "how long ago".
    pub(super) now_unix_ms: i64,
    pub(super) out: W,
}

impl<W: Write> Printer<W> {
    pub(super) fn status(&mut self, reply: &StatusReply) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(&json::status(reply));
        }
        let mut header =
            vec!["VOLUME", "STATE", "SINCE", "DEVICE", "PATH", "WAITING", "OUTAGES", "LAST OUTAGE"];
        let wide = self.format == Format::Wide;
        if wide {
            header.extend(["SIZE", "FILESYSTEM", "STAGED AT", "REASON"]);
        }
        let mut table = self.plain(&header);
        for v in &reply.volumes {
            let live = v.state() == State::Live;
            let mut row = Row::from([&v.volume_id]);
            row.add_cell(self.state(v)).add_cell(Cell::new(ago(v.since_unix_ms, self.now_unix_ms)));
            let mut add = |text: String| {
                row.add_cell(Cell::new(text));
            };
            add(dash(&v.device));
            add(dash(&v.namespace));
            // While a path is there, requests in flight are simply at work.
            add(if live { "0".into() } else { v.io_in_flight.to_string() });
            add(v.outages.to_string());
            add(if v.outages == 0 { "-".into() } else { span(v.last_outage_ms) });
            if wide {
                add(v.size_bytes.to_string());
                add(dash(&v.filesystem));
                add(dash(&v.staging_path));
                add(v.reason.clone());
            }
            table.add_row(row);
        }
        self.table(&table)?;
        if !wide {
            for v in reply.volumes.iter().filter(|v| v.state() != State::Live) {
                writeln!(self.out, "{}: {}", v.volume_id, v.reason)?;
            }
        }
        Ok(())
    }

    pub(super) fn sessions(&mut self, reply: &StatusReply) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(&json::status(reply));
        }
        let mut table =
            self.plain(&["VOLUME", "STATE", "CONTROLLER", "PORTAL", "SUBSYSTEM", "HOST NQN"]);
        for v in &reply.volumes {
            let mut row = Row::from([&v.volume_id]);
            row.add_cell(self.state(v));
            for text in [&dash(&v.controller), &v.portal, &v.nqn, &v.host_nqn] {
                row.add_cell(Cell::new(text));
            }
            table.add_row(row);
        }
        self.table(&table)
    }

    pub(super) fn history(&mut self, transitions: &[Transition]) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(&json::history(transitions));
        }
        let mut table = self.plain(&["AT", "AGO", "FROM", "TO", "CAUSE"]);
        for t in transitions {
            let mut row = Row::new();
            row.add_cell(Cell::new(local_time(t.at_unix_ms)))
                .add_cell(Cell::new(ago(t.at_unix_ms, self.now_unix_ms)))
                .add_cell(Cell::new(state_name(t.from())))
                .add_cell(self.colours.cell(state_name(t.to()), colour_of(t.to())))
                .add_cell(Cell::new(&t.cause));
            table.add_row(row);
        }
        self.table(&table)
    }

    /// One line a transition, seen at once: this is a stream.
    pub(super) fn watched(&mut self, t: &Transition) -> io::Result<()> {
        if self.format == Format::Json {
            writeln!(self.out, "{}", json::watched(t))?;
        } else {
            let to = self.colours.word(state_name(t.to()), colour_of(t.to()));
            let (at, from) = (local_time(t.at_unix_ms), state_name(t.from()));
            writeln!(self.out, "{at} {} {from} -> {to}: {}", t.volume_id, t.cause)?;
        }
        self.out.flush()
    }

    pub(super) fn done(&mut self, reply: &VolumeReply) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(&json::done(reply));
        }
        writeln!(self.out, "{}", reply.message)
    }

    /// What became of each volume; failures are told on standard error by the caller.
    pub(super) fn failed(&mut self, results: &[Failed]) -> io::Result<()> {
        if self.format == Format::Json {
            return self.json(&json::failed(results));
        }
        for result in results {
            if let Ok(message) = &result.outcome {
                writeln!(self.out, "{}: {message}", result.volume)?;
            }
        }
        Ok(())
    }

    fn state(&self, v: &Volume) -> Cell {
        let name = state_name(v.state());
        let text = if v.failing_io { format!("{name} (failing I/O)") } else { name.to_owned() };
        self.colours.cell(&text, colour_of(v.state()))
    }

    fn plain(&self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(header.to_vec());
        match self.colours {
            Colours::On => table.enforce_styling(),
            Colours::Off => table.force_no_tty(),
        };
        table
    }

    fn table(&mut self, table: &Table) -> io::Result<()> {
        // Padding at the end of a line is of no use to anybody.
        for line in table.lines() {
            writeln!(self.out, "{}", line.trim_end())?;
        }
        self.out.flush()
    }

    fn json(&mut self, value: &Value) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        writeln!(self.out)?;
        self.out.flush()
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}
