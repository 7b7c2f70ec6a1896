//! Exports made real. `nvmet` writes the kernel's configfs, `fake` only keeps books,
//! `network` drops or resets what goes to the portal.

pub mod configfs;
pub mod fake;
pub mod network;
pub mod nvmet;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    Any,
    Only(Vec<String>),
}

/// One export: a subsystem with namespace 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub nqn: String,
    pub port: u16,
    pub file: PathBuf,
    pub hosts: Hosts,
}

/// What hosts recognise a namespace by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub serial: String,
    pub uuid: String,
}

#[derive(Debug, Error)]
pub enum TargetError {
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Other(String),
}

/// A block storage target. All calls block.
pub trait Target: Send {
    /// Makes the export; without `identity` the target invents one.
    fn export(&mut self, spec: &Spec, identity: Option<&Identity>)
    -> Result<Identity, TargetError>;
    /// Changes who may connect; live controllers are not touched.
    fn set_hosts(&mut self, nqn: &str, hosts: &Hosts) -> Result<(), TargetError>;
    /// Ends the export and its controllers. One that does not exist is fine.
    fn unexport(&mut self, nqn: &str) -> Result<(), TargetError>;
    /// Lets the portal answer although nothing is exported.
    fn open_portal(&mut self) -> Result<(), TargetError>;
    /// Takes that back; the portal closes when nothing is exported.
    fn close_portal(&mut self) -> Result<(), TargetError>;
    /// Takes away everything that this target made.
    fn tear_down(&mut self) -> Result<(), TargetError>;
    /// What there is for this export, as it is now.
    fn describe(&self, nqn: &str) -> serde_json::Value;
}
