//! RouterOS over SSH: exec only, password and public keys. `keys` has the host key and who may
//! log in, `server` the protocol, `exec` runs one line of the console.

pub mod exec;
pub mod keys;
pub mod server;
