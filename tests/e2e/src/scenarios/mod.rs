//! What is shown, each in a namespace of its own.

pub(crate) mod capacity;
mod driver;
mod failures;
mod life;
mod machines;
mod nodes;
mod snapshots;
mod workloads;

use std::path::Path;
use std::time::Instant;

use crate::bench::{Agent, Bench};

/// What there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nodes that are ours to play, and a pool that makes snapshots at once.
    Btrfs,
    /// The same with a pool that can only copy.
    Xfs,
    /// Guests with a real kubelet, and a pool that makes snapshots at once.
    Kubelets,
    /// The same, and the agent is a pod as well.
    AgentPods,
}

impl Stage {
    /// Everything that runs there.
    pub(crate) async fn set(self, dir: &Path) -> anyhow::Result<Bench> {
        match self {
            Self::Btrfs => Bench::start(dir, "btrfs").await,
            Self::Xfs => Bench::start(dir, "xfs").await,
            Self::Kubelets => Bench::start_with_kubelets(dir, Agent::OnHost).await,
            Self::AgentPods => Bench::start_with_kubelets(dir, Agent::InPod).await,
        }
    }

    /// The scenarios that need it.
    const fn scenarios(self) -> &'static [&'static str] {
        match self {
            Self::Btrfs => &[
                "life-provision",
                "life-attach",
                "life-second-node",
                "life-grow",
                "capacity-late-binding",
                "snapshots-restore",
                "machines-migration",
                "failures-leader-killed",
                "failures-namespace-deleted",
                // Last, since a node is missing afterwards.
                "failures-node-lost",
            ],
            Self::Xfs => &["snapshots-full-copy"],
            Self::Kubelets => &[
                "nodes-outages",
                "nodes-grow",
                "nodes-snapshot",
                "nodes-driver-restarted",
                "nodes-stateful-set",
                "nodes-rescheduled",
                "nodes-machine-moves",
                "nodes-namespace-deleted",
                // Last, since a node is missing afterwards.
                "nodes-killed",
            ],
            Self::AgentPods => &["agent-pods-outages", "agent-pods-restarted"],
        }
    }

    /// Those of which the name contains the text.
    pub(crate) fn chosen(self, only: &str) -> Vec<&'static str> {
        self.scenarios().iter().copied().filter(|name| name.contains(only)).collect()
    }
}

async fn scenario(bench: &Bench, name: &str) -> anyhow::Result<()> {
    bench.namespace(name).await?;
    match name {
        "life-provision" => life::provision(bench, name).await,
        "life-attach" => life::attach(bench, name).await,
        "life-second-node" => life::second_node(bench, name).await,
        "life-grow" => life::grow(bench, name).await,
        "capacity-late-binding" => capacity::late_binding(bench, name).await,
        "snapshots-restore" => snapshots::restore(bench, name).await,
        "snapshots-full-copy" => snapshots::full_copy(bench, name).await,
        "machines-migration" => machines::migration(bench, name).await,
        "failures-leader-killed" => failures::leader_killed(bench, name).await,
        "failures-namespace-deleted" => failures::namespace_deleted(bench, name).await,
        "failures-node-lost" => failures::node_lost(bench, name).await,
        "nodes-outages" | "agent-pods-outages" => nodes::outages(bench, name).await,
        "nodes-grow" => nodes::grow(bench, name).await,
        "nodes-snapshot" => nodes::snapshot(bench, name).await,
        "nodes-driver-restarted" | "agent-pods-restarted" => driver::restarted(bench, name).await,
        "nodes-stateful-set" => workloads::stateful_set(bench, name).await,
        "nodes-rescheduled" => workloads::rescheduled(bench, name).await,
        "nodes-machine-moves" => workloads::machine_moves(bench, name).await,
        "nodes-namespace-deleted" => nodes::namespace_deleted(bench, name).await,
        "nodes-killed" => nodes::killed(bench, name).await,
        other => anyhow::bail!("no scenario {other}"),
    }
}

/// Runs these, and says how each ended; how many failed.
pub(crate) async fn run(bench: &mut Bench, names: &[&str]) -> usize {
    let mut failed = 0;
    for name in names {
        let begun = Instant::now();
        let done = scenario(bench, name).await;
        let seconds = begun.elapsed().as_secs_f32();
        match done {
            Ok(()) => println!("ok {name} ({seconds:.1} s)"),
            Err(error) => {
                failed += 1;
                println!("FAILED {name} ({seconds:.1} s): {error:#}");
            }
        }
    }
    let all =
        [("everything-runs-to-the-end", bench.cluster.all_run()), ("rights", rights(bench).await)];
    for (name, done) in all {
        match done {
            Ok(()) => println!("ok {name}"),
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error:#}");
            }
        }
    }
    failed
}

/// The chart gives controller and sidecars every right that they asked for.
async fn rights(bench: &Bench) -> anyhow::Result<()> {
    let account = "system:serviceaccount:rds-csi:rds-csi-controller";
    let mut forbidden = bench.cluster.server.forbidden_to(account)?;
    // The snapshotter asks whether there are groups, takes a refusal for no, and does without.
    forbidden.retain(|right| !right.ends_with(".groupsnapshot.storage.k8s.io"));
    // Where the chart has no snapshots, the provisioner asks once whether it may look after them,
    // and likewise does without.
    if !bench.has_snapshots().await? {
        forbidden.remove("list volumesnapshots.snapshot.storage.k8s.io");
    }
    anyhow::ensure!(forbidden.is_empty(), "asked for in vain: {forbidden:?}");
    Ok(())
}
