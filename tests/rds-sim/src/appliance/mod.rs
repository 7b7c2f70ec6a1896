//! The appliance: its disks, files and pools, and what commands do to them.
//!
//! `command` says what can be asked, `core` does it to disks and `files` to files, `pool` keeps the
//! files, `store` keeps disks over a restart, `power` knows what should be exported, `exports` brings the target in line with what the disks say, `reboot` takes it all down and up.

pub mod command;
pub mod core;
pub mod exports;
mod files;
pub mod pool;
mod power;
pub mod reboot;
pub mod store;
