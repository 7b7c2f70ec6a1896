//! RouterOS REST: JSON over HTTPS. `tls` has the certificate, `request` turns HTTP into a command,
//! `answer` turns what came of it into HTTP, `server` moves bytes.

pub mod answer;
pub mod request;
pub mod server;
pub mod tls;
