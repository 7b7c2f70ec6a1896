//! What happens to attachments, told to whoever tells people. Nothing in here waits, fails, or
//! decides.

use rds_csi_proto::ids::{NodeName, VolumeId};

use crate::rules::attach::Change;
use crate::rules::owner::Stage;

/// One that listens.
pub(crate) trait Story: Send + Sync {
    /// The volume's record reads so: nothing is missing any more.
    fn stands(&self, volume: &VolumeId, stage: &Stage, node: Option<&NodeName>);

    /// A change was made and seen.
    fn changed(&self, news: &News<'_>);
}

/// A change.
pub(crate) struct News<'a> {
    pub(crate) volume: &'a VolumeId,
    /// For which node; none for all, or where it is not known.
    pub(crate) node: Option<&'a NodeName>,
    /// The record that it changed.
    pub(crate) before: &'a Stage,
    pub(crate) change: &'a Change,
    /// Seconds of Unix time.
    pub(crate) now: u64,
}

/// Nobody listens.
pub(crate) struct Silence;

impl Story for Silence {
    fn stands(&self, _: &VolumeId, _: &Stage, _: Option<&NodeName>) {}
    fn changed(&self, _: &News<'_>) {}
}
