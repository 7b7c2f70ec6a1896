//! Who can say whether an attachment still exists: the shims that are connected.
//!
//! The agent knows nothing of Kubernetes. A shim opens a stream
//! (`rdscsi.agent.v1.Attachments`) and keeps it open; questions go down it as they arise, any
//! number at a time, and each has its own deadline, so that no volume waits for another's
//! answer. The newest stream is asked first: while a shim is replaced there may be two, and the
//! older one may be dying.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use rds_csi_proto::agent::attachments_server::Attachments;
use rds_csi_proto::agent::{AttachmentAnswer, AttachmentQuestion, AttachmentVerdict};
use rds_csi_proto::context::identity;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::metrics::Metrics;

use super::SessionSpec;
use super::machine::Attachment;

/// Waiting I/O may hang on it, and an answer takes one round trip to the API server. No answer
/// is an answer too: unknown.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Questions that a stream may lag behind: more than there are volumes.
const BACKLOG: usize = 1024;

/// The streams on which questions are answered. Cheap to clone.
#[derive(Clone)]
pub struct Answerers {
    inner: Arc<Mutex<Inner>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    /// For questions and streams alike.
    next_id: u64,
    /// Oldest first.
    lines: Vec<Line>,
    closed: bool,
}

struct Line {
    id: u64,
    questions: mpsc::Sender<Result<AttachmentQuestion, Status>>,
    waiting: HashMap<u64, oneshot::Sender<Attachment>>,
}

/// A question under way; what was reserved for it goes with it.
struct Pending {
    of: Answerers,
    line: u64,
    question: u64,
    answer: oneshot::Receiver<Attachment>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(line) = self.of.lock().lines.iter_mut().find(|l| l.id == self.line) {
            line.waiting.remove(&self.question);
        }
    }
}

impl Answerers {
    /// Nobody yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { inner: Arc::default(), metrics }
    }

    /// Whether somebody is there to be asked.
    #[must_use]
    pub fn is_anybody_there(&self) -> bool {
        !self.lock().lines.is_empty()
    }

    /// Asks what became of the attachment under which this session was staged.
    pub async fn ask(&self, spec: &SessionSpec) -> Attachment {
        let answer = self.ask_until(spec, Instant::now() + ANSWER_DEADLINE).await;
        debug!(volume = %spec.volume, ?answer, "asked for the attachment");
        self.metrics.attachment_answered(&answer);
        answer
    }

    async fn ask_until(&self, spec: &SessionSpec, deadline: Instant) -> Attachment {
        let mut why = "no shim is connected to this agent that could ask Kubernetes (is the \
             csi-shim's pod running on this node, and not with --no-kubernetes?)"
            .to_owned();
        // One that ends before it answers is no longer in the list.
        while let Some(mut pending) = self.put(spec) {
            match timeout_at(deadline, &mut pending.answer).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => "the shim ended before it answered".clone_into(&mut why),
                Err(_) => {
                    why = format!("the shim has not answered within {ANSWER_DEADLINE:?}");
                    break;
                }
            }
        }
        Attachment::Unknown(why)
    }

    /// Sends the question to the newest stream that takes it.
    fn put(&self, spec: &SessionSpec) -> Option<Pending> {
        let mut inner = self.lock();
        let question = inner.number();
        let message = AttachmentQuestion {
            id: question,
            volume_id: spec.volume.to_string(),
            identity: identity(&spec.nqn, &spec.host_nqn, spec.arrival.as_ref()),
            timeout_ms: u32::try_from(ANSWER_DEADLINE.as_millis()).unwrap_or(u32::MAX),
        };
        // A stream that is full or has ended is of no use any more.
        while let Some(line) = inner.lines.last_mut() {
            if line.questions.try_send(Ok(message.clone())).is_ok() {
                let (send, answer) = oneshot::channel();
                line.waiting.insert(question, send);
                let line = line.id;
                return Some(Pending { of: self.clone(), line, question, answer });
            }
            inner.lines.pop();
        }
        None
    }

    fn answered(&self, line: u64, answer: AttachmentAnswer) {
        let verdict = match answer.verdict() {
            AttachmentVerdict::Exists => Attachment::Exists,
            AttachmentVerdict::Gone => Attachment::Gone(answer.reason),
            AttachmentVerdict::Unknown => Attachment::Unknown(answer.reason),
        };
        let mut inner = self.lock();
        let waiting = inner.lines.iter_mut().find(|l| l.id == line);
        // Whoever asked may have given up by now.
        if let Some(asked) = waiting.and_then(|l| l.waiting.remove(&answer.id)) {
            let _ = asked.send(verdict);
        }
    }

    fn join(&self) -> Option<(u64, mpsc::Receiver<Result<AttachmentQuestion, Status>>)> {
        let (questions, receive) = mpsc::channel(BACKLOG);
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        let id = inner.number();
        inner.lines.push(Line { id, questions, waiting: HashMap::new() });
        Some((id, receive))
    }

    fn leave(&self, line: u64) {
        self.lock().lines.retain(|l| l.id != line);
    }

    /// Ends all streams, which would hold up the agent's stop.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.lines.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it, and what is in it is whole at any moment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[tonic::async_trait]
impl Attachments for Answerers {
    type AnswerStream = Pin<Box<dyn Stream<Item = Result<AttachmentQuestion, Status>> + Send>>;

    async fn answer(
        &self,
        request: Request<Streaming<AttachmentAnswer>>,
    ) -> Result<Response<Self::AnswerStream>, Status> {
        let (line, questions) =
            self.join().ok_or_else(|| Status::unavailable("the agent is stopping"))?;
        info!("somebody can be asked for attachments");
        let (all, mut answers) = (self.clone(), request.into_inner());
        let (ended, over) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let read = async {
                while let Some(Ok(answer)) = answers.next().await {
                    all.answered(line, answer);
                }
            };
            tokio::select! { () = read => {}, _ = over => {} }
            all.leave(line);
            info!("one who could be asked for attachments is gone");
        });
        // Dropped with the stream, by whichever side ends it.
        let questions = ReceiverStream::new(questions).chain(futures::stream::once(async move {
            drop(ended);
            Err(Status::unavailable("the agent asks no more on this stream"))
        }));
        Ok(Response::new(Box::pin(questions)))
    }
}

#[cfg(test)]
mod tests;
