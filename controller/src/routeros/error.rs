//! What the appliance can answer besides "done", and how an HTTP answer is read.
//!
//! The texts are few and known from real devices; what is not known stays
//! [`ApplianceError::Refused`] with its text, and the caller finds out by reading back.

use serde_json::Value;

use super::rows;
use super::wire::{Request, Row};

/// A request that the appliance did not carry out, or may not have.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApplianceError {
    /// No connection, or none that carried the request: nothing was changed.
    #[error("RDS {host} is not reachable: {cause}")]
    Unreachable {
        /// Its address.
        host: String,
        /// Why not.
        cause: String,
    },
    /// A change was sent and no answer came: it may have been made, or be made yet.
    #[error("{action} was sent but not answered ({cause}); it may have been carried out")]
    Ambiguous {
        /// What was sent.
        action: String,
        /// Why there is no answer.
        cause: String,
    },
    /// An answer that makes no sense, as an appliance gives while it boots.
    #[error("{action}: answer not understood: {cause}")]
    BadAnswer {
        /// What was asked.
        action: String,
        /// What is wrong with the answer.
        cause: String,
    },
    /// Too many requests wait for the appliance, which takes one at a time.
    #[error("{action}: the appliance was busy with other requests for {seconds} s")]
    Queue {
        /// What would have been sent.
        action: String,
        /// How long it waited.
        seconds: u64,
    },
    /// Another controller may be leading, so no change is sent.
    #[error("{action} was not sent: this controller does not lead; another one will be asked")]
    NotLeading {
        /// What would have been sent.
        action: String,
    },
    /// User name or password are wrong.
    #[error(
        "RDS {host} refuses the user {user:?}: check username and password (for SSH also \
         ssh-privatekey) in {dir}"
    )]
    Unauthorized {
        /// Its address.
        host: String,
        /// The user.
        user: String,
        /// Where the credentials come from.
        dir: String,
    },
    /// The user lacks a policy.
    #[error(
        "{action}: the RouterOS user may not do this ({detail}); its group needs the policies \
         read,write,test and rest-api (for SSH: ssh)"
    )]
    PolicyMissing {
        /// What was asked.
        action: String,
        /// The appliance's words.
        detail: String,
    },
    /// The server is not proven to be the appliance.
    #[error(
        "the TLS certificate of RDS {host} is not accepted: {cause}; put the certificate of its CA, \
         or its own if it is self-signed, into {dir}/ca.crt (and check cert.sha256 if you have one)"
    )]
    CertificateInvalid {
        /// Its address.
        host: String,
        /// What is wrong with it.
        cause: String,
        /// Where the trusted certificates are.
        dir: String,
    },
    /// The SSH server is not proven to be the appliance.
    #[error(
        "the SSH host key of RDS {host} is not accepted: {cause}; if that is the appliance's key, \
         put it into {dir}/ssh-host-key"
    )]
    HostKeyInvalid {
        /// Its address.
        host: String,
        /// What is wrong with it.
        cause: String,
        /// Where the trusted keys are.
        dir: String,
    },
    /// The credentials directory cannot be used.
    #[error("{cause}")]
    Credentials {
        /// Which file, and what is wrong.
        cause: String,
    },
    /// RouterOS lacks what is needed.
    #[error(
        "RouterOS {version} is too old: {floor} or later is needed (settable nvme-tcp-server-nqn)"
    )]
    TooOld {
        /// What runs there.
        version: String,
        /// What is needed.
        floor: String,
    },
    /// There is no such item.
    #[error("{action}: no such item")]
    NoSuchItem {
        /// What was asked.
        action: String,
    },
    /// There is one already.
    #[error("{action}: {detail}")]
    AlreadyExists {
        /// What was asked.
        action: String,
        /// The appliance's words.
        detail: String,
    },
    /// A value or property that this RouterOS does not take.
    #[error("{action}: {detail}")]
    InvalidValue {
        /// What was asked.
        action: String,
        /// The appliance's words.
        detail: String,
    },
    /// Any other refusal.
    #[error("{action}: refused by the appliance: {detail}")]
    Refused {
        /// What was asked.
        action: String,
        /// The appliance's words.
        detail: String,
    },
}

impl ApplianceError {
    /// A short name for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Ambiguous { .. } => "ambiguous",
            Self::BadAnswer { .. } => "bad_answer",
            Self::Queue { .. } => "queue",
            Self::NotLeading { .. } => "not_leading",
            Self::Unauthorized { .. } => "unauthorized",
            Self::PolicyMissing { .. } => "policy_missing",
            Self::CertificateInvalid { .. } => "certificate_invalid",
            Self::HostKeyInvalid { .. } => "host_key_invalid",
            Self::Credentials { .. } => "credentials",
            Self::TooOld { .. } => "too_old",
            Self::NoSuchItem { .. } => "no_such_item",
            Self::AlreadyExists { .. } => "already_exists",
            Self::InvalidValue { .. } => "invalid_value",
            Self::Refused { .. } => "refused",
        }
    }

    /// Whether the appliance understood the request and said no.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. } | Self::InvalidValue { .. } | Self::AlreadyExists { .. }
        )
    }

    /// Whether the refusal reads like a full pool. The real text is not known: this only
    /// picks a code, nothing is built on it.
    #[must_use]
    pub fn speaks_of_space(&self) -> bool {
        match self {
            Self::Refused { detail, .. } | Self::InvalidValue { detail, .. } => {
                let detail = detail.to_ascii_lowercase();
                detail.contains("space") || detail.contains("full")
            }
            _ => false,
        }
    }

    /// Whether the appliance has to prove itself again before it is believed: it may have
    /// rebooted, and answers nonsense for a while when it has.
    #[must_use]
    pub fn casts_doubt(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Ambiguous { .. }
                | Self::BadAnswer { .. }
                | Self::Unauthorized { .. }
                | Self::CertificateInvalid { .. }
                | Self::HostKeyInvalid { .. }
        )
    }
}

/// What an answer says, apart from who was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Rows(Vec<Row>),
    Unauthorized,
    PolicyMissing(String),
    NoSuchItem,
    AlreadyExists(String),
    InvalidValue(String),
    Refused(String),
    /// Not the appliance's REST service speaking, or not in its right mind.
    Nonsense(String),
    /// The appliance gave up waiting for its own answer; the work may go on.
    Cut(String),
}

impl Verdict {
    /// The result for the caller; `unauthorized` knows who was refused.
    pub(super) fn into_result(
        self,
        request: &Request,
        unauthorized: impl FnOnce() -> ApplianceError,
    ) -> Result<Vec<Row>, ApplianceError> {
        let action = request.to_string();
        Err(match self {
            Self::Rows(rows) => return Ok(rows),
            Self::Unauthorized => unauthorized(),
            Self::PolicyMissing(detail) => ApplianceError::PolicyMissing { action, detail },
            Self::NoSuchItem => ApplianceError::NoSuchItem { action },
            Self::AlreadyExists(detail) => ApplianceError::AlreadyExists { action, detail },
            Self::InvalidValue(detail) => ApplianceError::InvalidValue { action, detail },
            Self::Refused(detail) => ApplianceError::Refused { action, detail },
            Self::Nonsense(cause) | Self::Cut(cause) if request.changes() => {
                ApplianceError::Ambiguous { action, cause }
            }
            Self::Nonsense(cause) | Self::Cut(cause) => ApplianceError::BadAnswer { action, cause },
        })
    }
}

/// Reads an HTTP answer: its status and whole body.
pub(super) fn read_answer(status: u16, body: &[u8], expects_rows: bool) -> Verdict {
    match status {
        200..=299 => match rows::parse(body, rows::Rule::Texts) {
            Ok(rows) => Verdict::Rows(rows),
            // A change may be answered with an empty body.
            Err(_) if !expects_rows && body.iter().all(u8::is_ascii_whitespace) => {
                Verdict::Rows(Vec::new())
            }
            Err(why) => Verdict::Nonsense(format!("the body is not as expected ({why})")),
        },
        401 => Verdict::Unauthorized,
        _ => refusal(status, body),
    }
}

fn refusal(status: u16, body: &[u8]) -> Verdict {
    let Ok(Value::Object(map)) = serde_json::from_slice(body) else {
        return Verdict::Nonsense(format!("HTTP status {status} without an error object"));
    };
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
    let detail = match (text("detail"), text("message")) {
        ("", "") => return Verdict::Nonsense(format!("HTTP status {status} without a message")),
        ("", message) => message,
        (detail, _) => detail,
    };
    classify(detail)
}

/// What a refusal in the appliance's own words means.
pub(super) fn classify(detail: &str) -> Verdict {
    let detail: String = detail.chars().take(200).collect();
    let lower = detail.to_ascii_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|n| lower.contains(n));
    if has(&["not allowed (9)", "not enough permissions"]) {
        Verdict::PolicyMissing(detail)
    } else if has(&["no such item"]) {
        Verdict::NoSuchItem
    } else if has(&["session closed"]) {
        Verdict::Cut(detail)
    } else if has(&["already have", "already exists"]) {
        Verdict::AlreadyExists(detail)
    } else if has(&[
        "invalid value",
        "does not match any value",
        "unknown parameter",
        "missing value",
    ]) {
        Verdict::InvalidValue(detail)
    } else {
        Verdict::Refused(detail)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_answers() {
        let refused = |detail: &str| {
            let body = format!(r#"{{"error":400,"message":"Bad Request","detail":"{detail}"}}"#);
            read_answer(400, body.as_bytes(), false)
        };
        assert_eq!(refused("no such item"), Verdict::NoSuchItem);
        assert!(matches!(refused("failure: already have such entry"), Verdict::AlreadyExists(_)));
        assert!(matches!(
            refused("invalid value for argument file-size"),
            Verdict::InvalidValue(_)
        ));
        assert!(matches!(
            refused("input does not match any value of type"),
            Verdict::InvalidValue(_)
        ));
        assert!(matches!(refused("unknown parameter nvme-tcp-x"), Verdict::InvalidValue(_)));
        assert!(matches!(refused("failure: can not do that"), Verdict::Refused(_)));
        assert!(matches!(refused("Session closed"), Verdict::Cut(_)));
        let denied = br#"{"error":500,"message":"Internal Server Error","detail":"std failure: not allowed (9)"}"#;
        assert!(matches!(read_answer(500, denied, true), Verdict::PolicyMissing(_)));
        let wrong = br#"{"error":401,"message":"Unauthorized"}"#;
        assert_eq!(read_answer(401, wrong, true), Verdict::Unauthorized);
    }

    #[test]
    fn absence_is_only_an_empty_list() {
        assert_eq!(read_answer(200, b"[]", true), Verdict::Rows(vec![]));
        for body in [&b""[..], b"null", b"<html>", b"\"\"", b"[1]", b"[{\"slot\":1}]", b"[{]"] {
            assert!(matches!(read_answer(200, body, true), Verdict::Nonsense(_)), "{body:?}");
        }
        assert_eq!(read_answer(200, b"", false), Verdict::Rows(vec![]));
        assert!(matches!(read_answer(404, b"", true), Verdict::Nonsense(_)));
        assert!(matches!(read_answer(503, b"starting", true), Verdict::Nonsense(_)));
    }

    proptest! {
        #[test]
        fn nothing_panics(status in 100u16..600, body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read_answer(status, &body, true);
        }
    }
}
