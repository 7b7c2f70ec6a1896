//! What tests and people may order; the same type is the `ctl` command line and its JSON.

use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drop {
    /// Nobody listens.
    Refuse,
    /// Accepted, then RST.
    Reset,
    /// Accepted, then FIN.
    Close,
    /// Accepted and never answered.
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Portal {
    /// Answers even when nothing is exported, as an appliance with other volumes does.
    Open,
    /// As nvmet does: listens while something is exported.
    Auto,
}

#[derive(Debug, Clone, PartialEq, Subcommand, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum ControlCommand {
    /// All disks, with what the target has of them.
    List,
    /// Counts of management requests by transport, verb and path.
    Stats {
        /// Start from nothing again.
        #[arg(long)]
        #[serde(default)]
        reset: bool,
    },
    /// Faults in force, management mode, reboot under way.
    Status,
    /// Refuse matching requests, such as `reject /disk/add --times 2 --detail "failure: busy"`.
    Reject {
        /// Part of `VERB PATH ITEM`, such as `POST /rest/disk/add vm-1` or `exec /disk/add`; `*` stands for anything.
        pattern: String,
        #[arg(long, default_value_t = 1)]
        #[serde(default = "once")]
        times: u32,
        #[arg(long, default_value_t = 400)]
        #[serde(default = "bad_request")]
        status: u16,
        #[arg(long, default_value = "failure: rejected by a test")]
        #[serde(default = "rejected")]
        detail: String,
    },
    /// Delay matching requests.
    Delay {
        ms: u64,
        #[arg(long, default_value = "")]
        #[serde(default)]
        pattern: String,
        /// Default: until `clear`.
        #[arg(long)]
        #[serde(default)]
        times: Option<u32>,
    },
    /// Carry out matching requests, then close the connection without an answer.
    LoseAnswer {
        #[arg(default_value = "")]
        #[serde(default)]
        pattern: String,
        #[arg(long, default_value_t = 1)]
        #[serde(default = "once")]
        times: u32,
    },
    /// Carry out matching requests and never answer, on a connection that stays open.
    Hang {
        #[arg(default_value = "")]
        #[serde(default)]
        pattern: String,
        #[arg(long, default_value_t = 1)]
        #[serde(default = "once")]
        times: u32,
    },
    /// Make many disks over sparse files at once; `{n}` and `{uuid}` differ for each.
    Seed {
        count: u32,
        #[arg(long, default_value = "pvc-{uuid}")]
        #[serde(default = "seed_slot")]
        slot: String,
        #[arg(long, default_value = "/raid10/{uuid}.img")]
        #[serde(default = "seed_path")]
        file_path: String,
        #[arg(long, default_value = "")]
        #[serde(default)]
        comment: String,
        #[arg(long, default_value_t = 1 << 30)]
        #[serde(default = "gib")]
        bytes: u64,
    },
    /// Change a reading: `health/fan1-speed`, `resource/cpu-load`, `raid/raid10`,
    /// `traffic/raid10/read-rate`, `disk/nvme1/temperature`. Without a value there is none.
    Reading { name: String, value: Option<String> },
    /// Forget reject, delay, hang and lose-answer; management answers again.
    Clear,
    /// Make management unreachable.
    DropConnections {
        #[arg(value_enum)]
        mode: Drop,
        /// Default: until `clear`.
        #[arg(long = "for")]
        #[serde(default, rename = "for")]
        seconds: Option<f64>,
    },
    /// Management accepts and never answers, for a while.
    HangMgmt { seconds: f64 },
    /// Down and up again; see `appliance/reboot.rs` for the order of things.
    Reboot {
        #[arg(long)]
        down: f64,
        #[arg(long, default_value_t = 0.0)]
        #[serde(default)]
        export_delay: f64,
        #[arg(long, default_value_t = 0.0)]
        #[serde(default)]
        stagger: f64,
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
        #[serde(default = "yes")]
        portal_first: bool,
        /// No FIN and no RST: the portal's packets are dropped (nft) while it is down.
        #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
        #[serde(default)]
        silent: bool,
        /// Answer when it is all over.
        #[arg(long)]
        #[serde(default)]
        wait: bool,
    },
    /// Off and on again, with a new identity.
    ExportToggle {
        slot: String,
        #[arg(long, default_value_t = 0.0)]
        #[serde(default)]
        off_for: f64,
    },
    /// `nvme-tcp-export=no`, as by an administrator; answers when it is off.
    ExportOff { slot: String },
    /// `nvme-tcp-export=yes`; answers when it is on.
    ExportOn { slot: String },
    /// Drop all packets of the portal (nft).
    DropPackets {
        /// Default: until `heal`.
        seconds: Option<f64>,
    },
    /// The portal refuses connections, with RST, and has none left (nft, ss -K).
    RefuseConnections {
        /// Default: until `heal`.
        seconds: Option<f64>,
    },
    /// Let packets pass again.
    Heal,
    /// Abort the portal's connections (ss -K).
    ResetConnections,
    /// Whether the portal listens with nothing exported.
    Portal {
        #[arg(value_enum)]
        mode: Portal,
    },
    /// Set file-size, in bytes; hosts see it after a toggle.
    Grow { slot: String, bytes: u64 },
}

fn once() -> u32 {
    1
}

fn seed_slot() -> String {
    "pvc-{uuid}".into()
}

fn seed_path() -> String {
    "/raid10/{uuid}.img".into()
}

fn gib() -> u64 {
    1 << 30
}

fn bad_request() -> u16 {
    400
}

fn rejected() -> String {
    "failure: rejected by a test".into()
}

fn yes() -> bool {
    true
}
