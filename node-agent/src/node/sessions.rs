//! What the CSI calls need of the session keeper.
//!
//! A trait, so that staging and publishing can be tested on loop devices, without a target
//! and without a keeper.

use std::future::Future;
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;

use crate::error::{Error, Result};
use crate::notices::Notices;
use crate::session::keeper::Keeper;
use crate::session::{Attached, Content, SessionSpec, SessionView};

/// The sessions of this node.
pub trait Sessions: Clone + Send + Sync + 'static {
    /// Connects, or finds the session that is there, and returns when its device is usable.
    fn attach(
        &self,
        spec: SessionSpec,
        deadline: Duration,
    ) -> impl Future<Output = Result<Attached>> + Send;
    /// A snapshot; `None` if the volume is not known.
    fn view(&self, volume: &VolumeId) -> Option<SessionView>;
    /// All of them.
    fn views(&self) -> Vec<SessionView>;
    /// What a new namespace is compared with before it is mapped.
    fn set_content(
        &self,
        volume: &VolumeId,
        content: Content,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Removes the device, without force, and the session.
    fn detach(
        &self,
        volume: &VolumeId,
        deadline: Duration,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Lets waiting I/O fail.
    fn fail(&self, volume: &VolumeId) -> impl Future<Output = Result<()>> + Send;
    /// For what people have to hear of.
    fn notices(&self) -> &Notices;
}

/// The device of a session that is there. An agent that was just started has yet to look for
/// it, which says nothing of the volume.
pub(super) fn device(view: &SessionView) -> Result<Attached> {
    view.device.clone().ok_or_else(|| {
        Error::Unavailable(format!(
            "the device of volume {} is not known yet ({}: {}); try again",
            view.spec.volume,
            view.state.as_str_name(),
            view.reason
        ))
    })
}

impl Sessions for Keeper {
    async fn attach(&self, spec: SessionSpec, deadline: Duration) -> Result<Attached> {
        Self::attach(self, spec, deadline).await
    }
    fn view(&self, volume: &VolumeId) -> Option<SessionView> {
        Self::view(self, volume)
    }
    fn views(&self) -> Vec<SessionView> {
        Self::views(self)
    }
    async fn set_content(&self, volume: &VolumeId, content: Content) -> Result<()> {
        Self::set_content(self, volume, content).await
    }
    async fn detach(&self, volume: &VolumeId, deadline: Duration) -> Result<()> {
        Self::detach(self, volume, deadline).await
    }
    async fn fail(&self, volume: &VolumeId) -> Result<()> {
        Self::fail(self, volume).await
    }
    fn notices(&self) -> &Notices {
        Self::notices(self)
    }
}
