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
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::Metrics;
use super::health::Health;

/// Pause before the address is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// For the requests that are under way at the end: they wait for nothing.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    health: Health,
}

/// Serves until `end`. An address that cannot be had is tried again: volumes need the agent
/// more than anybody needs its metrics.
///
/// A process is gone only when the kernel lets go of its last thread, and one that writes to an
/// appliance that does not answer is held for many seconds. So the address is given back first:
/// else the kernel would go on to take connections that nobody answers.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    health: Health,
    end: CancellationToken,
) {
    let work = serve_for_ever(address, router(metrics, health), &end);
    tokio::select! {
        () = work => {}
        () = async { end.cancelled().await; tokio::time::sleep(LAST_ANSWERS).await } => {}
    }
}

async fn serve_for_ever(address: SocketAddr, router: Router, end: &CancellationToken) {
    while !end.is_cancelled() {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "serving metrics");
                let served = axum::serve(listener, router.clone())
                    .with_graceful_shutdown(end.clone().cancelled_owned());
                match served.await {
                    Err(error) => error!(%error, %address, "metrics are not served"),
                    Ok(()) if end.is_cancelled() => return,
                    Ok(()) => {}
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

    /// Each connection is answered or refused, also while the process still has something to end.
    #[tokio::test]
    async fn an_end_answers_what_it_took_and_takes_no_more() {
        let spare = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = spare.local_addr().unwrap();
        drop(spare);
        let (metrics, health) = (Arc::new(Metrics::new().unwrap()), Health::new(Board::default()));
        let end = CancellationToken::new();
        let served = tokio::spawn(serve(address, metrics, health, end.clone()));
        // Kept open, as Prometheus does.
        let mut idle = loop {
            match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 200"));
        end.cancel();
        tokio::time::timeout(2 * LAST_ANSWERS, served).await.unwrap().unwrap();
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
        let refused = tokio::net::TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
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
