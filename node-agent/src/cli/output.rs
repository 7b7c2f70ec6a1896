//! What the command line prints: tables for people, stable JSON for programs.

use comfy_table::{Table, presets};
use rds_csi_proto::agent::{State, StatusReply, Transition, Volume, VolumeReply};
use serde_json::{Value, json};

use crate::journal::now_unix_ms;
use crate::session::record::state_name;

use super::Format;

/// The version of the JSON output; fields are only added within it.
const JSON_VERSION: u32 = 1;

/// Prints in one format.
pub(super) struct Printer {
    pub(super) format: Format,
}

impl Printer {
    pub(super) fn status(&self, reply: &StatusReply) {
        if self.format == Format::Json {
            let volumes: Vec<_> = reply.volumes.iter().map(volume_json).collect();
            print_json(&json!({
                "version": JSON_VERSION,
                "agentVersion": reply.agent_version,
                "bootId": reply.boot_id,
                "volumes": volumes,
            }));
            return;
        }
        let mut header =
            vec!["VOLUME", "STATE", "SINCE", "DEVICE", "PATH", "WAITING", "OUTAGES", "LAST OUTAGE"];
        let wide = self.format == Format::Wide;
        if wide {
            header.extend(["SIZE", "FILESYSTEM", "STAGED AT", "REASON"]);
        }
        let mut table = plain(&header);
        for v in &reply.volumes {
            let live = v.state() == State::Live;
            let mut row = vec![
                v.volume_id.clone(),
                state_text(v),
                ago(v.since_unix_ms),
                dash(&v.device),
                dash(&v.namespace),
                // While a path is there, requests in flight are simply at work.
                if live { "0".into() } else { v.io_in_flight.to_string() },
                v.outages.to_string(),
                if v.outages == 0 { "-".into() } else { span(v.last_outage_ms) },
            ];
            if wide {
                row.extend([
                    v.size_bytes.to_string(),
                    dash(&v.filesystem),
                    dash(&v.staging_path),
                    v.reason.clone(),
                ]);
            }
            table.add_row(row);
        }
        println!("{table}");
        if !wide {
            for v in reply.volumes.iter().filter(|v| v.state() != State::Live) {
                println!("{}: {}", v.volume_id, v.reason);
            }
        }
    }

    pub(super) fn sessions(&self, reply: &StatusReply) {
        if self.format == Format::Json {
            self.status(reply);
            return;
        }
        let mut table =
            plain(&["VOLUME", "STATE", "CONTROLLER", "PORTAL", "SUBSYSTEM", "HOST NQN"]);
        for v in &reply.volumes {
            table.add_row(vec![
                v.volume_id.clone(),
                state_text(v),
                dash(&v.controller),
                v.portal.clone(),
                v.nqn.clone(),
                v.host_nqn.clone(),
            ]);
        }
        println!("{table}");
    }

    pub(super) fn transitions(&self, transitions: &[Transition]) {
        if self.format == Format::Json {
            let entries: Vec<_> = transitions.iter().map(transition_json).collect();
            print_json(&json!({ "version": JSON_VERSION, "transitions": entries }));
            return;
        }
        let mut table = plain(&["AGO", "FROM", "TO", "CAUSE"]);
        for t in transitions {
            table.add_row(vec![
                ago(t.at_unix_ms),
                state_name(t.from()).to_owned(),
                state_name(t.to()).to_owned(),
                t.cause.clone(),
            ]);
        }
        println!("{table}");
    }

    /// One line a transition: this is a stream.
    pub(super) fn transition(&self, t: &Transition) {
        if self.format == Format::Json {
            println!("{}", transition_json(t));
        } else {
            println!(
                "{} {} -> {}: {}",
                t.volume_id,
                state_name(t.from()),
                state_name(t.to()),
                t.cause
            );
        }
    }

    pub(super) fn done(&self, reply: &VolumeReply) {
        if self.format == Format::Json {
            let volume = reply.volume.as_ref().map(volume_json);
            print_json(
                &json!({ "version": JSON_VERSION, "message": reply.message, "volume": volume }),
            );
        } else {
            println!("{}", reply.message);
        }
    }
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.to_vec());
    table
}

fn print_json(value: &Value) {
    println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

fn state_text(v: &Volume) -> String {
    let name = state_name(v.state());
    if v.failing_io { format!("{name} (failing I/O)") } else { name.to_owned() }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

fn ago(at_unix_ms: i64) -> String {
    span(u64::try_from(now_unix_ms() - at_unix_ms).unwrap_or(0))
}

/// `450 ms`, `12 s`, `5 min`, `3 h`, `2 d`
fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

fn volume_json(v: &Volume) -> Value {
    json!({
        "volumeId": v.volume_id,
        "state": state_name(v.state()),
        "sinceUnixMs": v.since_unix_ms,
        "reason": v.reason,
        "device": v.device,
        "namespace": v.namespace,
        "controller": v.controller,
        "nqn": v.nqn,
        "hostNqn": v.host_nqn,
        "portal": v.portal,
        "sizeBytes": v.size_bytes,
        "shielded": v.shielded,
        "ioInFlight": v.io_in_flight,
        "failingIo": v.failing_io,
        "outages": v.outages,
        "lastOutageMs": v.last_outage_ms,
        "attempts": v.attempts,
        "stagingPath": v.staging_path,
        "filesystem": v.filesystem,
    })
}

fn transition_json(t: &Transition) -> Value {
    json!({
        "volumeId": t.volume_id,
        "from": state_name(t.from()),
        "to": state_name(t.to()),
        "atUnixMs": t.at_unix_ms,
        "cause": t.cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_true() {
        let said: Vec<_> =
            [0, 999, 1_500, 119_999, 120_000, 7_200_000, 172_800_000].map(span).into();
        assert_eq!(said, ["0 ms", "999 ms", "1.5 s", "120.0 s", "2 min", "2 h", "2 d"]);
    }
}
