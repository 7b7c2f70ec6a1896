//! The appliance: one typed interface to RouterOS.
//!
//! [`Appliance`] is what the rest of the controller sees. Below it a [`wire::Transport`]
//! carries single requests ([`rest`] over HTTPS, proven by [`tls`], or [`ssh`]); [`wire`] makes
//! them out of validated types, [`disk`] reads items strictly, [`btrfs`] knows pools and
//! copies, [`error`] sorts what goes wrong, [`gate`] lets changes pass while we lead. [`readings`] are for metrics only.

mod appliance;
pub mod btrfs;
pub mod disk;
pub mod error;
mod gate;
pub mod readings;
pub mod rest;
mod rows;
pub mod ssh;
mod tls;
pub mod version;
pub mod wire;

pub use appliance::{Appliance, NewDisk, NewRecord};
pub use btrfs::Pool;
pub use disk::{DiskComment, DiskItem, DiskUse, FileItem};
pub use error::ApplianceError;
pub use gate::Gate;

use crate::config::{RdsUrl, Scheme};
use crate::credentials::CredentialsDir;

/// The transport that a URL asks for. Nothing is opened yet.
#[must_use]
pub fn transport(url: RdsUrl, credentials: CredentialsDir) -> Box<dyn wire::Transport> {
    match url.scheme() {
        Scheme::Https => Box::new(rest::Rest::new(url, credentials)),
        Scheme::Ssh { .. } => Box::new(ssh::Ssh::new(url, credentials)),
    }
}

#[cfg(test)]
mod corpus_tests;
