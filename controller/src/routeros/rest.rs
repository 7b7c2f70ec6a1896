//! The REST transport: JSON over HTTPS, on one connection that is kept open.
//!
//! What matters here is to know whether a request was sent. One that was not can be sent
//! again; a change that was, and got no answer, is ambiguous: it may be running on the
//! appliance still, so only reading back tells.

use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::error::{ApplianceError, Verdict, read_answer};
use super::tls;
use super::wire::{Property, Request, Row, Transport};
use crate::config::RdsUrl;
use crate::credentials::{Credentials, CredentialsDir, TrustMaterial};

/// TCP and TLS together. A management network that needs longer is broken.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// From sending to the end of the answer. RouterOS cuts a request at 60 s; below that, so
/// that the cause is known to be ours.
const REQUEST_LIMIT: Duration = Duration::from_secs(50);
/// Reads are quick or not worth waiting for.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// No answer is larger: 10,000 disks are about 1 MB.
const BODY_LIMIT: usize = 32 << 20;

/// A client of the REST service of one appliance.
pub struct Rest {
    url: RdsUrl,
    credentials: CredentialsDir,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Body>,
    /// What the server was checked against: changed material means a new connection.
    trust: TrustMaterial,
}

/// Whether a failed attempt may be repeated here and now.
enum Failure {
    /// The request did not leave this host.
    NotSent,
    Final(ApplianceError),
}

impl Rest {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(url: RdsUrl, credentials: CredentialsDir) -> Self {
        Self { url, credentials, open: None }
    }

    /// A change is asked for with its outcome as the answer; where that is refused, once more
    /// as a command, to hear why. It sets the same values: should it be accepted now, nothing
    /// else has happened than what was wanted.
    async fn ask(&mut self, request: &Request) -> Result<Vec<Row>, ApplianceError> {
        if !matches!(request, Request::Set { .. }) {
            return self.exchange(request, Answer::Reason).await;
        }
        match self.exchange(request, Answer::Item).await {
            Err(e) if e.is_refusal() || matches!(e, ApplianceError::NoSuchItem { .. }) => {
                tracing::debug!(%request, "asking for the reason: {e}");
                self.exchange(request, Answer::Reason).await
            }
            result => result,
        }
    }

    async fn exchange(
        &mut self,
        request: &Request,
        answer: Answer,
    ) -> Result<Vec<Row>, ApplianceError> {
        let credentials = self
            .credentials
            .load()
            .await
            .map_err(|e| ApplianceError::Credentials { cause: e.to_string() })?;
        let limit = if request.changes() { REQUEST_LIMIT } else { READ_LIMIT };
        let deadline = Instant::now() + limit;
        // A kept connection may have been closed by the other side meanwhile.
        let kept = self.open.take().filter(|open| open.trust == credentials.trust);
        if let Some(open) = kept {
            match self.attempt(open, (request, answer), &credentials, deadline).await {
                Err(Failure::NotSent) => {}
                Err(Failure::Final(error)) => return Err(error),
                Ok(rows) => return Ok(rows),
            }
        }
        let open = self.connect(&credentials).await?;
        match self.attempt(open, (request, answer), &credentials, deadline).await {
            Ok(rows) => Ok(rows),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::NotSent) => Err(self.unreachable("the connection was closed at once")),
        }
    }

    async fn connect(&self, credentials: &Credentials) -> Result<Open, ApplianceError> {
        let config = tls::client_config(&credentials.trust)
            .map_err(|cause| ApplianceError::Credentials { cause })?;
        let name = ServerName::try_from(self.url.host().to_owned())
            .map_err(|e| self.unreachable(&e.to_string()))?;
        let handshake = async {
            let tcp = TcpStream::connect((self.url.host(), self.url.port())).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(config).connect(name, tcp).await
        };
        let stream = match timeout(CONNECT_LIMIT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                return Err(match tls::certificate_problem(&e) {
                    Some(cause) => ApplianceError::CertificateInvalid {
                        host: self.url.to_string(),
                        cause,
                        dir: self.credentials.path().display().to_string(),
                    },
                    None => self.unreachable(&e.to_string()),
                });
            }
            Err(_) => {
                let seconds = CONNECT_LIMIT.as_secs();
                return Err(self.unreachable(&format!("no connection within {seconds} s")));
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.unreachable(&e.to_string()))?;
        // Ends when the sender is dropped or the other side closes.
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("connection to the RDS ended: {e}");
            }
        });
        Ok(Open { sender, trust: credentials.trust.clone() })
    }

    async fn attempt(
        &mut self,
        mut open: Open,
        (request, answer): (&Request, Answer),
        credentials: &Credentials,
        deadline: Instant,
    ) -> Result<Vec<Row>, Failure> {
        if !matches!(timeout_at(deadline, open.sender.ready()).await, Ok(Ok(()))) {
            return Err(Failure::NotSent);
        }
        let message = self.encode(request, answer, credentials).map_err(Failure::Final)?;
        let lost = |cause: &str| Failure::Final(self.lost(request, cause));
        let response = match timeout_at(deadline, open.sender.try_send_request(message)).await {
            Err(_) => return Err(lost("no answer in time")),
            Ok(Err(mut e)) => {
                // Handed back: it never left.
                if e.take_message().is_some() {
                    return Err(Failure::NotSent);
                }
                return Err(lost(&e.into_error().to_string()));
            }
            Ok(Ok(response)) => response,
        };
        let (status, body) = match timeout_at(deadline, read(response)).await {
            Err(_) => return Err(lost("the answer stopped in the middle")),
            Ok(Err(cause)) => return Err(lost(&cause)),
            Ok(Ok(answer)) => answer,
        };
        self.open = Some(open);
        let verdict = read_answer(status, &body, !request.changes());
        self.judge(request, credentials, verdict).map_err(Failure::Final)
    }

    /// The HTTP message. Properties come from validated types and go through a JSON
    /// encoder or percent-encoding, so no value can become anything else than a value.
    fn encode(
        &self,
        request: &Request,
        answer: Answer,
        credentials: &Credentials,
    ) -> Result<hyper::Request<Body>, ApplianceError> {
        let user = format!("{}:{}", credentials.username, credentials.password.reveal());
        let mut basic = HeaderValue::try_from(format!("Basic {}", BASE64.encode(user)))
            .map_err(|e| self.unreachable(&e.to_string()))?;
        basic.set_sensitive(true);
        let (method, path, body) = encode(request, answer).ok_or_else(|| {
            let detail = "the REST service takes one change a request".into();
            ApplianceError::InvalidValue { action: request.to_string(), detail }
        })?;
        let message = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.url.authority())
            .header(AUTHORIZATION, basic)
            .header(ACCEPT, "application/json");
        let message = match body {
            None => message.body(Body::empty()),
            Some(json) => message.header(CONTENT_TYPE, "application/json").body(Body::from(json)),
        };
        message.map_err(|e| self.unreachable(&e.to_string()))
    }

    fn judge(
        &self,
        request: &Request,
        credentials: &Credentials,
        verdict: Verdict,
    ) -> Result<Vec<Row>, ApplianceError> {
        verdict.into_result(request, || ApplianceError::Unauthorized {
            host: self.url.to_string(),
            user: credentials.username.clone(),
            dir: self.credentials.path().display().to_string(),
        })
    }

    fn lost(&self, request: &Request, cause: &str) -> ApplianceError {
        if request.changes() {
            ApplianceError::Ambiguous { action: request.to_string(), cause: cause.to_owned() }
        } else {
            self.unreachable(cause)
        }
    }

    fn unreachable(&self, cause: &str) -> ApplianceError {
        ApplianceError::Unreachable { host: self.url.to_string(), cause: cause.to_owned() }
    }
}

impl Transport for Rest {
    fn call<'a>(
        &'a mut self,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Vec<Row>, ApplianceError>> {
        self.ask(request).boxed()
    }
}

async fn read(response: Response<Incoming>) -> Result<(u16, Vec<u8>), String> {
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(Body::new(response.into_body()), BODY_LIMIT)
        .await
        .map_err(|e| e.to_string())?;
    Ok((status, body.to_vec()))
}

/// How a change is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// With the item as it is afterwards. A refusal comes without its reason.
    Item,
    /// With nothing, or the reason of a refusal.
    Reason,
}

/// Method, path and JSON body; `None` for what no single request can carry. POST for changes:
/// the documented answer of PATCH is the changed item, but PATCH, PUT and DELETE hide the
/// reason of a refusal (MikroTik's manual, "REST API").
fn encode(request: &Request, answer: Answer) -> Option<(Method, String, Option<String>)> {
    let object = |pairs: Vec<(String, String)>| {
        let map = pairs.into_iter().map(|(k, v)| (k, serde_json::Value::String(v))).collect();
        Some(serde_json::Value::Object(map).to_string())
    };
    let pairs = |properties: &[Property]| -> Vec<(String, String)> {
        properties.iter().map(|p| (p.name().to_owned(), p.value())).collect()
    };
    Some(match request {
        Request::Print { menu, filter, proplist } => {
            let filter = filter
                .as_ref()
                .map(|p| format!("{}={}&", p.name(), percent(&p.value())))
                .unwrap_or_default();
            let path = format!("/rest/{}?{filter}.proplist={}", menu.path(), proplist.join(","));
            (Method::GET, path, None)
        }
        Request::Add { menu, properties } => {
            (Method::POST, format!("/rest/{}/add", menu.path()), object(pairs(properties)))
        }
        Request::Set { menu, target, properties } if answer == Answer::Item => {
            let path = format!("/rest/{}/{}", menu.path(), percent(&target.to_string()));
            (Method::PATCH, path, object(pairs(properties)))
        }
        Request::Set { menu, target, properties } => {
            let mut all = pairs(properties);
            all.push((".id".into(), target.to_string()));
            (Method::POST, format!("/rest/{}/set", menu.path()), object(all))
        }
        Request::Remove { menu, target } => {
            let id = vec![(".id".into(), target.to_string())];
            (Method::POST, format!("/rest/{}/remove", menu.path()), object(id))
        }
        Request::Discard { .. } => return None,
        Request::Copy { from, to, part } => {
            let pairs = [
                ("src", from.to_string()),
                ("dst", to.to_string()),
                ("src-offset", part.offset.to_string()),
                ("dst-offset", part.offset.to_string()),
                ("size", part.size.to_string()),
            ];
            let pairs = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            (Method::POST, format!("/rest/{}", request.name()), object(pairs))
        }
    })
}

/// RFC 3986 percent-encoding of a query value. `*` and `/` stay: RouterOS wants them raw.
fn percent(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~*/:".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::wire::{Menu, Switch, Target};
    use super::*;

    #[test]
    fn requests_look_as_documented() {
        let id: rds_csi_proto::ids::VolumeId =
            "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap();
        let print = Request::Print {
            menu: Menu::Disk,
            filter: Some(Property::Slot((&id).into())),
            proplist: &[".id", "slot"],
        };
        let (method, path, body) = encode(&print, Answer::Reason).unwrap();
        assert_eq!((method, body), (Method::GET, None));
        assert_eq!(path, format!("/rest/disk?slot={id}&.proplist=.id,slot"));
        let file = Request::Print {
            menu: Menu::File,
            filter: Some(Property::FileName("/raid10/v/a.img".parse().unwrap())),
            proplist: &[".id"],
        };
        assert_eq!(
            encode(&file, Answer::Reason).unwrap().1,
            "/rest/file?name=raid10/v/a.img&.proplist=.id"
        );
        let set = Request::Set {
            menu: Menu::Disk,
            target: Target::Slot((&id).into()),
            properties: vec![Property::Export(Switch::On), Property::FileSize(1 << 40)],
        };
        let (method, path, body) = encode(&set, Answer::Item).unwrap();
        assert_eq!((method, path), (Method::PATCH, format!("/rest/disk/{id}")));
        let body: serde_json::Value = serde_json::from_str(&body.unwrap()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"nvme-tcp-export": "yes", "file-size": "1099511627776"})
        );
        let (method, path, body) = encode(&set, Answer::Reason).unwrap();
        assert_eq!((method, path.as_str()), (Method::POST, "/rest/disk/set"));
        let body: serde_json::Value = serde_json::from_str(&body.unwrap()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({".id": id.as_str(), "nvme-tcp-export": "yes", "file-size": "1099511627776"})
        );
    }

    #[test]
    fn nothing_escapes_a_query_value() {
        assert_eq!(percent("a&b=c #?%+\u{e9}"), "a%26b%3Dc%20%23%3F%25%2B%C3%A9");
    }
}
