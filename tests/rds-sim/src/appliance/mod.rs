//! The appliance: its disks, files and pools, and what commands do to them.
//!
//! `command` says what can be asked, `core` hands it out: to `disks`, `files`, `btrfs` and `copy`. `readings`
//! says how it is. `pool` keeps the files, `clone` copies them, `store` keeps disks over a restart, `power` knows what should
//! be exported, `exports` brings the target in line with what the disks say, `reboot` takes it all down
//! and up.

mod btrfs;
mod clone;
pub mod command;
mod copy;
pub mod core;
mod disks;
pub mod exports;
mod files;
pub mod pool;
mod power;
pub mod readings;
pub mod reboot;
pub mod seed;
pub mod store;
