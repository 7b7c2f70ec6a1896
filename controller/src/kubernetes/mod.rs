//! The Kubernetes side of the controller, and the only place where its API is used.
//!
//! [`connect`] finds the cluster, [`leader`] decides which replica works (by the rule in
//! [`lease`]), [`cache`] follows the objects that others look up, [`users`] asks who uses a
//! volume, [`bound`] which volumes the cluster has and who could be using them, [`reconcile`] detaches what nothing asks for any more, [`story`] keeps what there is to
//! tell until [`telling`] has written it, in the words of [`tale`]. Without Kubernetes
//! (`--no-kubernetes`) nothing in here runs.

pub(crate) mod bound;
pub(crate) mod cache;
pub(crate) mod leader;
mod lease;
pub(crate) mod reconcile;
pub(crate) mod story;
mod tale;
pub(crate) mod telling;
pub(crate) mod users;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args as ClapArgs;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// An API server that is there answers within this, or the packets are lost.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Silence after which a watch counts as dead: longer than [`cache::WATCH_SECONDS`], by which a
/// living server has ended it.
const SILENCE_LIMIT: Duration = Duration::from_secs(cache::WATCH_SECONDS as u64 + 15);

/// How the cluster is reached.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Reach the Kubernetes API by this file [default: as the pod's service account]
    #[arg(long, env = "RDS_CSI_KUBECONFIG", value_name = "FILE", conflicts_with = "no_kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Where the Lease is by which one of several replicas leads; its name is the driver's
    /// [default: the pod's namespace, or that of the kubeconfig]
    #[arg(long, env = "RDS_CSI_LEADER_ELECTION_NAMESPACE", value_name = "NAMESPACE")]
    pub leader_election_namespace: Option<String>,

    /// After how many seconds without a VolumeAttachment that asks for it, and without a pod there
    /// that uses it, a volume is detached from a node. 0: never, it is only logged
    #[arg(
        long,
        env = "RDS_CSI_DETACH_STALE_AFTER",
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = parse_stale_after
    )]
    pub detach_stale_after: u64,

    /// What this replica calls itself in the Lease and in Events [default: the host's name]
    #[arg(long, env = "RDS_CSI_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
}

fn parse_stale_after(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(seconds) if seconds == 0 || (10..=86_400).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0, or a number of seconds from 10 to 86400".into()),
    }
}

impl KubernetesArgs {
    pub(crate) fn patience(&self) -> Option<Duration> {
        (self.detach_stale_after > 0).then(|| Duration::from_secs(self.detach_stale_after))
    }

    pub(crate) fn pod(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = self.pod_name.clone().or_else(host).unwrap_or_default();
        match name.trim() {
            "" => "rds-csi-controller".to_owned(),
            name => name.to_owned(),
        }
    }
}

/// A cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The one that we are in.
    pub(crate) namespace: String,
}

/// Reads how the cluster is reached. Nothing is sent yet: an API server that is away is no
/// reason not to start.
///
/// # Errors
/// If that is told nowhere, or cannot be used.
pub(crate) async fn connect(args: &KubernetesArgs) -> anyhow::Result<Cluster> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let shown = path.display();
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot use --kubeconfig {shown}"))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use --kubeconfig {shown}"))?
        }
        None => Config::incluster().map_err(|e| {
            anyhow!(
                "this is no pod with a service account ({e}): give --kubeconfig FILE, or \
                 --no-kubernetes to run without Kubernetes"
            )
        })?,
    };
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
    // Whoever asks knows until when an answer is of use.
    config.default_retry = false;
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).context("cannot make a client for Kubernetes")?;
    Ok(Cluster { client, namespace })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u, namespace: storage}}]
clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: u, user: {token: t}}]
";

    #[tokio::test]
    async fn a_kubeconfig_names_the_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, FILE).unwrap();
        let args = KubernetesArgs { kubeconfig: Some(path.clone()), ..Default::default() };
        assert_eq!(connect(&args).await.unwrap().namespace, "storage");
        std::fs::write(&path, "nonsense").unwrap();
        let error = format!("{:#}", connect(&args).await.err().unwrap());
        assert!(error.contains("cannot use --kubeconfig"), "{error}");
    }

    #[tokio::test]
    async fn no_cluster_at_all_says_what_to_give() {
        let error = format!("{:#}", connect(&KubernetesArgs::default()).await.err().unwrap());
        assert!(error.contains("--kubeconfig") && error.contains("--no-kubernetes"), "{error}");
    }
}
