//! `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts and stops the
//! agent. It serves from the first moment on, so that a long start can be told from a hang.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::{error, info};

use super::Metrics;
use super::health::Health;

/// Pause before the address is tried again.
const RETRY: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    health: Health,
}

/// Serves for ever. An address that cannot be had is tried again: volumes need the agent
/// more than anybody needs its metrics.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, health: Health) {
    let router = router(metrics, health);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "serving metrics");
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    error!(%error, %address, "metrics are not served");
                }
            }
            Err(error) => {
                error!(%error, %address, "metrics are not served; is the address in use, or of another host?");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn router(metrics: Arc<Metrics>, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route(
            "/healthz",
            get(|State(s): State<Shown>| async move { told(s.health.facts().alive()) }),
        )
        .route(
            "/readyz",
            get(|State(s): State<Shown>| async move { told(s.health.facts().ready()) }),
        )
        .with_state(Shown { metrics, health })
}

async fn scrape(State(shown): State<Shown>) -> Response {
    match shown.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn told(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::session::beat::Board;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_agent_that_starts_is_alive_and_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let board = Board::default();
        let router = router(Arc::new(Metrics::new().unwrap()), Health::new(board.clone()));
        tokio::spawn(axum::serve(listener, router).into_future());
        let metrics = get(address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("rds_csi_agent_outages_total 0"), "{metrics}");
        let alive = get(address, "/healthz").await;
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        let ready = get(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
        assert!(ready.ends_with("the journal is being opened\n"), "{ready}");
    }
}
