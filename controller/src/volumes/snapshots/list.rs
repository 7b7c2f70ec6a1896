//! ListSnapshots: from the tags of all items, in the order of their ids. The token of a page
//! is the last id on the one before, so that what is made or deleted meanwhile shifts nothing.

use rds_csi_proto::csi::list_snapshots_response::Entry;
use rds_csi_proto::csi::{ListSnapshotsRequest, ListSnapshotsResponse};
use rds_csi_proto::ids::SnapshotId;

use super::view;
use crate::error::Error;
use crate::routeros::wire::Slot;
use crate::rules::snapshot::SnapTag;
use crate::volumes::Volumes;

/// A ListSnapshots, checked.
#[derive(Debug, Clone)]
pub(crate) struct ListPlan {
    /// `Some(None)`: one that cannot exist.
    snapshot: Option<Option<SnapshotId>>,
    source: Option<String>,
    after: Option<SnapshotId>,
    limit: usize,
}

impl ListPlan {
    pub(crate) fn new(request: ListSnapshotsRequest) -> Result<Self, Error> {
        let given = |text: String| Some(text).filter(|t| !t.is_empty());
        let limit = usize::try_from(request.max_entries).map_err(|_| {
            Error::Invalid(format!("max_entries {} is negative", request.max_entries))
        })?;
        let after = given(request.starting_token)
            .map(|token| token.parse().map_err(|_| Error::Token(token)))
            .transpose()?;
        Ok(Self {
            snapshot: given(request.snapshot_id).map(|id| id.parse().ok()),
            source: given(request.source_volume_id),
            after,
            limit: if limit == 0 { usize::MAX } else { limit },
        })
    }

    /// The only one that can be in the list, if it is asked for by its id; `Some(None)` if no
    /// snapshot can have that id.
    pub(crate) fn wanted(&self) -> Option<Option<&SnapshotId>> {
        self.snapshot.as_ref().map(Option::as_ref)
    }

    fn admits(&self, tag: &SnapTag) -> bool {
        self.snapshot.as_ref().is_none_or(|s| s.as_ref() == Some(&tag.snapshot))
            && self.source.as_ref().is_none_or(|s| s == tag.source.as_str())
            && self.after.as_ref().is_none_or(|a| &tag.snapshot > a)
    }
}

impl Volumes {
    /// The tags of all snapshots of this cluster.
    pub(crate) async fn snapshots(&self) -> Result<Vec<SnapTag>, Error> {
        let items = self.appliance.disk_comments().await?;
        let tags = items.iter().filter_map(|item| {
            let tag = SnapTag::parse(&item.comment)?;
            let ours = tag.cluster == self.settings.cluster
                && item.slot == Slot::from(&tag.snapshot).as_str();
            ours.then_some(tag)
        });
        Ok(tags.collect())
    }

    /// The tag of one, if it is there and of this cluster.
    pub(crate) async fn snapshot_tag(&self, id: &SnapshotId) -> Result<Option<SnapTag>, Error> {
        let item = self.appliance.disk(id).await?;
        Ok(item.and_then(|item| self.judge_record(&item, id).ok()))
    }
}

/// One page of them.
pub(crate) fn page(
    plan: &ListPlan,
    mut tags: Vec<SnapTag>,
) -> Result<ListSnapshotsResponse, Error> {
    tags.retain(|tag| plan.admits(tag));
    tags.sort_by(|a, b| a.snapshot.cmp(&b.snapshot));
    let more = tags.len() > plan.limit;
    tags.truncate(plan.limit);
    let next_token = match tags.last() {
        Some(last) if more => last.snapshot.to_string(),
        _ => String::new(),
    };
    let entries = tags
        .iter()
        .map(|tag| Ok(Entry { snapshot: Some(view(tag)?) }))
        .collect::<Result<_, Error>>()?;
    Ok(ListSnapshotsResponse { entries, next_token })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::snapshot::{Method, SnapStage};
    use tonic::Code;

    fn tags(n: u128) -> Vec<SnapTag> {
        let uuid = uuid::Uuid::from_u128;
        (0..n)
            .rev()
            .map(|i| SnapTag {
                cluster: "lab".parse().unwrap(),
                snapshot: format!("snap-{}", uuid(i)).parse().unwrap(),
                source: format!("pvc-{}", uuid(i % 2)).parse().unwrap(),
                size: 4096,
                method: Method::FullCopy,
                created_ms: 1500,
                stage: SnapStage::Ready,
            })
            .collect()
    }

    fn list(request: ListSnapshotsRequest) -> ListSnapshotsResponse {
        page(&ListPlan::new(request).unwrap(), tags(5)).unwrap()
    }

    #[test]
    fn pages_cover_everything_once() {
        let mut token = String::new();
        let mut seen = Vec::new();
        for expected in [2, 2, 1] {
            let answer = list(ListSnapshotsRequest {
                max_entries: 2,
                starting_token: token,
                ..Default::default()
            });
            assert_eq!(answer.entries.len(), expected);
            seen.extend(answer.entries.into_iter().map(|e| e.snapshot.unwrap().snapshot_id));
            token = answer.next_token;
        }
        assert_eq!(token, "");
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn filters_that_fit_nothing_are_no_error_and_bad_tokens_are() {
        let all = tags(5);
        let one =
            ListSnapshotsRequest { snapshot_id: all[1].snapshot.to_string(), ..Default::default() };
        let entry = list(one).entries.remove(0).snapshot.unwrap();
        assert_eq!(entry.snapshot_id, all[1].snapshot.to_string());
        assert_eq!(entry.creation_time.unwrap().nanos, 500_000_000);
        let of = |source: &str| ListSnapshotsRequest {
            source_volume_id: source.into(),
            ..Default::default()
        };
        assert_eq!(list(of(all[0].source.as_str())).entries.len(), 3);
        assert_eq!(list(of("nobody")).entries.len(), 0);
        let unknown = ListSnapshotsRequest { snapshot_id: "nobody".into(), ..Default::default() };
        assert_eq!(list(unknown).entries.len(), 0);
        let bad = ListSnapshotsRequest { starting_token: "7".into(), ..Default::default() };
        assert_eq!(ListPlan::new(bad).unwrap_err().code(), Code::Aborted);
    }
}
