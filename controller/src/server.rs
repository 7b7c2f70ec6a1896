//! The process: socket, services, signals.
//!
//! Clients speak gRPC over a unix socket and must send an `:authority` that is a host name;
//! Go's grpc (kubelet, sidecars, csi-sanity) sends `localhost`. The HTTP/2 library refuses a
//! path there, as only clients of 2021 and before send.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rds_csi_proto::csi::controller_server::ControllerServer;
use rds_csi_proto::csi::identity_server::IdentityServer;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::adopt;
use crate::appliances::{self, ApplianceConfig};
use crate::config::{Args, DEFAULT_CLUSTER};
use crate::credentials::CredentialsDir;
use crate::csi::Service;
use crate::fleet::Fleet;
use crate::kubernetes::bound::Bound;
use crate::kubernetes::cache::Cache;
use crate::kubernetes::leader::Leader;
use crate::kubernetes::reconcile::Reconciler;
use crate::kubernetes::story::Notes;
use crate::kubernetes::telling::Teller;
use crate::kubernetes::users::Users;
use crate::kubernetes::{self, Cluster};
use crate::metrics::{self, Metrics, Role};
use crate::operations::Operations;
use crate::orphans;
use crate::routeros::{Appliance, Gate, transport};
use crate::rules::owner::Hosts;
use crate::volumes::{AttachSettings, Attachments, Settings, Silence, Story, Volumes};
use crate::watch::watch;

/// What is running may finish; kubelet kills after 30 s by default.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(25);
/// How soon appliances that did not answer are asked again what is attached.
const COUNT_AGAIN: Duration = Duration::from_secs(15);
/// For the last answers to be written.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: the socket is served by another process, an address is in use, or there
/// is no cluster. And if another replica may lead now.
pub async fn run(args: Args) -> anyhow::Result<()> {
    announce(&args);
    let metrics = Arc::new(Metrics::new()?);
    let stop = CancellationToken::new();
    let alone = args.no_kubernetes || args.orphans.orphans;
    let cluster = match alone {
        true => None,
        false => Some(kubernetes::connect(&args.kubernetes).await?),
    };
    // Neither waits to lead: what they change no leader touches, nor they what it has.
    let leads = alone || args.adoption.adopt;
    let gate = Arc::new(if leads { Gate::open() } else { Gate::shut() });
    let notes = Arc::new(Notes::default());
    let story: Arc<dyn Story> = match alone {
        true => Arc::new(Silence),
        false => Arc::clone(&notes) as _,
    };
    let (mut members, mut all) = (Vec::new(), Vec::new());
    for config in appliances::read(&args)? {
        let appliance = open(&config, &metrics, &gate).await;
        all.push(Arc::clone(&appliance));
        let users = cluster.as_ref().map(|c| Users::new(c, args.driver_name.as_str()));
        let told = (metrics.attachments(), Arc::clone(&story));
        members.push(volumes(config, appliance, &args, told, users));
    }
    if args.orphans.orphans {
        return orphans::run(&args.orphans, &members).await;
    }
    if args.adoption.adopt {
        let cluster = cluster.as_ref().context("--adopt has to ask Kubernetes")?;
        let bound = Bound::new(Users::new(cluster, args.driver_name.as_str()));
        return adopt::run(args.orphans.yes, &bound, &members).await;
    }
    let operations = Operations::default();
    let fleet = Arc::new(Fleet::new(members));
    let service = Service::new(
        args.driver_name.as_str(),
        Arc::clone(&fleet),
        operations.clone(),
        Arc::clone(&metrics),
        Arc::clone(&gate),
    );

    if let Some(address) = args.metrics_addr {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve metrics on {address}"))?;
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!(%address, "serving metrics");
        tokio::spawn(metrics::serve(listener, Arc::clone(&metrics), stop.clone()));
    }
    let path = &args.endpoint.0;
    let listener = bind(path).await?;
    tokio::spawn(stop_on_signal(stop.clone())?);
    tracing::info!(socket = %path.display(), "serving");
    let reconciler = cluster.as_ref().map(|cluster| Reconciler {
        users: Users::new(cluster, args.driver_name.as_str()),
        fleet: Arc::clone(&fleet),
        operations: operations.clone(),
        results: metrics.reconciles(),
        patience: args.kubernetes.patience(),
    });
    let mut leadership = cluster.as_ref().map(|cluster| {
        let (names, pod) = (&args.kubernetes, args.kubernetes.pod());
        let namespace = names.leader_election_namespace.as_deref();
        let lease = (args.driver_name.as_str(), pod.as_str());
        Leader::start(cluster, namespace, lease, Arc::clone(&gate), Arc::clone(&metrics))
    });
    let serving = Server::builder()
        .add_service(IdentityServer::new(service.clone()))
        .add_service(ControllerServer::new(service))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
    // A caller that is merely connected may stay so for ever; one that waits for an
    // operation gets its answer.
    let drained = async {
        stop.cancelled().await;
        let all = operations.drain(SHUTDOWN_LIMIT).await;
        tokio::time::sleep(LAST_ANSWERS).await;
        all
    };
    let lost = async {
        match &mut leadership {
            None => metrics.set_role(Role::Alone),
            Some(leadership) => {
                leadership.gained().await;
                tokio::spawn(count(Arc::clone(&fleet), stop.clone()));
                if let Some(reconciler) = reconciler {
                    tokio::spawn(reconciler.run(stop.clone()));
                }
            }
        }
        if let Some(cluster) = &cluster {
            tell(cluster, &args, Arc::clone(&notes), &stop);
        }
        readings(&all, &args, &metrics, &stop);
        match &mut leadership {
            None => std::future::pending().await,
            Some(leadership) => leadership.lost().await,
        }
    };
    let drained = {
        tokio::pin!(drained, lost);
        tokio::select! {
            served = serving => {
                served.context("the gRPC server failed")?;
                Some(drained.await)
            }
            all = &mut drained => Some(all),
            () = lost => None,
        }
    };
    let Some(mut drained) = drained else {
        stop.cancel();
        // What was sent is answered, or given up, before others may lead.
        tokio::select! {
            _ = operations.drain(SHUTDOWN_LIMIT) => tokio::time::sleep(LAST_ANSWERS).await,
            () = gate.over() => {}
        }
        bail!("the lease is lost and another replica may lead: ends, to be started anew");
    };
    gate.close();
    if let Some(leadership) = leadership {
        // What came in at the last moment.
        drained &= operations.drain(LAST_ANSWERS).await;
        if drained {
            leadership.release().await;
        }
    }
    if !drained {
        // The appliance's items say how far each came; the next call goes on from there.
        tracing::warn!("operations are still running; the next call for each continues it");
    }
    std::fs::remove_file(path).ok();
    tracing::info!("stopped");
    Ok(())
}

/// A client of one appliance. Nothing is sent yet.
async fn open(
    config: &ApplianceConfig,
    metrics: &Arc<Metrics>,
    gate: &Arc<Gate>,
) -> Arc<Appliance> {
    let credentials = CredentialsDir::new(&config.credentials);
    if let Err(e) = credentials.check(config.url.scheme()).await {
        // Not fatal: the Secret may be mended while we run, and every call says so.
        tracing::error!(rds = %config.name, "{e}");
    }
    let transport = transport(config.url.clone(), credentials);
    let appliance = Appliance::new(transport, Arc::clone(metrics)).named(config.name.clone());
    Arc::new(appliance.behind(Arc::clone(gate)))
}

/// Begins to ask the appliances for their readings.
fn readings(all: &[Arc<Appliance>], args: &Args, metrics: &Arc<Metrics>, stop: &CancellationToken) {
    if args.metrics_addr.is_none() || args.readings_interval == 0 {
        return;
    }
    let every = Duration::from_secs(args.readings_interval);
    for appliance in all {
        let (own, metrics) = (Arc::clone(appliance), Arc::clone(metrics));
        tokio::spawn(watch(own, metrics, every, stop.clone()));
    }
}

/// Begins to tell the cluster what happens.
fn tell(cluster: &Cluster, args: &Args, notes: Arc<Notes>, stop: &CancellationToken) {
    let cache = Cache::start(cluster, args.driver_name.as_str(), stop);
    let pod = args.kubernetes.pod();
    let teller = Teller::new(cluster, cache, args.driver_name.as_str(), &pod);
    let stop = stop.clone();
    tokio::spawn(async move { notes.tell(teller, stop).await });
}

/// Counts what is attached, for the metrics of a new leader. No call waits for that: each reads
/// the record of its own volume, and one on an appliance that is away fails by itself.
async fn count(fleet: Arc<Fleet>, stop: CancellationToken) {
    let all = async {
        while !fleet.count().await {
            tokio::time::sleep(COUNT_AGAIN).await;
        }
    };
    tokio::select! {
        () = all => tracing::info!("all attachments are counted"),
        () = stop.cancelled() => {}
    }
}

fn volumes(
    config: ApplianceConfig,
    appliance: Arc<Appliance>,
    args: &Args,
    (attachments, story): (Arc<Attachments>, Arc<dyn Story>),
    users: Option<Users>,
) -> Volumes {
    let settings = Settings {
        cluster: args.cluster_id.clone(),
        name: config.name,
        roots: config.roots,
        rds: config.url,
        nvme_address: config.nvme_address,
        topology: config.topology,
        nodes: args.nodes.clone(),
        attach: AttachSettings {
            hosts: match (args.allow_host_list, args.no_kubernetes) {
                (true, _) => Hosts::PerNode,
                (false, false) => Hosts::Gated,
                // Nobody whom the agents could ask.
                (false, true) => Hosts::One,
            },
            allow_shared_block: args.allow_shared_block,
            prove_off: args.prove_export_off,
        },
        users,
    };
    Volumes::new(settings, appliance, attachments, story)
}

fn announce(args: &Args) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        driver = %args.driver_name,
        rds = %args.rds_url,
        cluster = %args.cluster_id,
        "rds-csi-controller starts"
    );
    if args.cluster_id.as_str() == DEFAULT_CLUSTER {
        tracing::warn!(
            "no --cluster-id: a second cluster on this appliance without one would take these \
             volumes for its own"
        );
    }
}

/// Listens on the socket. One that a dead process left is removed; anything else in the way
/// is not ours to remove.
async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
        Ok(found) if !found.file_type().is_socket() => {
            bail!(
                "{} exists and is not a socket; remove it or choose another --endpoint",
                path.display()
            )
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
                    .with_context(|| format!("cannot remove stale {}", path.display()))?;
            }
            Ok(_) => bail!("another process serves {}", path.display()),
            Err(e) => return Err(e).with_context(|| format!("cannot probe {}", path.display())),
        },
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // Sidecars may run as another user of the pod's group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

fn stop_on_signal(
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: no new calls, what runs is finished");
        stop.cancel();
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn only_a_stale_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let first = bind(&path).await.unwrap();
        let error = bind(&path).await.unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(first);
        drop(bind(&path).await.unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).await.unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
