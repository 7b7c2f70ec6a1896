//! What RouterOS says and understands, without any of what it does: numbers, items, filters, refusals.

pub mod disk;
pub mod error;
pub mod id;
pub mod item;
pub mod number;
pub mod policy;
pub mod query;
pub mod version;
