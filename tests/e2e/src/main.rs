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
use crate::scenarios::Pool;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let pools = [Pool::Btrfs, Pool::Xfs];
    anyhow::ensure!(
        pools.iter().any(|p| !p.chosen(&only).is_empty()),
        "no scenario has {only} in its name"
    );
    let mut failed = 0;
    for pool in pools {
        let names = pool.chosen(&only);
        if names.is_empty() {
            continue;
        }
        let dir = tempfile::Builder::new().prefix("rds-e2e").tempdir()?;
        let failures = match Bench::start(dir.path(), pool.name()).await {
            Ok(mut bench) => scenarios::run(&mut bench, &names).await,
            Err(error) => {
                println!("FAILED start: {error:#}");
                1
            }
        };
        if failures > 0 {
            println!("logs: {}", dir.keep().display());
        }
        failed += failures;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
