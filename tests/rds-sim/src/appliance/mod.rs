//! The appliance: its disks, files and pools, and what commands do to them.
//!
//! `command` says what can be asked, `core` does it, `pool` keeps files, `store` keeps disks over a
//! restart, `exports` brings the target in line with what the disks say, `reboot` takes it all down and up.

pub mod command;
pub mod core;
pub mod exports;
pub mod pool;
pub mod reboot;
pub mod store;
