//! The gRPC side: requests are read and checked, run, measured, answered.

mod controller;
mod identity;
mod snapshots;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use crate::error::Error;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::routeros::Gate;

/// Both services, over the same appliances.
#[derive(Clone)]
pub(crate) struct Service {
    driver_name: Arc<str>,
    volumes: Arc<Fleet>,
    operations: Operations,
    metrics: Arc<Metrics>,
    gate: Arc<Gate>,
}

impl Service {
    pub(crate) fn new(
        driver_name: &str,
        volumes: Arc<Fleet>,
        operations: Operations,
        metrics: Arc<Metrics>,
        gate: Arc<Gate>,
    ) -> Self {
        Self { driver_name: driver_name.into(), volumes, operations, metrics, gate }
    }

    /// Whether this is the replica that works.
    fn leads(&self) -> bool {
        self.gate.is_open()
    }

    /// Turns a result into an answer: measured, logged, mapped to a code. One that stands by
    /// answers nothing, not even what it could read: it may be old by the time it is used.
    async fn answer<T>(
        &self,
        rpc: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response<T>, Status> {
        let started = Instant::now();
        let result = match self.leads() {
            true => work.await,
            false => Err(Error::Standby(rpc)),
        };
        let code = result.as_ref().map_or_else(Error::code, |_| Code::Ok);
        self.metrics.rpc_done(rpc, code, started.elapsed());
        match result {
            Ok(value) => Ok(Response::new(value)),
            Err(error) => {
                tracing::warn!(?code, "{rpc}: {error}");
                Err(error.into())
            }
        }
    }
}

/// How long the caller waits, less a margin for our answer to reach it in time.
fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let deadline = grpc_timeout(text)?;
    Some(deadline.mul_f64(0.95))
}

/// The grpc-timeout header: up to 8 digits and a unit (gRPC over HTTP/2, Requests).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_of_callers() {
        assert_eq!(grpc_timeout("15S"), Some(Duration::from_secs(15)));
        assert_eq!(grpc_timeout("99999999m"), Some(Duration::from_millis(99_999_999)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1\u{e9}"] {
            assert_eq!(grpc_timeout(bad), None, "{bad:?}");
        }
    }
}
