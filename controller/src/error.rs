//! What can go wrong, and the one table that says which gRPC code it is.

use rds_csi_proto::ids::{RdsName, SnapshotId, VolumeId};
use rds_csi_proto::params::ParamError;
use tonic::{Code, Status};

use crate::routeros::ApplianceError;

/// Everything that makes a CSI call fail. Each message says what was attempted on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong; repeating it is of no use.
    #[error("{0}")]
    Invalid(String),
    /// A StorageClass parameter is wrong.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// No possible size satisfies the request.
    #[error("{0}")]
    OutOfRange(String),
    /// The appliance says that there is no such volume.
    #[error("volume {0:?} does not exist on the appliance")]
    NotFound(String),
    /// The appliance says that there is no such snapshot.
    #[error("snapshot {0:?} does not exist on the appliance")]
    NoSuchSnapshot(String),
    /// The node is not among those that exist.
    #[error("node {0} does not exist: it is not one of the controller's --nodes")]
    NoSuchNode(String),
    /// No appliance that may be used can be reached from where the volume is wanted.
    #[error("{0}")]
    NoTopology(String),
    /// What is looked for is on none of the appliances that answer, and not all of them do.
    #[error("{what} is on none of the appliances that answer; it may be on {name}: {cause}")]
    Unknown {
        /// Which volume or snapshot.
        what: String,
        /// The appliance that does not answer.
        name: RdsName,
        /// Why not.
        cause: Box<Error>,
    },
    /// The name is taken by something else than what was asked for.
    #[error("{0}")]
    Exists(String),
    /// The volume is in a state in which this must not be done.
    #[error("{0}")]
    Refused(String),
    /// Another operation on the same volume is running.
    #[error("{running} of {subject} has been running for {seconds} s; try again when it is done")]
    Busy {
        /// Which volume or snapshot.
        subject: String,
        /// The call that runs.
        running: &'static str,
        /// Since how long.
        seconds: u64,
    },
    /// The operation takes longer than the caller waits.
    #[error(
        "{rpc} is still running after {seconds} s and goes on; repeat the call to learn its result"
    )]
    StillRunning {
        /// The call.
        rpc: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The same, where what takes so long is a copy.
    #[error("{cause}; {progress}")]
    Copying {
        /// That it runs.
        cause: Box<Error>,
        /// How far it is.
        progress: String,
    },
    /// A change was accepted, but reading back does not show it.
    #[error("{what} was requested but the appliance does not show it after {seconds} s; try again")]
    NotConfirmed {
        /// The change.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A failure after a change may have been made. Always retryable, whatever the cause:
    /// the sidecars take a final code for "nothing was done" and forget the volume.
    #[error("{what} was begun but not finished, call again to finish it: {cause}")]
    HalfDone {
        /// The operation.
        what: String,
        /// What stopped it.
        cause: Box<Error>,
    },
    /// The appliance or the way to it.
    #[error(transparent)]
    Appliance(#[from] ApplianceError),
    /// The appliance refused to make a volume, and nothing of it is there.
    #[error("volume {volume} of {size} bytes was not made: {cause}")]
    NotMade {
        /// Which volume.
        volume: VolumeId,
        /// How large.
        size: u64,
        /// What the appliance said.
        cause: ApplianceError,
    },
    /// The appliance refused to make a volume larger, and it is as it was.
    #[error("volume {volume} was not grown to {size} bytes: {cause}")]
    NotGrown {
        /// Which volume.
        volume: VolumeId,
        /// How large it should have become.
        size: u64,
        /// What the appliance said.
        cause: ApplianceError,
    },
    /// The appliance refused to make a snapshot's record, and nothing of it is there.
    #[error("snapshot {snapshot} was not made, for which {size} bytes are needed: {cause}")]
    NoSnapshot {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// How much it takes at once.
        size: u64,
        /// What the appliance said.
        cause: ApplianceError,
    },
    /// One of several appliances failed.
    #[error("appliance {name}: {cause}")]
    OfAppliance {
        /// What it is called.
        name: RdsName,
        /// How.
        cause: Box<Error>,
    },
    /// A page of a list that was never given out.
    #[error("starting_token {0:?} is not one that this driver gave out; list from the start")]
    Token(String),
    /// A host name could not be resolved in time.
    #[error("cannot resolve {name:?}: {cause}; give an address with --nvme-address or nvmeAddress")]
    Resolve {
        /// The name.
        name: String,
        /// Why not.
        cause: String,
    },
    /// Another replica answers this.
    #[error("{0}: this controller is not the leader; try again")]
    Standby(&'static str),
    /// A call that this version does not have.
    #[error("{0} is not implemented by this version")]
    NotImplemented(&'static str),
    /// A mistake in this program.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The gRPC code, which is a contract with the CSI sidecars: they try again, give up or
    /// forget by it.
    #[must_use]
    pub fn code(&self) -> Code {
        use ApplianceError as A;
        match self {
            Self::Invalid(_) | Self::Param(_) => Code::InvalidArgument,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::NotFound(_) | Self::NoSuchSnapshot(_) | Self::NoSuchNode(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Refused(_) => Code::FailedPrecondition,
            Self::Busy { .. } => Code::Aborted,
            Self::StillRunning { .. } => Code::DeadlineExceeded,
            Self::NotConfirmed { .. }
            | Self::HalfDone { .. }
            | Self::Resolve { .. }
            | Self::Standby(_)
            | Self::Unknown { .. } => Code::Unavailable,
            Self::NoTopology(_) => Code::ResourceExhausted,
            Self::Token(_) => Code::Aborted,
            Self::OfAppliance { cause, .. } | Self::Copying { cause, .. } => cause.code(),
            Self::NotMade { cause, .. }
            | Self::NotGrown { cause, .. }
            | Self::NoSnapshot { cause, .. }
                if cause.speaks_of_space() =>
            {
                Code::ResourceExhausted
            }
            Self::NotMade { .. }
            | Self::NotGrown { .. }
            | Self::NoSnapshot { .. }
            | Self::Internal(_) => Code::Internal,
            Self::NotImplemented(_) => Code::Unimplemented,
            Self::Appliance(e) => match e {
                A::Unreachable { .. }
                | A::Ambiguous { .. }
                | A::BadAnswer { .. }
                | A::NotLeading { .. }
                | A::Queue { .. } => Code::Unavailable,
                A::Unauthorized { .. } => Code::Unauthenticated,
                A::PolicyMissing { .. } => Code::PermissionDenied,
                A::CertificateInvalid { .. }
                | A::HostKeyInvalid { .. }
                | A::Credentials { .. }
                | A::TooOld { .. } => Code::FailedPrecondition,
                // The item went, or came, between our look and our change: look again.
                A::NoSuchItem { .. } | A::AlreadyExists { .. } => Code::Aborted,
                A::InvalidValue { .. } | A::Refused { .. } => Code::Internal,
            },
        }
    }

    /// Says which of several appliances it was.
    #[must_use]
    pub fn of_appliance(self, name: &RdsName) -> Self {
        Self::OfAppliance { name: name.clone(), cause: Box::new(self) }
    }

    /// Marks a failure that came after the first change was sent.
    #[must_use]
    pub fn after_change(self, what: impl Into<String>) -> Self {
        match self {
            // These are retryable and complete as they are.
            Self::HalfDone { .. } | Self::NotConfirmed { .. } => self,
            cause => Self::HalfDone { what: what.into(), cause: Box::new(cause) },
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appliance(e: ApplianceError) -> Error {
        Error::Appliance(e)
    }

    #[test]
    fn codes_are_pinned() {
        let s = String::new;
        let cases = [
            (Error::Invalid(s()), Code::InvalidArgument),
            (Error::Param(ParamError::Unknown { key: s() }), Code::InvalidArgument),
            (Error::NotFound(s()), Code::NotFound),
            (Error::Exists(s()), Code::AlreadyExists),
            (Error::Refused(s()), Code::FailedPrecondition),
            (Error::OutOfRange(s()), Code::OutOfRange),
            (Error::StillRunning { rpc: "x", seconds: 1 }, Code::DeadlineExceeded),
            (Error::NotConfirmed { what: s(), seconds: 1 }, Code::Unavailable),
            (Error::NotImplemented("x"), Code::Unimplemented),
            (Error::Standby("x"), Code::Unavailable),
            (appliance(ApplianceError::NotLeading { action: s() }), Code::Unavailable),
            (Error::NoTopology(s()), Code::ResourceExhausted),
            (Error::Token(s()), Code::Aborted),
            (appliance(ApplianceError::Unreachable { host: s(), cause: s() }), Code::Unavailable),
            (
                appliance(ApplianceError::Unauthorized { host: s(), user: s(), dir: s() }),
                Code::Unauthenticated,
            ),
            (
                appliance(ApplianceError::CertificateInvalid { host: s(), cause: s(), dir: s() }),
                Code::FailedPrecondition,
            ),
            (appliance(ApplianceError::Ambiguous { action: s(), cause: s() }), Code::Unavailable),
            (appliance(ApplianceError::NoSuchItem { action: s() }), Code::Aborted),
        ];
        for (error, code) in cases {
            assert_eq!(error.code(), code, "{error:?}");
        }
    }

    #[test]
    fn a_failure_after_a_change_is_never_final() {
        let cause = appliance(ApplianceError::Unauthorized {
            host: "h".into(),
            user: "u".into(),
            dir: "d".into(),
        });
        let error = cause.after_change("CreateVolume of pvc-x");
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.to_string().contains("CreateVolume of pvc-x"), "{error}");
    }
}
