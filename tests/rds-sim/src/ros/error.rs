//! Refusals, with the texts seen on real devices (ROUTEROS.md "Error texts seen").

use thiserror::Error;

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
            _ => 400,
        }
    }
}
