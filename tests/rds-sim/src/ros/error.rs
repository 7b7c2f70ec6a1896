//! Refusals, with the texts seen on real devices (ROUTEROS.md "Error texts seen").

use thiserror::Error;

/// The console's words for a missing policy.
pub const CONSOLE_NOT_ALLOWED: &str = "not enough permissions (9)";

/// Why RouterOS did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("no such item")]
    NoSuchItem,
    #[error("failure: already have such entry")]
    Duplicate,
    #[error("invalid value for argument {0}")]
    InvalidValue(String),
    #[error("input does not match any value of {0}")]
    NoMatch(String),
    #[error("unknown parameter {0}")]
    UnknownParameter(String),
    #[error("can not do that")]
    CannotDo,
    /// As REST says it; the console says [`CONSOLE_NOT_ALLOWED`].
    #[error("std failure: not allowed (9)")]
    NotAllowed,
    #[error("no such command")]
    NoSuchCommand,
    /// Text chosen on the command line: nobody has seen the real one.
    #[error("{0}")]
    Guess(String),
    /// Ordered by a test through the control socket.
    #[error("{detail}")]
    Fault { status: u16, detail: String },
}

impl Refusal {
    /// HTTP status of the REST answer.
    pub fn status(&self) -> u16 {
        match self {
            Refusal::Fault { status, .. } => *status,
            Refusal::NotAllowed => 500,
            _ => 400,
        }
    }
}
