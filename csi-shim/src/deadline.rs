//! How long a call may take: what its caller said, or a limit of our own.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// For callers that name no deadline. kubelet's own (`csiTimeout`, pkg/volume/csi) is the
/// same two minutes, so that nothing takes longer than an operator is used to.
const DEFAULT: Duration = Duration::from_secs(120);

/// Our answer sets off this much before the caller stops listening, enough for a loaded
/// machine. Without it the caller, or tonic's own timer under us or under the agent, ends the
/// call first, and a bare "timeout expired" takes the place of a message that says what was
/// waited for.
const HEAD_START: Duration = Duration::from_millis(250);

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// A point in time by which a call has to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// The deadline of a call that has just arrived with this metadata.
    #[must_use]
    pub fn of_call(metadata: &MetadataMap) -> Self {
        let told = metadata.get(GRPC_TIMEOUT).and_then(|v| v.to_str().ok()).and_then(parse_timeout);
        Self::after(told.unwrap_or(DEFAULT))
    }

    /// A deadline that is `allowed` from now.
    #[must_use]
    pub fn after(allowed: Duration) -> Self {
        Self { at: Instant::now() + allowed, allowed }
    }

    /// What was allowed at the start, for messages.
    #[must_use]
    pub fn allowed(&self) -> Duration {
        self.allowed
    }

    /// What is left of it, for the next hop's own deadline.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// When our own answer has to be on its way.
    #[must_use]
    pub fn answer_by(&self) -> Instant {
        self.at.checked_sub(HEAD_START.min(self.allowed / 4)).unwrap_or(self.at)
    }

    /// The status for a call that ran out of time while waiting for `what`.
    #[must_use]
    pub fn exceeded(&self, what: &str) -> Status {
        Status::deadline_exceeded(format!(
            "no answer within the caller's {:.1} s: {what}",
            self.allowed.as_secs_f64()
        ))
    }
}

/// `grpc-timeout` is up to eight digits and a unit (gRPC over HTTP2, "Timeout").
/// Anything else is as good as none.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(n * 3600),
        'M' => Duration::from_secs(n * 60),
        'S' => Duration::from_secs(n),
        'm' => Duration::from_millis(n),
        'u' => Duration::from_micros(n),
        'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timeouts_in_every_unit() {
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(parse_timeout(text), Some(expected), "{text}");
        }
        for text in ["", "S", "1", "123456789S", "-1S", "1x", "1 S", "1ü"] {
            assert_eq!(parse_timeout(text), None, "{text:?}");
        }
    }

    #[tokio::test]
    async fn without_a_word_of_the_caller_there_is_a_limit_all_the_same() {
        assert_eq!(Deadline::of_call(&MetadataMap::new()).allowed(), DEFAULT);
        let mut metadata = MetadataMap::new();
        metadata.insert(GRPC_TIMEOUT, "7S".parse().unwrap());
        assert_eq!(Deadline::of_call(&metadata).allowed(), Duration::from_secs(7));
    }

    #[tokio::test]
    async fn our_answer_comes_before_the_callers_end_even_if_that_is_near() {
        for ms in [1, 10, 1000] {
            let deadline = Deadline::after(Duration::from_millis(ms));
            assert!(deadline.answer_by() < deadline.at);
            assert!(deadline.answer_by() > deadline.at - Duration::from_millis(ms));
        }
    }
}
