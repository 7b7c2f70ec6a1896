//! The SSH transport: one command line a request, on one connection that is kept open.
//!
//! [`console`] writes the line, [`session`] carries it over a verified connection, [`answer`]
//! reads what was printed. As with REST it matters to know whether a request was sent: up to
//! the moment of `exec` nothing has happened and a new connection may be tried; after it, a
//! change without an answer is ambiguous.

pub mod answer;
pub mod console;
mod session;

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use self::console::{Sentinel, encode};
use self::session::{Failure, Session};
use super::disk::DISK_PROPS;
use super::error::{ApplianceError, Verdict};
use super::wire::{Request, Row, Target, Transport};
use crate::config::{RdsUrl, Scheme};
use crate::credentials::CredentialsDir;
use crate::credentials::ssh::SshCredentials;

/// From sending a change to the end of its answer; as long as over REST, so that calls take
/// as long over either.
const CHANGE_LIMIT: Duration = Duration::from_secs(50);
/// Reads are quick or not worth waiting for.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// A client of the console of one appliance.
pub struct Ssh {
    url: RdsUrl,
    credentials: CredentialsDir,
    open: Option<Open>,
}

struct Open {
    session: Session,
    /// Who logged in, and what the host was checked against: once that has changed, the
    /// connection is no longer the right one.
    with: SshCredentials,
}

impl Ssh {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(url: RdsUrl, credentials: CredentialsDir) -> Self {
        Self { url, credentials, open: None }
    }

    async fn exchange(&mut self, request: &Request) -> Result<Vec<Row>, ApplianceError> {
        let user = match self.url.scheme() {
            Scheme::Ssh { user } => user.as_deref(),
            Scheme::Https => None,
        };
        let credentials = self
            .credentials
            .load_ssh(user)
            .await
            .map_err(|e| ApplianceError::Credentials { cause: e.to_string() })?;
        let sentinel = Sentinel::random();
        let line = encode(request, &sentinel);
        // A kept connection may have been closed by the other side meanwhile.
        let kept = self.open.take().filter(|open| open.with == credentials);
        if let Some(open) = kept {
            match self.attempt(open, request, &line).await {
                Err(Failure::NotSent(_)) => {}
                result => return self.judge(request, &sentinel, &credentials, result),
            }
        }
        let session = match Session::open(&self.url, &credentials).await {
            Ok(session) => session,
            Err(failure) => {
                return self.judge(request, &sentinel, &credentials, Err(failure));
            }
        };
        let open = Open { session, with: credentials.clone() };
        let result = self.attempt(open, request, &line).await;
        self.judge(request, &sentinel, &credentials, result)
    }

    /// Runs the line; the connection is kept only if all went well on it.
    async fn attempt(
        &mut self,
        open: Open,
        request: &Request,
        line: &str,
    ) -> Result<Vec<u8>, Failure> {
        let limit = if request.changes() { CHANGE_LIMIT } else { READ_LIMIT };
        let output = open.session.exec(line, limit).await?;
        self.open = Some(open);
        Ok(output)
    }

    fn judge(
        &self,
        request: &Request,
        sentinel: &Sentinel,
        credentials: &SshCredentials,
        result: Result<Vec<u8>, Failure>,
    ) -> Result<Vec<Row>, ApplianceError> {
        let unauthorized = || ApplianceError::Unauthorized {
            host: self.url.to_string(),
            user: credentials.username.clone(),
            dir: self.credentials.path().display().to_string(),
        };
        let verdict = match result {
            Ok(output) => answer::read(&output, sentinel, !request.changes(), wanted(request)),
            Err(Failure::Refused) => Verdict::Unauthorized,
            Err(Failure::HostKey(cause)) => {
                return Err(ApplianceError::HostKeyInvalid {
                    host: self.url.to_string(),
                    cause,
                    dir: self.credentials.path().display().to_string(),
                });
            }
            Err(Failure::Lost(cause)) if request.changes() => {
                return Err(ApplianceError::Ambiguous { action: request.to_string(), cause });
            }
            Err(Failure::NotSent(cause) | Failure::Lost(cause)) => {
                return Err(ApplianceError::Unreachable { host: self.url.to_string(), cause });
            }
        };
        match (verdict, request) {
            // The line prints the item that it changed: nothing printed, nothing changed.
            (Verdict::Rows(rows), Request::Set { target: Target::Slot(_), .. })
                if rows.is_empty() =>
            {
                Err(ApplianceError::NoSuchItem { action: request.to_string() })
            }
            (verdict, _) => verdict.into_result(request, unauthorized),
        }
    }
}

/// Which properties of the rows are kept.
fn wanted(request: &Request) -> &'static [&'static str] {
    match request {
        Request::Print { proplist, .. } => proplist,
        _ => DISK_PROPS,
    }
}

impl Transport for Ssh {
    fn takes_several(&self) -> bool {
        true
    }

    fn call<'a>(
        &'a mut self,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Vec<Row>, ApplianceError>> {
        self.exchange(request).boxed()
    }
}
