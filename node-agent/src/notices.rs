//! What people have to hear of a volume, until somebody comes who can tell them.
//!
//! The agent knows nothing of Kubernetes. A shim takes the notices (`rdscsi.agent.v1.Notices`) and makes
//! Events of them. It may be away for a while, in an upgrade or because nobody has one: so what
//! is kept is bounded in number and in age, and nothing ever waits for it.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::Stream;
use rds_csi_proto::agent::notices_server::Notices as Service;
use rds_csi_proto::agent::{Notice, NoticeKind, NoticesRequest};
use rds_csi_proto::ids::VolumeId;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

/// Both ends of an outage of a hundred volumes, twice.
const KEPT: usize = 400;
/// What is older explains nothing any more.
const FRESH: Duration = Duration::from_secs(15 * 60);
/// A condition that lasts is found again and again.
const AGAIN: Duration = Duration::from_secs(10 * 60);

/// The notices. Cheap to clone.
#[derive(Clone, Default)]
pub struct Notices {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    waiting: VecDeque<(Instant, Notice)>,
    /// Conditions, and when each was last told.
    told: HashMap<(VolumeId, NoticeKind), Instant>,
    closed: bool,
}

impl State {
    fn put(&mut self, now: Instant, notice: Notice) {
        if self.waiting.len() >= KEPT {
            self.waiting.pop_front();
        }
        self.waiting.push_back((now, notice));
    }

    fn take(&mut self, now: Instant) -> Option<Notice> {
        while let Some((at, notice)) = self.waiting.pop_front() {
            if now.duration_since(at) < FRESH {
                return Some(notice);
            }
        }
        None
    }

    /// Whether a condition is to be told now.
    fn is_news(&mut self, now: Instant, volume: &VolumeId, kind: NoticeKind) -> bool {
        self.told.retain(|_, at| now.duration_since(*at) < AGAIN);
        let key = (volume.clone(), kind);
        !self.told.contains_key(&key) && self.told.insert(key, now).is_none()
    }
}

fn notice(volume: &VolumeId, kind: NoticeKind, text: String) -> Notice {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Notice {
        volume_id: volume.to_string(),
        kind: kind.into(),
        at_unix_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
        text,
    }
}

impl Notices {
    /// Something that happens once.
    pub fn happened(&self, volume: &VolumeId, kind: NoticeKind, text: String) {
        self.lock().put(Instant::now(), notice(volume, kind, text));
        self.inner.news.notify_one();
    }

    /// A condition that lasts, and is found again each time that somebody looks.
    pub fn found(&self, volume: &VolumeId, kind: NoticeKind, text: String) {
        if self.lock().is_news(Instant::now(), volume, kind) {
            self.happened(volume, kind, text);
        }
    }

    /// Ends all streams, which would hold up the agent's stop.
    pub fn close(&self) {
        self.lock().closed = true;
        self.inner.news.notify_waiters();
        // For one that looks just now.
        self.inner.news.notify_one();
    }

    pub(crate) fn stream(&self) -> impl Stream<Item = Result<Notice, Status>> + Send + use<> {
        futures::stream::unfold(self.clone(), |notices| async move {
            let notice = notices.next().await?;
            Some((Ok(notice), notices))
        })
    }

    async fn next(&self) -> Option<Notice> {
        loop {
            let news = self.inner.news.notified();
            {
                let mut state = self.lock();
                if let Some(notice) = state.take(Instant::now()) {
                    // There may be more, and another one who waits.
                    self.inner.news.notify_one();
                    return Some(notice);
                }
                if state.closed {
                    return None;
                }
            }
            news.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each use is one whole change.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Service for Notices {
    type ListenStream = Pin<Box<dyn Stream<Item = Result<Notice, Status>> + Send>>;

    async fn listen(
        &self,
        _: Request<NoticesRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        Ok(Response::new(Box::pin(self.stream())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::StreamExt;

    use super::*;

    fn volume(n: usize) -> VolumeId {
        VolumeId::from_request_name(&format!("volume {n}"))
    }

    fn texts(state: &mut State, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| state.take(now)).map(|notice| notice.text).collect()
    }

    #[test]
    fn what_nobody_took_waits_but_not_for_ever_and_not_without_limit() {
        let (mut state, begin) = (State::default(), Instant::now());
        let lost = |n: usize| notice(&volume(n), NoticeKind::SessionLost, n.to_string());
        let late = begin + FRESH - Duration::from_secs(1);
        state.put(begin, lost(0));
        state.put(late, lost(1));
        assert_eq!(texts(&mut state, late), ["0", "1"]);
        state.put(begin, lost(2));
        state.put(late, lost(3));
        assert_eq!(texts(&mut state, begin + FRESH), ["3"]);
        (0..KEPT + 5).for_each(|n| state.put(late, lost(n)));
        let kept = texts(&mut state, late);
        assert_eq!((kept.len(), kept[0].as_str()), (KEPT, "5"));
        assert!(texts(&mut state, late).is_empty());
    }

    #[test]
    fn a_condition_is_told_once_in_a_while_and_each_volume_has_its_own() {
        let (mut state, begin) = (State::default(), Instant::now());
        let mut busy = |n, at| state.is_news(at, &volume(n), NoticeKind::UnstageBusy);
        assert!(busy(0, begin) && !busy(0, begin) && busy(1, begin));
        assert!(!busy(0, begin + AGAIN / 2) && busy(0, begin + AGAIN));
        assert!(!busy(0, begin + AGAIN * 3 / 2), "the time of the last one counts");
        assert!(state.is_news(begin, &volume(0), NoticeKind::VolumeReadOnly));
    }

    #[tokio::test]
    async fn one_who_waits_hears_at_once_and_ends_when_the_agent_does() {
        let notices = Notices::default();
        let mut stream = Box::pin(notices.stream());
        let waiting = tokio::spawn(async move {
            let first = stream.next().await.unwrap().unwrap();
            (first.text, stream.next().await.is_none())
        });
        tokio::task::yield_now().await;
        notices.happened(&volume(0), NoticeKind::SessionLost, "a".into());
        tokio::task::yield_now().await;
        notices.close();
        let limit = Duration::from_secs(10);
        let heard = tokio::time::timeout(limit, waiting).await.unwrap().unwrap();
        assert_eq!(heard, ("a".into(), true));
    }
}
