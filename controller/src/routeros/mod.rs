//! The appliance: one typed interface to RouterOS.
//!
//! [`Appliance`] is what the rest of the controller sees. Below it a [`wire::Transport`]
//! carries single requests ([`rest`] over HTTPS, proven by [`tls`]); [`wire`] makes them out
//! of validated types, [`disk`] reads items strictly, [`error`] sorts what goes wrong.

mod appliance;
pub mod disk;
pub mod error;
pub mod rest;
mod tls;
pub mod version;
pub mod wire;

pub use appliance::{Appliance, NewDisk};
pub use disk::{DiskItem, DiskUse, FileItem};
pub use error::ApplianceError;
