//! The controller under real Kubernetes controllers and real CSI sidecars, on this machine.
//!
//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler, snapshot-controller and the
//! sidecars are upstream's; what is installed is deploy/manifests, of whose Deployment each pod is
//! run as processes with the flags, the environment and the service account written there. What
//! is missing is kubelet: nothing is mounted, and the appliance is a simulator without a kernel
//! target. `make e2e` runs it; an argument chooses the scenarios whose names contain it.

mod api;
mod appliance;
mod bench;
mod cluster;
mod process;
mod replica;
mod scenarios;

use std::process::ExitCode;

use crate::bench::Bench;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let dir = tempfile::Builder::new().prefix("rds-e2e").tempdir()?;
    let failed = match Bench::start(dir.path(), "btrfs").await {
        Ok(mut bench) => scenarios::run(&mut bench, &only).await,
        Err(error) => {
            println!("FAILED start: {error:#}");
            1
        }
    };
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("logs: {}", dir.keep().display());
    Ok(ExitCode::FAILURE)
}
