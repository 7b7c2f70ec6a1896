//! ListVolumes, ControllerGetVolume and GetCapacity over all appliances.

use futures::future::{join_all, try_join_all};
use rds_csi_proto::csi::controller_get_volume_response::VolumeStatus as GotStatus;
use rds_csi_proto::csi::list_volumes_response::{Entry, VolumeStatus};
use rds_csi_proto::csi::{
    ControllerGetVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest,
    ListVolumesResponse, TopologyRequirement,
};
use rds_csi_proto::ids::{NodeName, VolumeId};
use rds_csi_proto::params::VolumeParams;

use super::Fleet;
use crate::error::Error;
use crate::rules::capability;
use crate::rules::owner::NodeKey;
use crate::rules::size::{GRANULE, SizePlan, csi_bytes};
use crate::volumes::Seen;

/// Entries of a page. Each page is one request to each appliance.
const PAGE: usize = 1000;

impl Fleet {
    /// A page of all volumes, in the order of their ids. The token is the last id of the
    /// page before: it means the same after a restart, and when volumes come and go.
    pub(crate) async fn list(
        &self,
        request: &ListVolumesRequest,
    ) -> Result<ListVolumesResponse, Error> {
        let entries = usize::try_from(request.max_entries)
            .map_err(|_| Error::Invalid("max_entries cannot be negative".into()))?;
        let entries = if entries == 0 { PAGE } else { entries.min(PAGE) };
        let after: Option<VolumeId> = match request.starting_token.as_str() {
            "" => None,
            token => {
                Some(token.parse().map_err(|_| Error::Token(token.chars().take(80).collect()))?)
            }
        };
        // All of them or an error: whatever is not listed is taken for gone.
        let all = try_join_all(self.members.iter().enumerate().map(|(at, member)| async move {
            let seen = member.all().await.map_err(|e| e.of_appliance(member.name()))?;
            Ok::<_, Error>(seen.into_iter().map(move |s| (at, s)))
        }))
        .await?;
        let mut all: Vec<(usize, Seen)> = all.into_iter().flatten().collect();
        {
            let mut known = self.seen();
            known.extend(all.iter().map(|(at, s)| (s.tag.volume.clone(), *at)));
        }
        all.retain(|(_, s)| after.as_ref().is_none_or(|a| &s.tag.volume > a));
        all.sort_by(|(_, a), (_, b)| a.tag.volume.cmp(&b.tag.volume));
        let more = all.len() > entries;
        all.truncate(entries);
        let next_token = match all.last() {
            Some((_, last)) if more => last.item.slot.clone(),
            _ => String::new(),
        };
        let entries =
            all.iter().map(|(at, seen)| self.entry(*at, seen)).collect::<Result<_, _>>()?;
        Ok(ListVolumesResponse { entries, next_token })
    }

    /// Looks at all volumes once, so that what is attached is counted; whether all answered.
    pub(crate) async fn count(&self) -> bool {
        let looks = self.members.iter().enumerate().map(|(at, member)| async move {
            match member.all().await {
                Ok(seen) => {
                    member.count(&seen);
                    self.seen().extend(seen.into_iter().map(|s| (s.tag.volume, at)));
                    true
                }
                Err(error) => {
                    tracing::warn!(rds = %member.name(), "cannot count attachments: {error}");
                    false
                }
            }
        });
        join_all(looks).await.into_iter().all(|answered| answered)
    }

    fn entry(&self, at: usize, seen: &Seen) -> Result<Entry, Error> {
        Ok(Entry {
            volume: Some(self.member(at)?.show(seen)?),
            status: Some(VolumeStatus {
                published_node_ids: self.node_ids(seen),
                volume_condition: Some(seen.condition()),
            }),
        })
    }

    /// One volume and what is wrong with it. That its appliance does not answer is no
    /// condition of the volume: it is an error.
    pub(crate) async fn get(
        &self,
        volume: &VolumeId,
    ) -> Result<ControllerGetVolumeResponse, Error> {
        let (shown, seen) = self
            .at_holder(volume, |member| async move {
                let seen = member.inspect(volume).await?;
                Ok((member.show(&seen)?, seen))
            })
            .await?
            .ok_or_else(|| Error::NotFound(volume.to_string()))?;
        Ok(ControllerGetVolumeResponse {
            volume: Some(shown),
            status: Some(GotStatus {
                published_node_ids: self.node_ids(&seen),
                volume_condition: Some(seen.condition()),
            }),
        })
    }

    /// What can still be promised where a request with these parameters would go.
    pub(crate) async fn capacity(
        &self,
        request: &GetCapacityRequest,
    ) -> Result<GetCapacityResponse, Error> {
        request.volume_capabilities.iter().try_for_each(|c| capability::check(c).map(drop))?;
        let params = VolumeParams::from_storage_class(&request.parameters)?;
        let wanted = request
            .accessible_topology
            .clone()
            .map(|place| TopologyRequirement { requisite: vec![place], preferred: Vec::new() });
        let chosen =
            self.select(params.rds.as_ref(), params.rds_address.as_deref(), wanted.as_ref()).await;
        let bytes = match chosen {
            Ok(at) => self.member(at)?.available(params.volume_path.as_deref()).await?,
            // Nothing can be made there; that is an answer and no error.
            Err(Error::NoTopology(_)) => 0,
            Err(error) => return Err(error),
        };
        let bytes = csi_bytes(bytes)?;
        Ok(GetCapacityResponse {
            available_capacity: bytes,
            maximum_volume_size: Some(bytes),
            minimum_volume_size: Some(csi_bytes(GRANULE)?),
        })
    }

    /// Makes a volume as large as asked for, or finds that it is; its exact size.
    pub(crate) async fn expand(&self, volume: &VolumeId, plan: &SizePlan) -> Result<u64, Error> {
        self.at_holder(volume, |member| async move { member.expand(volume, plan).await })
            .await?
            .ok_or_else(|| Error::NotFound(volume.to_string()))
    }

    /// Remembers a node's name, which the owner tag may hold shortened.
    pub(super) fn learn(&self, node: &NodeName) {
        self.nodes().insert(NodeKey::of(node), node.clone());
    }

    /// The nodes that hold a volume. One whose shortened name this controller has not heard
    /// in full yet is left out; it learns it when the attacher, missing it, attaches again,
    /// which changes nothing.
    fn node_ids(&self, seen: &Seen) -> Vec<String> {
        let names = self.nodes();
        let name = |key: &&NodeKey| match names.get(*key) {
            Some(name) => Some(name.to_string()),
            None => Some(key.to_string()).filter(|text| !text.contains('~')),
        };
        seen.holders().iter().filter_map(name).collect()
    }
}
