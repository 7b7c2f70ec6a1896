//! `rdscsi.agent.v1.Sessions`: the sessions as operators and the shim see them.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use rds_csi_proto::agent::sessions_server::Sessions;
use rds_csi_proto::agent::{
    HistoryReply, HistoryRequest, StatusReply, StatusRequest, Transition, Volume, VolumeReply,
    VolumeRequest, WatchRequest,
};
use rds_csi_proto::ids::VolumeId;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::journal::{Journal, Table};
use crate::kernel::sysfs;

use super::SessionView;
use super::keeper::Keeper;

/// The service.
pub struct SessionsService {
    keeper: Keeper,
    journal: Journal,
}

impl SessionsService {
    /// Serves what `keeper` keeps.
    #[must_use]
    pub fn new(keeper: Keeper, journal: Journal) -> Self {
        Self { keeper, journal }
    }

    fn describe(&self, view: &SessionView) -> Volume {
        let device = view.device.as_ref();
        let stage = self
            .journal
            .get::<serde_json::Value>(Table::Stages, view.spec.volume.as_str())
            .ok()
            .flatten()
            .unwrap_or_default();
        let text = |pointer: &str| noted(&stage, pointer);
        Volume {
            volume_id: view.spec.volume.to_string(),
            state: view.state.into(),
            since_unix_ms: view.since_unix_ms,
            reason: view.reason.clone(),
            device: device.map(|d| d.path.display().to_string()).unwrap_or_default(),
            namespace: view.namespace.clone().unwrap_or_default(),
            controller: view.controller.clone().unwrap_or_default(),
            nqn: view.spec.nqn.to_string(),
            host_nqn: view.spec.host_nqn.to_string(),
            portal: view.spec.portal.to_string(),
            size_bytes: device.map_or(0, |d| d.size_bytes),
            shielded: view.spec.shield,
            io_in_flight: device.and_then(|d| sysfs::in_flight(d.number)).unwrap_or(0),
            outages: view.outages,
            last_outage_ms: view.last_outage_ms,
            staging_path: text("/staging"),
            failing_io: view.failing_io,
            filesystem: text("/access/Filesystem/fs_type"),
            attempts: view.attempts,
        }
    }

    fn one(&self, volume: &VolumeId) -> Result<Volume, Status> {
        let absent = || Error::NotFound(format!("volume {volume} is not attached to this node"));
        Ok(self.describe(&self.keeper.view(volume).ok_or_else(absent)?))
    }

    fn done(&self, volume: &VolumeId, message: String) -> Result<Response<VolumeReply>, Status> {
        Ok(Response::new(VolumeReply { volume: Some(self.one(volume)?), message }))
    }
}

/// What a stage record says, by JSON pointer; nothing if it does not.
pub(crate) fn noted(stage: &serde_json::Value, pointer: &str) -> String {
    stage.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
}

fn volume_id(text: &str) -> Result<VolumeId, Status> {
    text.parse().map_err(|e: rds_csi_proto::ids::InvalidName| Error::Invalid(e.to_string()).into())
}

#[tonic::async_trait]
impl Sessions for SessionsService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let wanted = request.into_inner().volume_id;
        let volumes = if wanted.is_empty() {
            self.keeper.views().iter().map(|v| self.describe(v)).collect()
        } else {
            vec![self.one(&volume_id(&wanted)?)?]
        };
        Ok(Response::new(StatusReply {
            volumes,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.keeper.boot_id().into(),
        }))
    }

    async fn reconnect(
        &self,
        request: Request<VolumeRequest>,
    ) -> Result<Response<VolumeReply>, Status> {
        let volume = volume_id(&request.into_inner().volume_id)?;
        let message = self.keeper.reconnect(&volume).await?;
        self.done(&volume, message)
    }

    async fn rescan(
        &self,
        request: Request<VolumeRequest>,
    ) -> Result<Response<VolumeReply>, Status> {
        let volume = volume_id(&request.into_inner().volume_id)?;
        let message = self.keeper.rescan(&volume).await?;
        self.done(&volume, message)
    }

    async fn fail(&self, request: Request<VolumeRequest>) -> Result<Response<VolumeReply>, Status> {
        let volume = volume_id(&request.into_inner().volume_id)?;
        self.keeper.fail(&volume).await?;
        self.done(&volume, "I/O that finds no path fails until the session is back".into())
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        let request = request.into_inner();
        let volume = volume_id(&request.volume_id)?;
        let mut entries = self.keeper.history(&volume).await?;
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        if limit > 0 && entries.len() > limit {
            entries.drain(..entries.len() - limit);
        }
        let transitions = entries.iter().map(super::record::TransitionRecord::to_proto).collect();
        Ok(Response::new(HistoryReply { transitions }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Transition, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let wanted = request.into_inner().volume_id;
        let stream = BroadcastStream::new(self.keeper.watch()).filter_map(move |entry| {
            let transition = match entry {
                Ok(entry) if wanted.is_empty() || entry.volume.as_str() == wanted => {
                    Some(Ok(entry.to_proto()))
                }
                Ok(_) => None,
                Err(lag) => Some(Err(Status::data_loss(format!(
                    "{lag}; read the history of the volume instead"
                )))),
            };
            std::future::ready(transition)
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
