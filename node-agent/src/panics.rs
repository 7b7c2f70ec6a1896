//! What a panic may do: end the one request in which it happened.
//!
//! - In a request: [`CatchPanics`] answers `INTERNAL`; the connection, which is the shim's
//!   for all volumes, and every other request on it go on. Locks are freed by unwinding, and
//!   the journal tells a retry what was begun.
//! - On a thread that was started for one blocking call: the caller gets an error
//!   ([`crate::kernel::blocking`]).
//! - On a thread without which no session is kept: the process ends. systemd starts it again
//!   at once, and it takes over what is there; a keeper that sees nothing any more would go on
//!   looking healthy.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};
use tracing::error;

/// Threads that see for all volumes.
const ESSENTIAL: [&str; 3] = ["sweeper", "udev", "history"];

/// Tells of each panic in the log, and ends the process for those that it cannot go on after.
pub(crate) fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        error!(thread, location, %backtrace, "panicked: {}", message(panic));
        if ESSENTIAL.contains(&thread) {
            error!(
                thread,
                "no session is kept without this thread; the agent ends, to be started again"
            );
            std::process::abort();
        }
    }));
}

fn message<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// A layer over the services, which turns panics into answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CatchPanics;

impl<S> Layer<S> for CatchPanics {
    type Service = Catching<S>;
    fn layer(&self, inner: S) -> Catching<S> {
        Catching { inner }
    }
}

/// See [`CatchPanics`].
#[derive(Debug, Clone)]
pub(crate) struct Catching<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Catching<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = request.uri().path().to_owned();
        // Unwind-safe: nothing of the call is looked at after its panic, and what it shares
        // with others is behind locks that its unwinding releases.
        let called = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let answer = match called {
                Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            answer.unwrap_or_else(|_| {
                let text = format!("{method} panicked; the agent's log tells where");
                Ok(Status::internal(text).into_http())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::convert::Infallible;

    use rds_csi_proto::ids::VolumeId;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::node::locks::Locks;

    async fn ask(path: &str, locks: &Locks) -> Response<Body> {
        let locks = locks.clone();
        let service = service_fn(move |request: Request<()>| {
            let operation = locks.begin(&VolumeId::from_request_name("a"), "NodeStageVolume");
            let volume = operation.as_ref().unwrap().volume().clone();
            async move {
                let _held = operation;
                tokio::task::yield_now().await;
                assert!(request.uri().path() != "/panic", "working on {volume}");
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let request = Request::builder().uri(path).body(()).unwrap();
        CatchPanics.layer(service).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_leaves_no_lock() {
        let locks = Locks::default();
        let answer = ask("/panic", &locks).await;
        assert_eq!(answer.headers()["grpc-status"], "13");
        // The lock is free, or this would panic, too.
        let answer = ask("/fine", &locks).await;
        assert_eq!(answer.headers().get("grpc-status"), None);
    }
}
