//! What the command line prints for programs. Stable: within a version, fields are only
//! added. tests/golden/ holds one answer of each kind, and fails if one changes.

use rds_csi_proto::agent::{StatusReply, Transition, Volume, VolumeReply};
use serde_json::{Value, json};

use crate::session::record::state_name;

/// The version of the output.
pub(crate) const VERSION: u32 = 1;

/// `status` and `sessions`.
pub(super) fn status(reply: &StatusReply) -> Value {
    json!({
        "version": VERSION,
        "agentVersion": reply.agent_version,
        "bootId": reply.boot_id,
        "volumes": reply.volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}

/// `history`.
pub(super) fn history(transitions: &[Transition]) -> Value {
    let transitions: Vec<_> = transitions.iter().map(transition).collect();
    json!({ "version": VERSION, "transitions": transitions })
}

/// One line of `watch`.
pub(super) fn watched(t: &Transition) -> Value {
    let mut value = transition(t);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("version".into(), VERSION.into());
    }
    value
}

/// `reconnect`, `rescan`, and `fail` of one volume.
pub(super) fn done(reply: &VolumeReply) -> Value {
    json!({
        "version": VERSION,
        "message": reply.message,
        "volume": reply.volume.as_ref().map(volume),
    })
}

/// One volume of `fail --all`: what was done, or why not.
pub(super) struct Failed {
    pub(super) volume: String,
    pub(super) outcome: Result<String, String>,
}

/// `fail --all`.
pub(super) fn failed(results: &[Failed]) -> Value {
    let result = |r: &Failed| {
        let (key, text) = match &r.outcome {
            Ok(message) => ("message", message),
            Err(error) => ("error", error),
        };
        json!({ "volumeId": r.volume, key: text })
    };
    json!({ "version": VERSION, "results": results.iter().map(result).collect::<Vec<_>>() })
}

fn volume(v: &Volume) -> Value {
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

fn transition(t: &Transition) -> Value {
    json!({
        "volumeId": t.volume_id,
        "from": state_name(t.from()),
        "to": state_name(t.to()),
        "atUnixMs": t.at_unix_ms,
        "cause": t.cause,
    })
}
