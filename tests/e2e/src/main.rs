//! The whole driver in real Kubernetes: etcd, kube-apiserver, kube-controller-manager,
//! kube-scheduler, snapshot-controller, the CSI sidecars and, in guests, kubelet and containerd are
//! upstream's.
//!
//! What is installed is deploy/manifests, of whose Deployment each pod is run as processes on this
//! machine with the flags, the environment and the service account written there. Most scenarios
//! need nothing more: their nodes are ours to play, and their appliance is a simulator without a
//! kernel target. Those called `nodes-` have two guests with a kernel, in which kubelet runs the
//! shim's pods and the users', and those of the agent where they are called `agent-pods-`, and the appliance has a target. `make e2e` runs it; an argument
//! chooses the scenarios whose names contain it.

mod api;
mod appliance;
mod bench;
mod cluster;
mod guests;
mod guide;
mod pods;
mod process;
mod replica;
mod scenarios;

use std::process::ExitCode;
use std::time::Duration;

use crate::api::{Kube, POD};
use crate::bench::Bench;
use crate::guide::Guide;
use crate::scenarios::Stage;

const GUIDE: &str = "guide-getting-started";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let stages = [Stage::Btrfs, Stage::Xfs, Stage::Kubelets, Stage::AgentPods];
    anyhow::ensure!(
        stages.iter().any(|p| !p.chosen(&only).is_empty()) || GUIDE.contains(&only),
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
    for stage in stages {
        let names = stage.chosen(&only);
        if names.is_empty() {
            continue;
        }
        let dir = tempfile::Builder::new().prefix("rds-e2e").tempdir()?;
        let failures = match stage.set(dir.path()).await {
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
    let (appliance, cluster) = Bench::begin(dir.path(), "xfs").await?;
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
