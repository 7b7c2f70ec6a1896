//! HTTPS: one connection at a time from TLS to commands and back.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Answer, Shape};
use super::request::{self, Parts};
use crate::appliance::core::Appliance;
use crate::clock;
use crate::desk::{self, Label, Outcome, Transport};
use crate::journal::{Record, micros};
use crate::management::Mode;
use crate::ros::policy::{self, Policy};
use crate::sim::Sim;

const MAX_BODY: usize = 1 << 20;
/// A client that does not finish its TLS handshake or headers gives the connection up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one connection until it ends.
pub async fn serve(sim: Arc<Sim>, tls: TlsAcceptor, stream: TcpStream) {
    let stream = match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return tracing::debug!("tls: {e}"),
        Err(_) => return,
    };
    let service = service_fn(move |request| handle(sim.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(e) = connection.await {
        tracing::debug!("connection: {e}");
    }
}

/// An error closes the connection without an answer.
async fn handle(sim: Arc<Sim>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    let body = to_bytes(Body::new(body), MAX_BODY).await.map_err(io::Error::other)?;
    let (method, path) = (head.method.as_str(), head.uri.path());
    let refuse = |answer: Answer| {
        sim.journal.write(&Record {
            time: clock::unix_ms(),
            transport: "rest",
            verb: method,
            path,
            item: None,
            status: answer.0,
            us: micros(arrived.elapsed()),
        });
        respond(answer)
    };
    let mode = sim.management.mode();
    if mode == Mode::Unauthorised || !authorised(&sim, &head.headers) {
        return refuse(answer::error(401, None));
    }
    if mode == Mode::WrongBody {
        return wrong_body(&sim.config.switches.boot_wrong_body);
    }
    let parts = Parts {
        method,
        path,
        query: head.uri.query().unwrap_or_default(),
        content_type: head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()),
        body: &body,
    };
    let (command, shape) = match request::parse(parts) {
        Ok(parsed) => parsed,
        Err(m) => return refuse(answer::malformed(m)),
    };
    let policies = &sim.config.policies;
    let needed = [Policy::Api, Policy::RestApi, command.policy()];
    if let Err(refusal) = policy::require(policies, &needed) {
        return refuse(answer::reply(Err(refusal), shape));
    }
    let label = Label {
        transport: Transport::Rest,
        verb: method.to_owned(),
        path: format!("/rest{}", command.path()),
        item: command.item(),
    };
    let cut = Duration::from_millis(sim.config.switches.rest_cut_ms);
    let work = move |appliance: &Appliance| match shape {
        Shape::Created | Shape::Patched => appliance.execute_and_show(&command),
        _ => appliance.execute(&command),
    };
    match desk::submit(&sim, label, Some(cut), work).await {
        Outcome::Done(result) => respond(answer::reply(result, shape)),
        Outcome::Cut => respond(answer::error(400, Some("Session closed".into()))),
        // Until the client gives up.
        Outcome::Hung => std::future::pending().await,
        Outcome::Lost => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
    }
}

fn authorised(sim: &Sim, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let decoded =
        given.and_then(|v| v.strip_prefix("Basic ")).and_then(|v| STANDARD.decode(v.trim()).ok());
    decoded.is_some_and(|d| d == format!("{}:{}", sim.config.user, sim.password).as_bytes())
}

fn respond((status, body): Answer) -> io::Result<Response<Body>> {
    let mut response =
        Response::new(body.map_or_else(Body::empty, |json| Body::from(json.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).map_err(io::Error::other)?;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn wrong_body(kind: &str) -> io::Result<Response<Body>> {
    let (content_type, body) = match kind {
        "html" => ("text/html", "<!doctype html><title>RouterOS</title>".to_owned()),
        "empty" => ("application/json", String::new()),
        "empty-list" => ("application/json", "[]".to_owned()),
        literal => ("application/json", literal.to_owned()),
    };
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}
