//! What a user may do (manual, "User": group policies), as far as it matters here.

use clap::ValueEnum;

use super::error::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    Read,
    Write,
    /// Such as `monitor-traffic`.
    Test,
    /// Needed by REST, beside `rest-api`.
    Api,
    RestApi,
    Ssh,
}

/// Refuses what needs a policy that the user lacks.
pub fn require(given: &[Policy], needed: &[Policy]) -> Result<(), Refusal> {
    match needed.iter().all(|p| given.contains(p)) {
        true => Ok(()),
        false => Err(Refusal::NotAllowed),
    }
}
