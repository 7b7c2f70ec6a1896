//! Counts the calls on the socket, whatever becomes of them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::Metrics;
use super::labels::rpc_of;

/// Wraps the services of the socket.
#[derive(Clone)]
pub struct CountCalls(pub Arc<Metrics>);

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: Arc::clone(&self.0) }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

/// One call. A caller that goes away drops it unanswered, and is counted too.
struct Call {
    metrics: Arc<Metrics>,
    rpc: &'static str,
    began: Instant,
    code: Code,
}

impl Call {
    /// Takes the whole call, so that its end is counted when the answer is there and not
    /// before.
    async fn follow<R, E>(
        mut self,
        answer: impl Future<Output = Result<Response<R>, E>>,
    ) -> Result<Response<R>, E> {
        let answer = answer.await;
        self.code = match &answer {
            // An error comes as headers only; where there is none in them, a message follows.
            Ok(response) => {
                Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code())
            }
            Err(_) => Code::Unknown,
        };
        answer
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.metrics.answered(self.rpc, self.code, self.began.elapsed());
    }
}

impl<S, B, R: 'static> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call {
            metrics: Arc::clone(&self.metrics),
            rpc: rpc_of(request.uri().path()),
            began: Instant::now(),
            code: Code::Cancelled,
        };
        Box::pin(call.follow(self.inner.call(request)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn text_after(answer: impl FnOnce() -> Response<()> + Clone + Send + 'static) -> String {
        let metrics = Arc::new(Metrics::new().unwrap());
        let service = tower::service_fn(move |_: Request<()>| {
            let answer = answer.clone();
            async move { Ok::<_, std::convert::Infallible>(answer()) }
        });
        let mut counted = CountCalls(metrics.clone()).layer(service);
        let request = Request::builder().uri("http://x/csi.v1.Node/NodeStageVolume").body(());
        counted.call(request.unwrap()).await.unwrap();
        metrics.text().unwrap()
    }

    #[tokio::test]
    async fn calls_are_counted_by_their_code() {
        let good = text_after(|| Response::new(())).await;
        assert!(good.contains(r#"rpc_seconds_count{code="Ok",rpc="NodeStageVolume"} 1"#), "{good}");
        let bad = text_after(|| Status::aborted("busy").into_http()).await;
        assert!(
            bad.contains(r#"rpc_seconds_count{code="Aborted",rpc="NodeStageVolume"} 1"#),
            "{bad}"
        );
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_counts_as_cancelled() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let never = tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<()>, std::convert::Infallible>>()
        });
        let mut counted = CountCalls(metrics.clone()).layer(never);
        drop(counted.call(Request::new(())));
        let text = metrics.text().unwrap();
        assert!(text.contains(r#"rpc_seconds_count{code="Cancelled",rpc="other"} 1"#), "{text}");
    }
}
