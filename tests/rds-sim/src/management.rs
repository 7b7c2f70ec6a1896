//! The management listeners and the ways in which they can be unavailable.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How management behaves, on both transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Serve,
    /// Nobody listens; connections are gone.
    Refuse,
    /// Accepted, then RST.
    Reset,
    /// Accepted, then FIN.
    Close,
    /// Half-open: accepted and never answered, requests under way included.
    Hang,
    /// 401 with the right password.
    Unauthorised,
    /// 200 with a body that is not an answer.
    WrongBody,
}

#[derive(Debug)]
pub struct Management {
    mode: watch::Sender<Mode>,
}

impl Default for Management {
    fn default() -> Self {
        Management { mode: watch::Sender::new(Mode::Serve) }
    }
}

impl Management {
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Mode> {
        self.mode.subscribe()
    }
}

/// Accepts for ever; `connection` serves one, and is dropped when the mode says so.
pub async fn listen<F, Fut>(
    listener: TcpListener,
    mut mode: watch::Receiver<Mode>,
    connection: F,
) -> std::io::Result<()>
where
    F: Fn(TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let address = listener.local_addr()?;
    let mut listener = Some(listener);
    let mut half_open = Vec::new();
    loop {
        let now = *mode.borrow_and_update();
        if now != Mode::Hang {
            half_open.clear();
        }
        if now == Mode::Refuse {
            listener = None;
            if mode.changed().await.is_err() {
                return Ok(());
            }
            continue;
        }
        let open = match listener.take() {
            Some(open) => open,
            None => match TcpListener::bind(address).await {
                Ok(open) => open,
                Err(e) => {
                    tracing::warn!("{address}: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let accepted = tokio::select! {
            accepted = open.accept() => Some(accepted),
            changed = mode.changed() => match changed {
                Ok(()) => None,
                Err(_) => return Ok(()),
            },
        };
        listener = Some(open);
        match (accepted, now) {
            (None, _) => {}
            (Some(Err(e)), _) => {
                tracing::warn!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Some(Ok((stream, _))), Mode::Reset) => {
                let _ = stream.set_zero_linger();
            }
            (Some(Ok(_)), Mode::Close | Mode::Refuse) => {}
            (Some(Ok((stream, _))), Mode::Hang) => half_open.push(stream),
            (Some(Ok((stream, peer))), Mode::Serve | Mode::Unauthorised | Mode::WrongBody) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(guard(connection(stream, peer), mode.clone()));
            }
        }
    }
}

/// Drives a connection while management is there; frozen while it hangs.
async fn guard(connection: impl Future<Output = ()>, mut mode: watch::Receiver<Mode>) {
    tokio::pin!(connection);
    loop {
        tokio::select! {
            () = &mut connection => return,
            changed = mode.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = *mode.borrow_and_update();
                match now {
                    Mode::Refuse | Mode::Reset | Mode::Close => return,
                    Mode::Hang => {
                        let _ = mode.wait_for(|m| *m != Mode::Hang).await;
                        return;
                    }
                    Mode::Serve | Mode::Unauthorised | Mode::WrongBody => {}
                }
            }
        }
    }
}
