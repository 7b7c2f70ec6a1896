//! Looks now and then whether each attachment on the appliances is one that Kubernetes asks for,
//! and detaches what is not, by the rule in [`crate::rules::stale`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use prometheus::IntCounterVec;
use rds_csi_proto::ids::{NodeName, VolumeId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::WATCH_SECONDS;
use super::users::{Users, claim_of, uses};
use crate::error::Error;
use crate::fleet::Fleet;
use crate::operations::Operations;
use crate::rules::owner::NodeKey;
use crate::rules::stale::{Asked, Place, Stale};

/// How often it looks by itself, or more often where a shorter time is asked for. Each look is one list of all volumes from each appliance, and
/// one of all VolumeAttachments and PersistentVolumes.
const EVERY: Duration = Duration::from_secs(60);
/// After something went away, for what follows it (a node takes its attachments along).
const SETTLE: Duration = Duration::from_secs(5);
/// For the questions to Kubernetes of one look.
const LIMIT: Duration = Duration::from_secs(30);

/// What a look came to.
#[derive(Debug)]
enum Problem {
    Kubernetes(kube::Error),
    TooSlow,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kubernetes(e) => write!(f, "{e}"),
            Self::TooSlow => write!(f, "no answer within {} s", LIMIT.as_secs()),
        }
    }
}

impl From<kube::Error> for Problem {
    fn from(e: kube::Error) -> Self {
        Self::Kubernetes(e)
    }
}

/// Looks, by its own task, while this replica leads.
pub(crate) struct Reconciler {
    pub(crate) users: Users,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) operations: Operations,
    pub(crate) results: IntCounterVec,
    /// Nothing is detached without it.
    pub(crate) patience: Option<Duration>,
}

impl Reconciler {
    /// Looks until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let gone = Arc::new(Notify::new());
        tokio::spawn(tell_of_departures(self.users.clone(), Arc::clone(&gone), stop.clone()));
        let mut stale = Stale::after(self.patience.unwrap_or(EVERY));
        let every = self.patience.map_or(EVERY, |p| (p / 3).min(EVERY));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
                () = gone.notified() => tokio::time::sleep(SETTLE).await,
            }
            match self.look(&mut stale).await {
                Ok(()) => self.count("ok"),
                Err(e) => {
                    self.count("failed");
                    tracing::warn!("cannot compare attachments with Kubernetes: {e}");
                }
            }
        }
    }

    fn count(&self, result: &str) {
        self.results.with_label_values(&[result]).inc();
    }

    async fn look(&self, stale: &mut Stale) -> Result<(), Problem> {
        // The records first: whoever is on record was asked for before.
        let (records, unseen) = self.fleet.attached().await;
        let asked = self.asked().await?;
        if !asked.unresolved.is_empty() {
            tracing::warn!(
                "VolumeAttachments of which the volume is not known ({}): nothing is taken for \
                 stale",
                asked.unresolved.join(", ")
            );
        }
        for place in stale.look(&records, |_| unseen, &asked, Instant::now()) {
            let (volume, node) = &place;
            match self.detach(&place).await {
                Ok(None) => {
                    self.count("detached");
                    tracing::warn!(
                        %volume, %node,
                        "detached: no VolumeAttachment and no pod on that node asked for it"
                    );
                }
                Ok(Some(why)) => {
                    self.count("kept");
                    tracing::warn!(%volume, %node, "attached without a VolumeAttachment, and left: {why}");
                }
                Err(e) => {
                    self.count("failed");
                    tracing::warn!(%volume, %node, "cannot detach what nothing asks for: {e}");
                }
            }
            stale.forget(&place);
        }
        Ok(())
    }

    /// Detaches it, unless something speaks against that; what.
    async fn detach(&self, place: &Place) -> Result<Option<String>, Error> {
        if self.patience.is_none() {
            return Ok(Some("--detach-stale-after is 0".into()));
        }
        let (volume, key) = place.clone();
        let (users, fleet) = (self.users.clone(), Arc::clone(&self.fleet));
        let limit = Some(Duration::from_secs(60));
        // As the only operation on the volume: none can be attached between the last question
        // and the change.
        self.operations
            .run("Reconcile", &place.0, limit, async move {
                match against(&users, &volume, &key).await {
                    Ok(None) => {}
                    Ok(why) => return Ok(why),
                    Err(e) => return Ok(Some(format!("Kubernetes cannot be asked: {e}"))),
                }
                let Some(node) = node_name(&users, &fleet, &key).await else {
                    return Ok(Some(format!(
                        "its record has only a part of the node's name ({key}), and no node is \
                         called so"
                    )));
                };
                fleet.unpublish(&volume, Some(&node)).await.map(|()| None)
            })
            .await
    }

    async fn asked(&self) -> Result<Asked, Problem> {
        tokio::time::timeout(LIMIT, asked(&self.users)).await.map_err(|_| Problem::TooSlow)?
    }
}

/// All that VolumeAttachments of this driver ask for.
async fn asked(users: &Users) -> Result<Asked, Problem> {
    let attachments: Api<VolumeAttachment> = Api::all(users.client());
    let volumes: Api<PersistentVolume> = Api::all(users.client());
    let attachments = attachments.list(&ListParams::default()).await?;
    let volumes = volumes.list(&ListParams::default()).await?;
    let handles: HashMap<String, VolumeId> =
        volumes.iter().filter_map(|pv| Some((pv.name_any(), users.handle(pv)?))).collect();
    let mut asked = Asked::default();
    for attachment in attachments.iter().filter(|a| a.spec.attacher == users.driver()) {
        let name = attachment.spec.source.persistent_volume_name.as_ref();
        let volume = name.and_then(|name| handles.get(name));
        let node = attachment.spec.node_name.parse::<NodeName>().ok();
        match (volume, node) {
            (Some(volume), Some(node)) => {
                asked.places.insert((volume.clone(), NodeKey::of(&node)));
            }
            _ => asked.unresolved.push(attachment.name_any()),
        }
    }
    Ok(asked)
}

/// What speaks against detaching a volume, if anything.
async fn against(
    users: &Users,
    volume: &VolumeId,
    node: &NodeKey,
) -> Result<Option<String>, Problem> {
    let ask = async {
        let asked = asked(users).await?;
        if !asked.unresolved.is_empty() || asked.places.contains(&(volume.clone(), node.clone())) {
            return Ok(Some("a VolumeAttachment may ask for it by now".to_owned()));
        }
        // Two clusters that were given the same cluster id take each other's volumes for their
        // own; this one would detach all of the other's.
        let Some(pv) = users.persistent_volume(volume).await? else {
            return Ok(Some("no PersistentVolume here has it: it may be another cluster's".into()));
        };
        let Some((namespace, claim)) = claim_of(&pv) else { return Ok(None) };
        let here =
            |name: &String| name.parse::<NodeName>().is_ok_and(|name| &NodeKey::of(&name) == node);
        let pods = users.pods(&namespace).await?;
        let user = pods.iter().find(|pod| {
            let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            uses(pod, &claim) && on.is_some_and(here)
        });
        Ok(user.map(|pod| format!("pod {namespace}/{} there uses it", pod.name_any())))
    };
    tokio::time::timeout(LIMIT, ask).await.map_err(|_| Problem::TooSlow)?
}

/// The name of a node, of which a record may have only a part.
async fn node_name(users: &Users, fleet: &Fleet, key: &NodeKey) -> Option<NodeName> {
    if let Some(known) = fleet.node_of(key) {
        return Some(known);
    }
    let nodes: Api<Node> = Api::all(users.client());
    let everything = ListParams::default();
    let all = nodes.list_metadata(&everything);
    let all = tokio::time::timeout(LIMIT, all).await.ok()?.ok()?;
    let mut names = all.iter().filter_map(|node| node.name_any().parse::<NodeName>().ok());
    names.find(|name| &NodeKey::of(name) == key)
}

/// Wakes the reconciler when a node or a VolumeAttachment is gone.
async fn tell_of_departures(users: Users, gone: Arc<Notify>, stop: CancellationToken) {
    let nodes = Api::<PartialObjectMeta<Node>>::all(users.client());
    let attachments = Api::<PartialObjectMeta<VolumeAttachment>>::all(users.client());
    let departures = || watcher::Config::default().timeout(WATCH_SECONDS);
    let nodes = watcher(nodes, departures()).default_backoff().map(|e| is_departure(&e));
    let attachments =
        watcher(attachments, departures()).default_backoff().map(|e| is_departure(&e));
    let both = futures::stream::select(nodes, attachments).take_until(stop.cancelled_owned());
    both.for_each(|departed| {
        if departed {
            gone.notify_one();
        }
        std::future::ready(())
    })
    .await;
}

fn is_departure<K>(event: &Result<watcher::Event<K>, watcher::Error>) -> bool {
    matches!(event, Ok(watcher::Event::Delete(_)))
}
