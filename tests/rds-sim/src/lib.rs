//! A RouterOS stand-in whose exports are real kernel NVMe/TCP targets.
//!
//! It does what ROUTEROS.md says that the appliance does and nothing else; what nobody has verified is
//! a switch on the command line ([`config::Switches`]).
//!
//! A request comes in over [`rest`] or [`ssh`] (whose commands [`console`] understands), queues at the
//! [`desk`], is carried out by the [`appliance`] in terms of [`ros`], and what follows for exports is
//! done to a [`target`]. Tests stand beside that: [`control`] orders [`faults`], [`management`] makes
//! the listeners misbehave, [`journal`] counts requests.

pub mod appliance;
pub mod clock;
pub mod config;
pub mod console;
pub mod control;
pub mod desk;
pub mod faults;
pub mod files;
pub mod journal;
pub mod management;
pub mod rest;
pub mod ros;
pub mod run;
pub mod sim;
pub mod ssh;
pub mod target;
