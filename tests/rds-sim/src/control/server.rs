//! `POST /` with a [`ControlCommand`] as JSON; 200 with a result, or 400 with `{"error": ...}`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::command::ControlCommand;
use super::perform::perform;
use crate::sim::Sim;

/// Binds the socket; one that a killed run left is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}

pub async fn serve(sim: Arc<Sim>, listener: UnixListener) -> io::Result<()> {
    let router = Router::new().route("/", post(answer)).with_state(sim);
    axum::serve(listener, router).await
}

async fn answer(
    State(sim): State<Arc<Sim>>,
    Json(command): Json<ControlCommand>,
) -> (StatusCode, Json<Value>) {
    // In a task of its own: a caller that goes away does not leave an export half toggled.
    match tokio::spawn(async move { perform(&sim, command).await }).await {
        Ok(Ok(value)) => (StatusCode::OK, Json(value)),
        Ok(Err(error)) => (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": e.to_string() }))),
    }
}
