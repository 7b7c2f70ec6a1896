//! Against a real API server: who leads among several controllers, and what the cluster is told.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "kubernetes/account.rs"]
mod account;
#[path = "kubernetes/adopt.rs"]
mod adopt;
#[path = "kubernetes/bench.rs"]
mod bench;
#[path = "kubernetes/election.rs"]
mod election;
#[cfg(feature = "crash-points")]
#[path = "kubernetes/failover.rs"]
mod failover;
mod lab;
#[path = "kubernetes/rights.rs"]
mod rights;
#[path = "kubernetes/told.rs"]
mod told;
#[path = "kubernetes/users.rs"]
mod users;
#[path = "kubernetes/wire.rs"]
mod wire;
