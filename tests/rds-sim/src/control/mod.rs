//! The control interface of tests: JSON commands over HTTP on a unix socket.

pub mod client;
pub mod command;
pub mod perform;
pub mod server;
