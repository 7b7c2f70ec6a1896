//! Tells the cluster what happens to attachments: Events on the claim, and annotations on the
//! PV for people and for older versions of the driver. Nothing reads them back to decide by.
//!
//! A CSI call only leaves a note here and goes on. One task writes them: per volume the newest
//! state, and what happened since, both bounded. What cannot be written is tried again for some
//! minutes and then dropped; the next change, or the next leader, writes the state anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rds_csi_proto::ids::{NodeName, VolumeId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::tale::{Tale, tales};
use super::telling::{Failure, Teller};
use crate::rules::owner::{NodeKey, Stage};
use crate::volumes::{News, Story};

/// What is kept of one volume while nothing can be written. More is a storm.
const TALES_AT_MOST: usize = 20;
/// Tries of one volume's news, the pause doubling from one to the next: four minutes.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is to be told of one volume.
pub(super) struct Pending {
    pub(super) stage: Option<Stage>,
    pub(super) tales: Vec<Tale>,
    tries: u32,
    due: Instant,
}

impl Default for Pending {
    fn default() -> Self {
        Self { stage: None, tales: Vec::new(), tries: 0, due: Instant::now() }
    }
}

/// The notes.
#[derive(Default)]
pub(crate) struct Notes {
    pending: Mutex<BTreeMap<VolumeId, Pending>>,
    names: Mutex<HashMap<NodeKey, NodeName>>,
    news: Notify,
}

/// Each use is one whole change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Story for Notes {
    fn stands(&self, volume: &VolumeId, stage: &Stage, node: Option<&NodeName>) {
        self.learn(node);
        lock(&self.pending).entry(volume.clone()).or_default().stage = Some(stage.clone());
        self.news.notify_one();
    }

    fn changed(&self, news: &News<'_>) {
        self.learn(news.node);
        let mut pending = lock(&self.pending);
        let of = pending.entry(news.volume.clone()).or_default();
        of.tales.extend(tales(news));
        if let Some(stage) = &news.change.stage {
            of.stage = Some(stage.clone());
        }
        let surplus = of.tales.len().saturating_sub(TALES_AT_MOST);
        of.tales.drain(..surplus);
        self.news.notify_one();
    }
}

impl Notes {
    /// A node's whole name, which the record may hold shortened.
    fn learn(&self, node: Option<&NodeName>) {
        if let Some(node) = node {
            lock(&self.names).insert(NodeKey::of(node), node.clone());
        }
    }

    pub(super) fn name(&self, key: &NodeKey) -> Option<NodeName> {
        lock(&self.names).get(key).cloned()
    }

    /// Tells them, until told to stop.
    pub(crate) async fn tell(&self, mut teller: Teller, stop: CancellationToken) {
        let telling = async {
            teller.ready().await;
            loop {
                match self.next() {
                    Ok((volume, pending)) => self.one(&mut teller, volume, pending).await,
                    Err(None) => self.news.notified().await,
                    Err(Some(due)) => {
                        let timer = tokio::time::timeout_at(due, self.news.notified());
                        timer.await.ok();
                    }
                }
            }
        };
        tokio::select! {
            () = telling => {}
            () = stop.cancelled() => {}
        }
    }

    /// What is due, or when the next will be.
    fn next(&self) -> Result<(VolumeId, Pending), Option<Instant>> {
        let mut all = lock(&self.pending);
        let first = all.iter().min_by_key(|(_, p)| p.due).map(|(v, p)| (v.clone(), p.due));
        let (volume, due) = first.ok_or(None)?;
        if due > Instant::now() {
            return Err(Some(due));
        }
        all.remove_entry(&volume).ok_or(None)
    }

    async fn one(&self, teller: &mut Teller, volume: VolumeId, mut news: Pending) {
        let Err(failure) = teller.tell(self, &volume, &mut news).await else { return };
        news.tries += 1;
        let why = match failure {
            Failure::Refused(why) => why,
            Failure::Later(why) if news.tries >= TRIES => why,
            Failure::Later(why) => {
                tracing::debug!(%volume, tries = news.tries, "{why}");
                news.due = Instant::now() + pause(news.tries);
                self.back(volume, news);
                return;
            }
        };
        tracing::warn!(%volume, "Events and annotations of this change are not written: {why}");
    }

    /// To be told later, with what came meanwhile.
    fn back(&self, volume: VolumeId, mut news: Pending) {
        let mut all = lock(&self.pending);
        if let Some(newer) = all.remove(&volume) {
            news.stage = newer.stage.or(news.stage);
            news.tales.extend(newer.tales);
            let surplus = news.tales.len().saturating_sub(TALES_AT_MOST);
            news.tales.drain(..surplus);
        }
        all.insert(volume, news);
    }
}

fn pause(tries: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::attach::{Change, Why};

    #[test]
    fn the_newest_state_wins_and_nothing_grows_without_end() {
        let notes = Notes::default();
        let volume = VolumeId::from_request_name("v");
        let change = Change { why: Why::Correct, stage: None, allow: None, export: None };
        for _ in 0..100 {
            let before = &Stage::Ready;
            notes.changed(&News { volume: &volume, node: None, before, change: &change, now: 0 });
        }
        notes.stands(&volume, &Stage::Ready, None);
        let (of, news) = notes.next().unwrap();
        assert_eq!((of, news.tales.len()), (volume.clone(), TALES_AT_MOST));
        assert!(notes.next().is_err_and(|due| due.is_none()));
        // Something newer came while it was being told.
        notes.stands(&volume, &Stage::Deleting, None);
        notes.back(volume, news);
        let (_, news) = notes.next().unwrap();
        assert_eq!((news.stage, news.tales.len()), (Some(Stage::Deleting), TALES_AT_MOST));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<_> = (1..=9).map(|n| pause(n).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
