//! What this replica is among several.

use axum::http::StatusCode;

/// In the order in which a replica goes through them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nobody has been asked yet, or nobody answers.
    Unknown,
    /// Without Kubernetes there are no others.
    Alone,
    /// Another one leads; empty if nobody does, for the moment.
    Standby {
        of: String,
    },
    Leading,
    /// It led, and ends.
    Lost,
}

impl Role {
    /// For `/readyz`. One that stands by is ready, or a roll-out would wait for it for ever.
    pub(crate) fn ready(&self) -> (StatusCode, String) {
        match self {
            Self::Unknown => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the Kubernetes API has not said yet who leads\n".into(),
            ),
            Self::Alone => (StatusCode::OK, "alone\n".into()),
            Self::Standby { of } if of.is_empty() => (StatusCode::OK, "standby\n".into()),
            Self::Standby { of } => (StatusCode::OK, format!("standby: {of} leads\n")),
            Self::Leading => (StatusCode::OK, "leader\n".into()),
            Self::Lost => (StatusCode::SERVICE_UNAVAILABLE, "the lease is lost\n".into()),
        }
    }
}
