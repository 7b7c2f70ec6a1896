//! On which appliance a volume or a snapshot is.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rds_csi_proto::ids::{SnapshotId, VolumeId};

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

    /// On which appliance a volume is; `None` if it is known that it is on none.
    pub(super) async fn find(&self, volume: &VolumeId) -> Result<Option<usize>, Error> {
        match self.search(format!("volume {volume}"), |m| m.presence(volume)).await? {
            Found::Ours(at) => {
                self.seen().insert(volume.clone(), at);
                Ok(Some(at))
            }
            // Somebody else's item of that name: whoever asks is told so there.
            Found::Foreign(at) => Ok(Some(at)),
            Found::Nowhere => Ok(None),
        }
    }

    /// The same for a snapshot.
    pub(super) async fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<usize>, Error> {
        // With one appliance there is nothing to find.
        if self.members.len() == 1 {
            return Ok(Some(0));
        }
        match self.search(format!("snapshot {id}"), |m| m.snapshot_presence(id)).await? {
            Found::Ours(at) | Found::Foreign(at) => Ok(Some(at)),
            Found::Nowhere => Ok(None),
        }
    }

    /// Asks all appliances at once. The first that has what is looked for ends the search, so
    /// that one that hangs does not delay what is on another.
    async fn search<'a, F>(
        &'a self,
        what: String,
        presence: impl Fn(&'a Arc<Volumes>) -> F,
    ) -> Result<Found, Error>
    where
        F: Future<Output = Result<Presence, Error>>,
    {
        let mut asked: FuturesUnordered<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(at, member)| {
                let answer = presence(member);
                async move { (at, answer.await) }
            })
            .collect();
        let mut foreign = None;
        let mut silent = None;
        while let Some((at, presence)) = asked.next().await {
            match presence {
                Ok(Presence::Ours) => return Ok(Found::Ours(at)),
                // Somebody else's item of that name says nothing of where ours is.
                Ok(Presence::Foreign) => foreign = foreign.or(Some(at)),
                Ok(Presence::Absent) => {}
                Err(error) => silent = silent.or(Some((at, error))),
            }
        }
        match (silent, foreign) {
            (Some((at, cause)), _) => Err(Error::Unknown {
                what,
                name: self.member(at)?.name().clone(),
                cause: Box::new(cause),
            }),
            (None, Some(at)) => Ok(Found::Foreign(at)),
            (None, None) => Ok(Found::Nowhere),
        }
    }
}

/// What a search of all appliances has found.
enum Found {
    Ours(usize),
    Foreign(usize),
    Nowhere,
}
