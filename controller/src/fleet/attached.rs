//! All attachments on record, for comparing them with what is asked for.

use futures::future::join_all;
use rds_csi_proto::ids::NodeName;

use super::Fleet;
use crate::rules::owner::{NodeKey, Stage};
use crate::rules::stale::Place;

impl Fleet {
    /// What is attached where, of the appliances that answer, and whether one did not.
    pub(crate) async fn attached(&self) -> (Vec<Place>, bool) {
        let looks = self.members.iter().map(|member| async move {
            let seen = member.all().await;
            if let Err(error) = &seen {
                tracing::warn!(rds = %member.name(), "cannot see what is attached: {error}");
            }
            seen.ok()
        });
        let (mut places, mut unseen) = (Vec::new(), false);
        for seen in join_all(looks).await {
            let Some(seen) = seen else {
                unseen = true;
                continue;
            };
            for one in seen {
                if let Stage::Attached(attachment) = &one.tag.stage {
                    let nodes = attachment.nodes();
                    places.extend(nodes.map(|node| (one.tag.volume.clone(), node.clone())));
                }
            }
        }
        (places, unseen)
    }

    /// The node's name, where it is known in full.
    pub(crate) fn node_of(&self, key: &NodeKey) -> Option<NodeName> {
        let known = self.nodes().get(key).cloned();
        known.or_else(|| key.to_string().parse().ok().filter(|name| NodeKey::of(name) == *key))
    }
}
