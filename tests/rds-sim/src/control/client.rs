//! `rds-sim ctl`: one command, its JSON on stdout.

use anyhow::{Context, anyhow};
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::config::Ctl;

/// Sends the command; an error is what the simulator said, or why it could not be asked.
pub async fn run(ctl: Ctl) -> anyhow::Result<Value> {
    let path = ctl.control_addr.unwrap_or_else(|| ctl.state_dir.join("control.sock"));
    let stream = UnixStream::connect(&path)
        .await
        .with_context(|| format!("no rds-sim at {}", path.display()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post("/")
        .header(header::HOST, "rds-sim")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(serde_json::to_vec(&ctl.command)?))?;
    let response = sender.send_request(request).await?;
    let ok = response.status().is_success();
    let bytes = to_bytes(Body::new(response.into_body()), usize::MAX).await?;
    connection.abort();
    let value: Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("answer of rds-sim: {}", String::from_utf8_lossy(&bytes)))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) if !ok => Err(anyhow!("{error}")),
        _ => Ok(value),
    }
}
