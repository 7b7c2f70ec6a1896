//! Where the file of a new volume goes. On a btrfs pool into a subvolume of its own, since
//! only subvolumes have snapshots; elsewhere beside the others.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rds_csi_proto::ids::VolumeId;
use tokio::time::Instant;

use super::delete::settle;
use super::{Pace, Volumes};
use crate::error::Error;
use crate::routeros::Pool;
use crate::routeros::btrfs::Subvolume;
use crate::rules::path::AppliancePath;

/// How long the kind of a pool is remembered. It changes only when somebody formats the pool;
/// a subvolume on what is no btrfs any more is refused, and then it is asked for anew. On what
/// has become one, a volume made meanwhile has no subvolume, and its snapshots are copies.
const REMEMBERED: Duration = Duration::from_secs(300);

/// A place for a volume.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) file: AppliancePath,
    /// The subvolume around the file, on a btrfs pool.
    pub(super) subvolume: Option<Subvolume>,
}

impl Place {
    /// Where the volume's file may be: also one from before the pool had subvolumes.
    pub(super) fn files(&self, volume: &VolumeId, directory: &AppliancePath) -> Vec<AppliancePath> {
        let before = self.subvolume.as_ref().map(|_| directory.volume_file(volume));
        [self.file.clone()].into_iter().chain(before).collect()
    }
}

/// What is remembered of the pools that directories lie on.
#[derive(Debug, Default)]
pub(super) struct Pools(Mutex<HashMap<AppliancePath, (Instant, Option<Pool>)>>);

impl Pools {
    /// The map is whole after any panic: each use is a single insertion or removal.
    fn lock(&self) -> MutexGuard<'_, HashMap<AppliancePath, (Instant, Option<Pool>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, directory: &AppliancePath, now: Instant) -> Option<Option<Pool>> {
        let (asked, pool) = self.lock().get(directory)?.clone();
        (now.duration_since(asked) < REMEMBERED).then_some(pool)
    }

    /// After an answer that speaks against what is remembered.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }
}

impl Volumes {
    /// The pool that new volumes in a directory go to, as it was a short while ago. Nothing is
    /// removed on this ground: what is destroyed is asked for again.
    async fn pool(&self, directory: &AppliancePath) -> Result<Option<Pool>, Error> {
        if let Some(pool) = self.pools.get(directory, Instant::now()) {
            return Ok(pool);
        }
        let pool = self.appliance.pool_of(directory).await?;
        self.pools.lock().insert(directory.clone(), (Instant::now(), pool.clone()));
        Ok(pool)
    }

    pub(super) async fn place(
        &self,
        volume: &VolumeId,
        directory: &AppliancePath,
    ) -> Result<Place, Error> {
        let home = directory.volume_home(volume);
        let pool = self.pool(directory).await?.filter(Pool::is_btrfs);
        Ok(match pool.and_then(|pool| pool.subvolume(&home)) {
            Some(own) => Place { file: home.file_in_subvolume(), subvolume: Some(own) },
            None => Place { file: directory.volume_file(volume), subvolume: None },
        })
    }

    /// Makes the subvolume, where there has to be one.
    pub(super) async fn prepare(&self, volume: &VolumeId, place: &Place) -> Result<(), Error> {
        let Some(subvolume) = &place.subvolume else { return Ok(()) };
        // One that is there already is empty: a call that stopped half-way left it.
        if self.appliance.subvolume(subvolume).await? {
            return Ok(());
        }
        settle(self.appliance.add_subvolume(subvolume).await)
            .inspect_err(|_| self.pools.forget())?;
        let pace = Pace::start();
        while !self.appliance.subvolume(subvolume).await? {
            pace.again(&format!("the subvolume of {volume}")).await?;
        }
        Ok(())
    }

    /// Removes the subvolume that a creation left which stopped before it had made the item.
    /// Without an item nothing proves whose it is; so only where there is nothing in it that
    /// anybody could miss, and no item that lives in it.
    pub(super) async fn remove_empty(&self, volume: &VolumeId, place: &Place) -> Result<(), Error> {
        let Some(subvolume) = &place.subvolume else { return Ok(()) };
        if !self.appliance.subvolume(subvolume).await? {
            return Ok(());
        }
        let Some(home) = place.file.parent() else { return Ok(()) };
        let inside = |path: &str| {
            let path: Result<AppliancePath, _> = format!("/{}", path.trim_matches('/')).parse();
            // A name that cannot be read may be anything.
            path.map_or(true, |path| path.is_within(&home) && path != home)
        };
        let files = self.appliance.files().await?;
        let named = |name: &str| name.contains(volume.as_str()) && inside(name);
        let uses = self.appliance.disk_uses().await?;
        let user = uses.iter().map(|u| u.file_path.as_str());
        if let Some(found) = files.iter().map(|f| f.name.as_str()).chain(user).find(|n| named(n)) {
            return Err(Error::Refused(format!(
                "volume {volume} has no disk item, but {found} exists; without its item nothing \
                 proves that it is ours, so remove it by hand if nobody needs it"
            )));
        }
        tracing::info!(%home, "removing the empty subvolume of a volume that was never made");
        self.delete_subvolume(subvolume).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pool_is_remembered_for_a_while_and_until_it_is_doubted() {
        let pools = Pools::default();
        let directory: AppliancePath = "/raid10/volumes".parse().unwrap();
        let now = Instant::now();
        assert!(pools.get(&directory, now).is_none());
        pools.lock().insert(directory.clone(), (now, None));
        assert!(pools.get(&directory, now).is_some());
        assert!(pools.get(&directory, now + REMEMBERED).is_none(), "for ever");
        pools.forget();
        assert!(pools.get(&directory, now).is_none());
    }
}
