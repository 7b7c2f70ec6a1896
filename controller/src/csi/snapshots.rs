//! Snapshots, as CSI asks for them.

use std::sync::Arc;
use std::time::Duration;

use rds_csi_proto::csi::*;
use rds_csi_proto::ids::SnapshotId;
use tonic::{Request, Response, Status};
use tracing::{Instrument, info_span};

use super::{Service, patience};
use crate::error::Error;
use crate::volumes::{ListPlan, SnapshotPlan, page};

/// How long a caller is kept for a snapshot to become ready. A copy that takes longer is
/// answered with `ready_to_use: false` and goes on; the sidecar asks again.
const READY_LIMIT: Duration = Duration::from_secs(10);

impl Service {
    pub(super) async fn make_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        const RPC: &str = "CreateSnapshot";
        let wait = patience(request.metadata()).map_or(READY_LIMIT, |w| w.min(READY_LIMIT));
        let request = request.into_inner();
        let span = info_span!(
            "rpc", rpc = RPC, volume = ?request.source_volume_id, snapshot = tracing::field::Empty
        );
        self.answer(RPC, async {
            let plan = SnapshotPlan::new(request)?;
            tracing::Span::current().record("snapshot", plan.snapshot.as_str());
            let (volumes, own) = (Arc::clone(&self.volumes), plan.clone());
            let made = self
                .operations
                .run(RPC, &plan.snapshot, Some(wait), async move {
                    volumes.create_snapshot(&own).await.inspect_err(|e| {
                        // The caller may be gone by now.
                        tracing::warn!("the snapshot was not made: {e}");
                    })
                })
                .await;
            let snapshot = match made {
                // Being copied: what its record says is the answer.
                Err(e @ (Error::StillRunning { .. } | Error::Busy { running: RPC, .. })) => {
                    self.volumes.snapshot_now(&plan).await?.ok_or(e)?
                }
                made => made?,
            };
            Ok(CreateSnapshotResponse { snapshot: Some(snapshot) })
        })
        .instrument(span)
        .await
    }

    pub(super) async fn end_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        const RPC: &str = "DeleteSnapshot";
        let wait = patience(request.metadata());
        let id = request.into_inner().snapshot_id;
        let span = info_span!("rpc", rpc = RPC, snapshot = ?id);
        self.answer(RPC, async {
            if id.is_empty() {
                return Err(Error::Invalid("snapshot_id is required".into()));
            }
            if is_of_the_go_driver(&id) {
                return Err(Error::Refused(format!(
                    "{id:?} is a snapshot that the Go driver of the same name made; its item and \
                     its file have to be removed on the appliance by hand (docs/switch-over.md)"
                )));
            }
            // As with volumes: an id of another form never existed.
            let Ok(snapshot) = id.parse::<SnapshotId>() else {
                tracing::warn!("not an id of this driver: nothing to delete");
                return Ok(DeleteSnapshotResponse {});
            };
            let (volumes, own) = (Arc::clone(&self.volumes), snapshot.clone());
            self.operations
                .run(RPC, &snapshot, wait, async move { volumes.delete_snapshot(&own).await })
                .await?;
            Ok(DeleteSnapshotResponse {})
        })
        .instrument(span)
        .await
    }

    pub(super) async fn show_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        const RPC: &str = "ListSnapshots";
        let request = request.into_inner();
        let span = info_span!("rpc", rpc = RPC);
        self.answer(RPC, async {
            let plan = ListPlan::new(request)?;
            page(&plan, self.volumes.snapshots(&plan).await?)
        })
        .instrument(span)
        .await
    }
}

/// Whether an id has the form that the Go driver of the same name gives its snapshots:
/// `snap-<uuid>-at-<hexadecimal>`. To call one deleted would leave it on the appliance, with
/// nobody who knows of it.
fn is_of_the_go_driver(id: &str) -> bool {
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    id.split_once("-at-").is_some_and(|(ours, suffix)| {
        ours.parse::<SnapshotId>().is_ok() && !suffix.is_empty() && suffix.bytes().all(hexadecimal)
    })
}
