//! What can go wrong, and the one table that says which gRPC code it becomes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;
use tonic::{Code, Status};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was attempted, on what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be right, whatever the state of the node.
    #[error("{0}")]
    Invalid(String),
    /// The request does not fit what is already there (another capability, another path).
    #[error("{0}")]
    Conflict(String),
    /// Something is unknown that would have to be known.
    #[error("{0}")]
    NotFound(String),
    /// Another operation on the same volume is still going on.
    #[error(
        "{running} of volume {volume} has been running for {since:?}; try again when it is done"
    )]
    Busy {
        /// The volume.
        volume: VolumeId,
        /// What runs.
        running: &'static str,
        /// For how long.
        since: Duration,
    },
    /// The world must change first: a device is in use, a volume is fenced, data is in the way.
    #[error("{0}")]
    Precondition(String),
    /// The target or a part of the node does not answer at present; a retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// A wait ended without a result. What was begun may still happen; it is known to the
    /// journal, and a retry looks at the outcome first.
    #[error("{what} has not finished after {after:?}; it goes on, try again to see its outcome")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// The kernel refused.
    #[error("{action} {target}: {source}")]
    Kernel {
        /// "mount", "connect to"
        action: &'static str,
        /// On what.
        target: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A helper program failed (mkfs, resize).
    #[error("{program} failed on {target}: {output}")]
    Program {
        /// Which program.
        program: String,
        /// On what device.
        target: PathBuf,
        /// The end of what it printed.
        output: String,
    },
    /// The journal could not be written. Nothing is done that could not be recorded.
    #[error("the journal in the state directory cannot be written ({0}); free or mend that disk")]
    Journal(String),
}

impl Error {
    /// A kernel error, for `map_err`.
    pub fn kernel(action: &'static str, target: impl ToString) -> impl FnOnce(io::Error) -> Self {
        let target = target.to_string();
        move |source| Self::Kernel { action, target, source }
    }

    /// The kernel's number, if it is the kernel's error.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The gRPC code: the only place where it is decided.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Conflict(_) => Code::AlreadyExists,
            Self::NotFound(_) => Code::NotFound,
            Self::Busy { .. } => Code::Aborted,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Unavailable(_) | Self::Journal(_) => Code::Unavailable,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Kernel { .. } | Self::Program { .. } => Code::Internal,
        }
    }
}

/// A status travels in HTTP/2 headers, of which a peer takes 16 KiB (hyper's default), and
/// each byte may become three there. One message that is longer, since it quotes a request's
/// megabyte of a path, ends the whole connection with every other call on it.
const MESSAGE_MAX: usize = 2048;

/// A text cut to what fits a status and a line of the log.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("... (cut)");
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), bounded(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_quotes_no_megabytes() {
        let status = Status::from(Error::Invalid("\u{1f4a9}".repeat(70_000)));
        assert!(status.message().len() < MESSAGE_MAX + 20);
        assert!(status.message().ends_with("(cut)"));
        assert_eq!(Status::from(Error::Invalid("short".into())).message(), "short");
    }
}
