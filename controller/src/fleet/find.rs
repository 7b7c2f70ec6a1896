//! On which appliance a volume is.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rds_csi_proto::ids::VolumeId;

use super::Fleet;
use crate::error::Error;
use crate::volumes::{Presence, Volumes};

impl Fleet {
    /// Does `work` on the appliance that has the volume; `None` if it is known that none
    /// has. `work` says that the volume is not there with [`Error::NotFound`].
    pub(super) async fn at_holder<'a, T, F, W>(
        &'a self,
        volume: &VolumeId,
        work: W,
    ) -> Result<Option<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
        W: Fn(&'a Arc<Volumes>) -> F,
    {
        // With one appliance there is nothing to find: `work` looks for itself.
        let hint = match self.members.len() {
            1 => Some(0),
            _ => self.seen().get(volume).copied(),
        };
        if let Some(at) = hint {
            match work(self.member(at)?).await {
                Err(Error::NotFound(_)) => drop(self.seen().remove(volume)),
                result => return result.map(Some),
            }
            if self.members.len() == 1 {
                return Ok(None);
            }
        }
        let Some(at) = self.find(volume).await? else { return Ok(None) };
        match work(self.member(at)?).await {
            Err(Error::NotFound(_)) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Asks all appliances at once. The first that has the volume ends the search, so that
    /// one that hangs does not delay the volumes of another.
    async fn find(&self, volume: &VolumeId) -> Result<Option<usize>, Error> {
        let mut asked: FuturesUnordered<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(at, member)| async move { (at, member.presence(volume).await) })
            .collect();
        let mut foreign = None;
        let mut silent = None;
        while let Some((at, presence)) = asked.next().await {
            match presence {
                Ok(Presence::Ours) => {
                    self.seen().insert(volume.clone(), at);
                    return Ok(Some(at));
                }
                // Somebody else's item of that name says nothing of where ours is.
                Ok(Presence::Foreign) => foreign = foreign.or(Some(at)),
                Ok(Presence::Absent) => {}
                Err(error) => silent = silent.or(Some((at, error))),
            }
        }
        match (silent, foreign) {
            (Some((at, cause)), _) => Err(Error::Unknown {
                volume: volume.clone(),
                name: self.member(at)?.name().clone(),
                cause: Box::new(cause),
            }),
            (None, foreign) => Ok(foreign),
        }
    }
}
