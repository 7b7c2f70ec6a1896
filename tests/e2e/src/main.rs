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
mod guide;
mod process;
mod replica;
mod scenarios;

use std::process::ExitCode;
use std::time::Duration;

use crate::api::{Kube, POD};
use crate::bench::Bench;
use crate::guide::Guide;
use crate::scenarios::Pool;

const GUIDE: &str = "guide-getting-started";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let pools = [Pool::Btrfs, Pool::Xfs];
    anyhow::ensure!(
        pools.iter().any(|p| !p.chosen(&only).is_empty()) || GUIDE.contains(&only),
        "no scenario has {only} in its name"
    );
    let mut failed = 0;
    if GUIDE.contains(&only) {
        match follow_the_guide().await {
            Ok(()) => println!("ok {GUIDE}"),
            Err(error) => {
                println!("FAILED {GUIDE}: {error:#}");
                failed += 1;
            }
        }
    }
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

/// From an empty cluster to one that is empty again.
async fn follow_the_guide() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("rds-e2e").tempdir()?;
    let (appliance, cluster) = Bench::begin(dir.path(), Pool::Xfs.name()).await?;
    let mut guide = Guide::new(dir.path(), &cluster, &appliance)?;
    guide.until("wait").await?;
    let bench = Bench::run_pods(dir.path(), appliance, cluster).await?;
    let ends = tokio::spawn(ends_pods(bench.kube.clone()));
    let followed = guide.until("").await;
    ends.abort();
    followed?;
    bench.nothing_left().await
}

/// What kubelet says of a pod that is to go, once its containers have ended: that it may.
async fn ends_pods(kube: Kube) {
    loop {
        for pod in kube.list(POD, Some("default")).await.unwrap_or_default() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            if pod["metadata"]["deletionTimestamp"].is_string() {
                kube.delete(POD, Some("default"), name).await.ok();
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
