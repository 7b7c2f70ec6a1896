//! RouterOS over SSH: exec only, password and public keys. `keys` has the host key and who may
//! log in, `server` the protocol, `exec` runs one line of the console, `shell` is for those who type.

pub mod exec;
pub mod keys;
pub mod server;
mod shell;
