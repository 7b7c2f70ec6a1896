//! Against a real API server: what a shim asks it, and what it tells.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "kubernetes/attachments.rs"]
mod attachments;
#[path = "kubernetes/bench.rs"]
mod bench;
#[path = "kubernetes/events.rs"]
mod events;
#[path = "kubernetes/rights.rs"]
mod rights;
