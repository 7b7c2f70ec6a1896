//! The JSON of each command, from fixed input, beside what it was when programs began to
//! rely on it: tests/golden/. A difference is a broken promise, unless it only adds a field;
//! then write the file anew (`RDS_CSI_WRITE_GOLDEN=1`) and look at the change.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use rds_csi_proto::agent::{State, StatusReply, Transition, Volume, VolumeReply};
use serde_json::Value;

use super::json::Failed;
use super::output::{Format, Printer};
use super::style::Colours;
use crate::doctor::{Finding, report};

const NOW: i64 = 1_800_000_000_000;

fn live() -> Volume {
    Volume {
        volume_id: "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".into(),
        state: State::Live.into(),
        since_unix_ms: NOW - 5_000,
        reason: "the session is live".into(),
        device: "/dev/dm-0".into(),
        namespace: "nvme0n1".into(),
        controller: "nvme0".into(),
        nqn: "nqn.2000-02.com.mikrotik:pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".into(),
        host_nqn: "nqn.2014-08.org.nvmexpress:uuid:6f6b1a52-9b1c-4f0e-8b1a-0f3c9c1d2e4f".into(),
        portal: "10.0.0.2:4420".into(),
        size_bytes: 1 << 30,
        shielded: true,
        io_in_flight: 3,
        outages: 2,
        last_outage_ms: 12_340,
        staging_path: "/var/lib/kubelet/plugins/staging".into(),
        failing_io: false,
        filesystem: "ext4".into(),
        attempts: 0,
    }
}

fn blocked() -> Volume {
    Volume {
        volume_id: "pvc-00000000-0000-4000-8000-000000000001".into(),
        state: State::Blocked.into(),
        since_unix_ms: NOW - 7_200_000,
        reason: "another volume answers under its name".into(),
        failing_io: true,
        attempts: 7,
        shielded: true,
        ..Volume::default()
    }
}

fn reply() -> StatusReply {
    StatusReply {
        volumes: vec![live(), blocked()],
        agent_version: "0.1.0".into(),
        boot_id: "1f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".into(),
    }
}

fn transition() -> Transition {
    Transition {
        volume_id: live().volume_id,
        from: State::Live.into(),
        to: State::Degraded.into(),
        at_unix_ms: NOW,
        cause: "nvme0 is reconnecting".into(),
    }
}

fn printed(format: Format, print: impl FnOnce(&mut Printer<Vec<u8>>)) -> String {
    let mut printer = Printer { format, colours: Colours::Off, now_unix_ms: NOW, out: Vec::new() };
    print(&mut printer);
    String::from_utf8(printer.out).unwrap()
}

fn compare(name: &str, said: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("RDS_CSI_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, said).unwrap();
    }
    assert_eq!(said, std::fs::read_to_string(&path).unwrap(), "{name}");
}

fn json(name: &str, print: impl FnOnce(&mut Printer<Vec<u8>>)) {
    let said = printed(Format::Json, print);
    let value: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(value["version"], 1, "{name}");
    compare(name, &said);
}

#[test]
fn json_of_each_command() {
    json("status.json", |p| p.status(&reply()).unwrap());
    json("sessions.json", |p| p.sessions(&reply()).unwrap());
    json("history.json", |p| p.history(&[transition()]).unwrap());
    json("watch.json", |p| p.watched(&transition()).unwrap());
    // reconnect, rescan and fail answer alike.
    let done = VolumeReply { volume: Some(live()), message: "it was Lost; trying now".into() };
    json("reconnect.json", |p| p.done(&done).unwrap());
    let results = [
        Failed { volume: live().volume_id, outcome: Ok("done".into()) },
        Failed { volume: blocked().volume_id, outcome: Err("no such device".into()) },
    ];
    json("fail-all.json", |p| p.failed(&results).unwrap());
}

#[test]
fn json_of_the_doctor() {
    let findings = [
        Finding::ok("udev.daemon", "udevd answers"),
        Finding::warning("clock", "not synchronized", "timedatectl set-ntp true"),
        Finding::problem("portal.10.0.0.2:4420", "not reached within 1s", "ping 10.0.0.2"),
        Finding::unknown("volumes", "without an agent there is nobody to ask"),
    ];
    let value = report::json(&findings, super::json::VERSION);
    compare("doctor.json", &format!("{}\n", serde_json::to_string_pretty(&value).unwrap()));
}

#[test]
fn tables_are_for_people_and_stay_readable() {
    compare("status.txt", &printed(Format::Table, |p| p.status(&reply()).unwrap()));
    compare("status-wide.txt", &printed(Format::Wide, |p| p.status(&reply()).unwrap()));
    compare("sessions.txt", &printed(Format::Table, |p| p.sessions(&reply()).unwrap()));
}

#[test]
fn states_are_coloured_where_colours_are_wanted() {
    let mut printer =
        Printer { format: Format::Table, colours: Colours::On, now_unix_ms: NOW, out: Vec::new() };
    printer.status(&reply()).unwrap();
    printer.watched(&transition()).unwrap();
    let said = String::from_utf8(printer.out).unwrap();
    assert!(said.contains("\x1b[93mDegraded\x1b[0m"), "{said:?}");
    // In tables the terminal library colours, which obeys this variable by itself.
    if std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) {
        assert!(said.contains("\x1b[38;5;10m Live"), "{said:?}");
        assert!(said.contains("\x1b[38;5;9m Blocked"), "{said:?}");
    }
}
