//! Whether a portal answers, asked all the time while a session to it is lost.
//!
//! The kernel's own attempts are a second or more apart, and one that began while packets
//! were dropped is stuck in its handshake for seconds after they pass again. A handshake
//! ten times a second, once for all volumes of a portal, shows at once that it is worth
//! trying. It stops when no session to that portal is lost any more.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::machine::PortalSeen;

/// Pause between two handshakes with a portal that does not answer. Each is on its own, so
/// that the first one sent after the outage counts, not a retransmission a second later.
const EVERY: Duration = Duration::from_millis(100);
/// Pause while it answers: only to notice that it goes away again.
const EVERY_ANSWERING: Duration = Duration::from_secs(1);
/// Without an answer for so long it is silent. Round trips to storage are far shorter.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// The portals of this host. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Portals {
    watched: Arc<Mutex<HashMap<SocketAddr, Weak<Watched>>>>,
}

/// A portal that is being asked for as long as somebody holds this.
#[derive(Debug)]
pub(super) struct Watched {
    seen: watch::Receiver<Option<PortalSeen>>,
    asking: JoinHandle<()>,
}

impl Portals {
    /// Asks a portal from now on, or joins those who already do.
    #[must_use]
    pub(super) fn watch(&self, portal: SocketAddr) -> Arc<Watched> {
        // A map of handles is whole at any moment, whoever panicked.
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = watched.get(&portal).and_then(Weak::upgrade) {
            return found;
        }
        watched.retain(|_, other| other.strong_count() > 0);
        let (show, seen) = watch::channel(None);
        let new = Arc::new(Watched { seen, asking: tokio::spawn(ask(portal, show)) });
        watched.insert(portal, Arc::downgrade(&new));
        new
    }
}

impl Watched {
    /// What is seen, now and at each change; `None` before the first answer or silence.
    #[must_use]
    pub(super) fn seen(&self) -> watch::Receiver<Option<PortalSeen>> {
        self.seen.clone()
    }

    /// Waits until the portal answers, or until it is known for `patience` that it does not.
    ///
    /// # Errors
    /// `ConnectionRefused` if it refuses, `TimedOut` if nothing comes back.
    pub(super) async fn answers(&self, patience: Duration) -> io::Result<()> {
        let mut seen = self.seen();
        let answered = timeout(patience, seen.wait_for(|s| *s == Some(PortalSeen::Answers))).await;
        if matches!(answered, Ok(Ok(_))) {
            return Ok(());
        }
        let last = *self.seen.borrow();
        Err(match last {
            Some(PortalSeen::Refuses) => io::ErrorKind::ConnectionRefused.into(),
            _ => io::ErrorKind::TimedOut.into(),
        })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

async fn ask(portal: SocketAddr, show: watch::Sender<Option<PortalSeen>>) {
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut handshakes = JoinSet::new();
    let (mut begun, mut newest) = (0u64, 0u64);
    let mut last_begun: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = pace.tick() => {
                let answers = *show.borrow() == Some(PortalSeen::Answers);
                let pause = if answers { EVERY_ANSWERING } else { EVERY };
                // A tick comes early rather than late, never by half.
                if last_begun.is_none_or(|at| at.elapsed() + EVERY / 2 >= pause) {
                    (begun, last_begun) = (begun + 1, Some(Instant::now()));
                    let number = begun;
                    handshakes.spawn(async move { (number, handshake(portal).await) });
                }
            }
            Some(Ok((number, seen))) = handshakes.join_next() => {
                // One that was begun earlier and took longer knows less.
                if number > newest {
                    newest = number;
                    show.send_if_modified(|shown| shown.replace(seen) != Some(seen));
                }
            }
        }
    }
}

async fn handshake(portal: SocketAddr) -> PortalSeen {
    match timeout(SILENT_AFTER, TcpStream::connect(portal)).await {
        Ok(Ok(_)) => PortalSeen::Answers,
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => PortalSeen::Refuses,
        // No route is as good as no answer.
        Ok(Err(_)) | Err(_) => PortalSeen::Silent,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn sees(watched: &Watched, wanted: PortalSeen) {
        let mut seen = watched.seen();
        timeout(PATIENCE, seen.wait_for(|s| *s == Some(wanted))).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_portal_that_opens_is_seen_soon_and_one_that_closes_again_too() {
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let portals = Portals::default();
        let watched = portals.watch(address);
        sees(&watched, PortalSeen::Refuses).await;
        let refused = watched.answers(Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        let listener = TcpListener::bind(address).await.unwrap();
        let began = Instant::now();
        watched.answers(PATIENCE).await.unwrap();
        assert!(began.elapsed() < EVERY * 5, "{:?}", began.elapsed());
        drop(listener);
        sees(&watched, PortalSeen::Refuses).await;
    }

    #[tokio::test]
    async fn whoever_watches_shares_the_handshakes_and_the_last_one_ends_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let portals = Portals::default();
        let (one, two) = (portals.watch(address), portals.watch(address));
        assert!(Arc::ptr_eq(&one, &two));
        sees(&one, PortalSeen::Answers).await;
        drop((one, two));
        while timeout(Duration::from_millis(50), listener.accept()).await.is_ok() {}
        let quiet = timeout(EVERY_ANSWERING * 2, listener.accept()).await;
        assert!(quiet.is_err(), "somebody still asks");
        assert!(portals.watch(address).answers(PATIENCE).await.is_ok(), "and it begins anew");
    }

    #[tokio::test]
    async fn a_portal_from_which_nothing_comes_is_silent() {
        // A listener that accepts nobody and whose queue is full drops further handshakes.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = timeout(EVERY, TcpStream::connect(address)).await {
            queued.push(stream);
        }
        let watched = Portals::default().watch(address);
        let refused = watched.answers(SILENT_AFTER * 2).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert_eq!(*watched.seen().borrow(), Some(PortalSeen::Silent));
    }
}
