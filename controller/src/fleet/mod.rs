//! All appliances together: which one a new volume goes to, and on which one a volume is.
//!
//! Each appliance has its own client, and so its own queue: one that is down delays only
//! what is meant for it. Requests that have nothing but a volume's id go to the appliance
//! that is known to have it; that knowledge is only a hint, kept in memory. Where there is
//! none, or it turns out stale, all are asked. A volume that no appliance shows while one of
//! them does not answer is not known to be absent.

mod attached;
mod beside;
mod choose;
mod find;
mod list;
mod snapshots;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rds_csi_proto::csi;
use rds_csi_proto::ids::{NodeName, VolumeId};

use crate::error::Error;
use crate::routeros::DiskItem;
use crate::rules::owner::NodeKey;
use crate::volumes::{CreatePlan, PublishRequest, Volumes};

/// All appliances, the main one first.
pub(crate) struct Fleet {
    members: Vec<Arc<Volumes>>,
    /// Where volumes were last seen, as an index into `members`.
    seen: Mutex<HashMap<VolumeId, usize>>,
    /// Nodes by the name that owner tags have for them.
    nodes: Mutex<HashMap<NodeKey, NodeName>>,
}

impl Fleet {
    /// At least one appliance.
    pub(crate) fn new(members: Vec<Volumes>) -> Self {
        let nodes: HashMap<_, _> = members
            .iter()
            .flat_map(|m| m.nodes())
            .map(|node| (NodeKey::of(node), node.clone()))
            .collect();
        Self {
            members: members.into_iter().map(Arc::new).collect(),
            seen: Mutex::default(),
            nodes: Mutex::new(nodes),
        }
    }

    /// The map is whole after any panic: each use is a single insertion, removal or look-up.
    fn seen(&self) -> MutexGuard<'_, HashMap<VolumeId, usize>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeKey, NodeName>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether some volumes are not reached from everywhere.
    pub(crate) fn has_topology(&self) -> bool {
        self.members.iter().any(|member| !member.topology().is_empty())
    }

    /// Whether at least one appliance can be used.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let mut asked: FuturesUnordered<_> = self
            .members
            .iter()
            .map(|member| async move { (member.name(), member.probe().await) })
            .collect();
        let mut first = None;
        while let Some((name, result)) = asked.next().await {
            match result {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(rds = %name, "{error}");
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| Error::Internal("no appliance is configured".into())))
    }

    /// Makes the volume on the appliance that the request means, or finds that it was made.
    pub(crate) async fn create(&self, plan: &CreatePlan) -> Result<csi::Volume, Error> {
        let at = match &plan.source {
            None => self.choose(plan).await?,
            Some(source) => self.beside(plan, source).await?,
        };
        let member = self.member(at)?;
        let made = member.create(plan).await;
        if made.is_ok() {
            self.seen().insert(plan.volume.clone(), at);
        }
        made
    }

    /// Deletes the volume, or finds that it does not exist.
    pub(crate) async fn delete(&self, volume: &VolumeId) -> Result<(), Error> {
        let done = self.at_holder(volume, |member| async move { member.delete(volume).await });
        if done.await?.is_none() {
            for member in &self.members {
                member.refuse_orphan(volume).await?;
            }
        }
        self.seen().remove(volume);
        Ok(())
    }

    /// Attaches the volume to a node, or finds that it is.
    pub(crate) async fn publish(
        &self,
        request: &PublishRequest,
    ) -> Result<HashMap<String, String>, Error> {
        let volume = &request.volume;
        self.learn(&request.node);
        self.at_holder(volume, |member| async move { member.publish(request).await })
            .await?
            .ok_or_else(|| Error::NotFound(volume.to_string()))
    }

    /// Detaches the volume from a node, or from all; on return the node cannot have it.
    pub(crate) async fn unpublish(
        &self,
        volume: &VolumeId,
        node: Option<&NodeName>,
    ) -> Result<(), Error> {
        // A volume that exists nowhere is attached nowhere.
        self.at_holder(volume, |member| async move { member.unpublish(volume, node).await })
            .await
            .map(drop)
    }

    /// Whether the volume exists and is ours; anything else is an error.
    pub(crate) async fn must_exist(&self, volume: &VolumeId) -> Result<DiskItem, Error> {
        self.at_holder(volume, |member| async move { member.must_exist(volume).await })
            .await?
            .ok_or_else(|| Error::NotFound(volume.to_string()))
    }

    fn member(&self, at: usize) -> Result<&Arc<Volumes>, Error> {
        self.members.get(at).ok_or_else(|| Error::Internal(format!("no appliance {at}")))
    }
}
