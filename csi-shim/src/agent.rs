//! The connection to the node-agent, one for each call.
//!
//! A new connection over a unix socket costs a fraction of a millisecond, and kubelet
//! calls seldom. For that price there is no connection that an agent restart could have
//! made stale, and it is always clear whether a request was sent: before the connection
//! stands, waiting and trying again is harmless; after that nothing is ever sent twice.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::deadline::Deadline;
use crate::raw::RawCodec;

/// How long a call waits for an agent that is not there: time for a restart to go by
/// unseen, and short enough that "the agent is down" is said promptly.
pub const RESTART_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks for the agent's socket.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where the agent is, and how to ask it.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: Arc<PathBuf>,
    patience: Duration,
}

impl Agent {
    /// The agent that listens on `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket: Arc::new(socket), patience: RESTART_PATIENCE }
    }

    /// The same agent, waited for less long (or longer) if it is not there.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { socket: Arc::clone(&self.socket), patience }
    }

    /// One call, sent at most once, answered by the deadline.
    ///
    /// # Errors
    /// The agent's own status, with its code, message and details; or UNAVAILABLE if the
    /// agent cannot be reached, DEADLINE_EXCEEDED if it does not answer.
    pub async fn call(
        &self,
        method: PathAndQuery,
        message: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes, Status> {
        let channel = self.connect(&method, deadline).await?;
        let exchange = exchange(channel, method.clone(), message, deadline);
        match timeout_at(deadline.answer_by(), exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) if is_transport(&status) => Err(self.broke_off(&method, &status)),
            // Without the status' metadata: those are headers of the hop behind us.
            Ok(Err(status)) => Err(Status::with_details(
                status.code(),
                status.message(),
                Bytes::copy_from_slice(status.details()),
            )),
            Err(_) => Err(deadline.exceeded(&format!(
                "rds-node-agent ({}) has taken the call {} but not finished it; repeating it is \
                 safe; `rds-node-agent status` on the node shows what it waits for",
                self.socket.display(),
                short(&method)
            ))),
        }
    }

    /// Connects, and goes on trying for a while if the agent may be restarting.
    pub(crate) async fn connect(
        &self,
        method: &PathAndQuery,
        deadline: Deadline,
    ) -> Result<Channel, Status> {
        let give_up = deadline.answer_by().min(Instant::now() + self.patience);
        loop {
            let failure = match timeout_at(give_up, connect_once(&self.socket)).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(failure)) => failure,
                Err(_) => Unreachable::Silent,
            };
            let now = Instant::now();
            if !failure.may_pass() || now + LOOK_AGAIN > give_up {
                return Err(Status::unavailable(format!(
                    "{} was not carried out: {}",
                    short(method),
                    failure.explain(&self.socket)
                )));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn broke_off(&self, method: &PathAndQuery, status: &Status) -> Status {
        Status::unavailable(format!(
            "rds-node-agent ({}) ended the connection during {}, so it is unknown whether the call \
             took effect; repeating it is safe. If it happens again: `systemctl status \
             rds-node-agent` and `journalctl -u rds-node-agent` on the node ({})",
            self.socket.display(),
            short(method),
            innermost(status)
        ))
    }
}

/// `NodeStageVolume` of `/csi.v1.Node/NodeStageVolume`, for people.
fn short(method: &PathAndQuery) -> &str {
    method.path().rsplit('/').next().unwrap_or_default()
}

/// Why there is no connection.
#[derive(Debug)]
enum Unreachable {
    /// No such socket.
    Missing,
    /// A socket file that nobody listens on.
    Refused,
    /// Not for us.
    Denied(io::Error),
    /// Listening, but taking no more connections.
    Backlog,
    /// Connected, and nothing came of it.
    Silent,
    /// Anything else.
    Other(String),
}

impl Unreachable {
    fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::PermissionDenied => Self::Denied(error),
            // A unix socket whose listen queue is full answers EAGAIN at once.
            io::ErrorKind::WouldBlock => Self::Backlog,
            _ => Self::Other(error.to_string()),
        }
    }

    /// Whether a restart of the agent looks like this.
    fn may_pass(&self) -> bool {
        !matches!(self, Self::Denied(_))
    }

    /// What is wrong and what to do, for the Event that kubelet makes of it.
    fn explain(&self, socket: &Path) -> String {
        let socket = socket.display();
        match self {
            Self::Missing => format!(
                "there is no socket {socket}: rds-node-agent is not running on this node, or the \
                 socket's directory is not mounted into this pod. See `systemctl status \
                 rds-node-agent` on the node"
            ),
            Self::Refused => format!(
                "nothing listens on {socket}: rds-node-agent has stopped, or is only starting. \
                 See `systemctl status rds-node-agent` on the node"
            ),
            Self::Denied(error) => format!(
                "this process may not use {socket} ({error}): the agent's socket belongs to \
                 root; the shim has to run as user 0 and, with SELinux or AppArmor, be allowed \
                 to connect. See `systemctl status rds-node-agent` on the node"
            ),
            Self::Backlog => format!(
                "rds-node-agent takes no more connections on {socket}: it hangs or is flooded. \
                 See `systemctl status rds-node-agent` on the node"
            ),
            Self::Silent => format!(
                "rds-node-agent does not answer on {socket}. See `systemctl status \
                 rds-node-agent` on the node"
            ),
            Self::Other(error) => format!(
                "rds-node-agent cannot be reached on {socket}: {error}. See `systemctl status \
                 rds-node-agent` on the node"
            ),
        }
    }
}

async fn connect_once(socket: &Path) -> Result<Channel, Unreachable> {
    let stream = UnixStream::connect(socket).await.map_err(Unreachable::from_io)?;
    // The connector gives away this one stream. When the channel wants to reconnect there
    // is none left, so it fails rather than send the request a second time elsewhere.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    // Only the authority of this address is used: h2 refuses one that is a path.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|e| Unreachable::Other(innermost(&e)))
}

async fn exchange(
    channel: Channel,
    method: PathAndQuery,
    message: Bytes,
    deadline: Deadline,
) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|e| Status::from_error(e.into()))?;
    let mut request = Request::new(message);
    request.set_timeout(deadline.left());
    Ok(client.unary(request, method, RawCodec).await?.into_inner())
}

/// A status that the agent sent has no source; one that stands for a failed connection has.
fn is_transport(status: &Status) -> bool {
    status.source().is_some()
}

/// The outermost text of a transport error is "transport error"; the cause is at the end.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn status(kind: io::ErrorKind) -> String {
        Unreachable::from_io(kind.into()).explain(Path::new("/run/rds-csi/agent.sock"))
    }

    #[test]
    fn each_failure_has_its_own_words_names_the_socket_and_says_what_to_do() {
        let all = [
            status(io::ErrorKind::NotFound),
            status(io::ErrorKind::ConnectionRefused),
            status(io::ErrorKind::PermissionDenied),
            status(io::ErrorKind::WouldBlock),
            status(io::ErrorKind::BrokenPipe),
        ];
        for (i, text) in all.iter().enumerate() {
            assert!(text.contains("/run/rds-csi/agent.sock"), "{text}");
            assert!(text.contains("systemctl status rds-node-agent"), "{text}");
            assert!(!text.contains("  "), "{text}");
            assert!(!all[i + 1..].contains(text));
        }
    }

    #[tokio::test]
    async fn a_refusal_of_permission_is_not_waited_out() {
        assert!(!Unreachable::from_io(io::ErrorKind::PermissionDenied.into()).may_pass());
        assert!(Unreachable::from_io(io::ErrorKind::ConnectionRefused.into()).may_pass());
    }
}
