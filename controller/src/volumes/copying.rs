//! A full copy, in parts.
//!
//! RouterOS carries out the requests of one user one at a time, and cuts a REST request at
//! 60 s while the work goes on: one long copy would make the appliance deaf to everything
//! else, and its end would never be heard. So it is copied in parts that take seconds, and
//! other requests come in between.
//!
//! Each part counts only when the appliance has answered for it. After an answer that was
//! lost the part may still be being written, so the whole target is given up and made anew
//! by the next call, as another file: what is still running writes into the old one.
//!
//! A copy of a volume is one moment of it only if nobody wrote meanwhile. That is proven
//! before each part and after the last: not exported, and still closed to the same host.
//! Each attachment and each detachment leaves another host there.

use std::time::Duration;

use rds_csi_proto::ids::{HostNqn, SnapshotId, VolumeId};
use tokio::time::Instant;

use super::Volumes;
use crate::crash;
use crate::error::Error;
use crate::routeros::btrfs::Part;
use crate::routeros::wire::{CopyFrom, Slot};
use crate::rules::owner::Stage;
use crate::rules::snapshot::SnapStage;

/// The first part; how long it takes says how large the next one may be.
const FIRST: u64 = 16 << 20;
/// Parts are never larger: a disk that becomes slow in the middle of one has ten times the
/// time that was expected.
const LARGEST: u64 = 8 << 30;
/// How long a part should take: a tenth of the request's limit.
const AIM: Duration = Duration::from_secs(5);
/// Parts are multiples of this.
const GRAIN: u64 = 1 << 20;

/// What is copied, and what must not change while it is.
#[derive(Debug, Clone)]
pub(super) enum Original {
    Volume { volume: VolumeId, epoch: HostNqn, size: u64 },
    Snapshot { snapshot: SnapshotId, created_ms: u64, data: CopyFrom },
}

/// Where to, and how it looks as long as it is ours to fill.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) slot: Slot,
    pub(super) comment: String,
    /// The host it is closed to: made for this attempt alone.
    pub(super) closed: HostNqn,
}

/// Why a copy ended early.
#[derive(Debug)]
pub(super) enum Broken {
    /// The target is not this attempt's any more: it must not be touched.
    TakenOver(Error),
    /// The target is of no use.
    Spoilt(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Spoilt(error)
    }
}

impl Volumes {
    /// Copies `size` bytes; on return all of them are there, and are those of one moment.
    pub(super) async fn copy(
        &self,
        original: &Original,
        target: &Target,
        size: u64,
    ) -> Result<(), Broken> {
        let from = match original {
            Original::Volume { volume, .. } => CopyFrom::Slot(volume.into()),
            Original::Snapshot { data, .. } => data.clone(),
        };
        let mut running = self.copies.begin(target.slot.clone(), size);
        let mut part = FIRST;
        let mut offset = 0;
        while offset < size {
            self.check_target(target).await?;
            self.check_original(original).await?;
            let step = Part { offset, size: part.min(size - offset) };
            let started = Instant::now();
            self.appliance
                .copy_part(from.clone(), target.slot.clone(), step)
                .await
                .map_err(Error::from)?;
            offset += step.size;
            crash::point("copy.part");
            running.is_at(offset);
            part = next_part(step.size, started.elapsed());
        }
        self.check_original(original).await?;
        self.check_target(target).await
    }

    async fn check_target(&self, target: &Target) -> Result<(), Broken> {
        let item = self.appliance.disk(target.slot.clone()).await.map_err(Error::from)?;
        let same = item.is_some_and(|item| {
            item.comment == target.comment
                && item.allow_host == target.closed.as_str()
                && !item.export
        });
        match same {
            true => Ok(()),
            false => Err(Broken::TakenOver(Error::Refused(format!(
                "{} was changed or removed while it was being copied to; the copy was given up",
                target.slot
            )))),
        }
    }

    async fn check_original(&self, original: &Original) -> Result<(), Error> {
        let gone = |what: &dyn std::fmt::Display| {
            Err(Error::Refused(format!("{what} was deleted while it was being copied")))
        };
        match original {
            Original::Volume { volume, epoch, size } => {
                let Some((item, tag)) = self.ours(volume).await? else { return gone(volume) };
                let same = tag.stage == Stage::Ready
                    && !item.export
                    && item.allow_host == epoch.as_str()
                    && item.size == Some(*size);
                match same {
                    true => Ok(()),
                    false => Err(Error::Refused(format!(
                        "volume {volume} was attached or changed while it was being copied, so \
                         that the copy is not one moment of it; detach it first, or keep it on \
                         a btrfs pool, where snapshots need no copy"
                    ))),
                }
            }
            Original::Snapshot { snapshot, created_ms, .. } => {
                match self.snapshot(snapshot).await? {
                    Some((_, tag))
                        if tag.stage == SnapStage::Ready && tag.created_ms == *created_ms =>
                    {
                        Ok(())
                    }
                    _ => gone(snapshot),
                }
            }
        }
    }
}

/// How large the next part may be, given how long one took.
fn next_part(done: u64, taken: Duration) -> u64 {
    let millis = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX).max(1);
    let aim = u64::try_from(AIM.as_millis()).unwrap_or(u64::MAX);
    // At most doubled: the first parts may come from a cache.
    let fits = (done / millis).saturating_mul(aim).min(done.saturating_mul(2));
    (fits / GRAIN * GRAIN).clamp(GRAIN, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_the_pace() {
        let mib = |n: u64| n << 20;
        assert_eq!(next_part(FIRST, Duration::from_millis(10)), 2 * FIRST);
        assert_eq!(next_part(mib(100), Duration::from_secs(10)), mib(49));
        assert_eq!(next_part(mib(4), Duration::from_secs(40)), GRAIN);
        assert_eq!(next_part(LARGEST, Duration::ZERO), LARGEST);
    }
}
