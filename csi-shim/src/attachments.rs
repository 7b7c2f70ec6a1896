//! Answers the agent's questions after attachments (`rdscsi.agent.v1.Attachments`).
//!
//! The shim opens the stream and keeps it open, or tries again for ever: the agent may be
//! restarted, and the shim is of no use to it otherwise. Each question is answered in a task of
//! its own, since one slow answer must not hold up the others.

use std::time::Duration;

use rds_csi_proto::agent::attachments_client::AttachmentsClient;
use rds_csi_proto::agent::{AttachmentAnswer, AttachmentQuestion};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::http::uri::PathAndQuery;

use crate::agent::Agent;
use crate::deadline::Deadline;
use crate::keep::Keep;
use crate::kubernetes::Kubernetes;
use crate::verdict::{Verdict, Who};

/// For error messages of the connection.
const METHOD: &str = "/rdscsi.agent.v1.Attachments/Answer";
/// An agent takes the stream at once.
const OPEN: Duration = Duration::from_secs(10);
/// Answers on their way.
const BACKLOG: usize = 64;
/// The answer is to be with the agent when its patience ends.
const HEAD_START: Duration = Duration::from_millis(500);

/// Answers until it is dropped.
pub async fn run(agent: Agent, kubernetes: Kubernetes, who: Who) {
    let agent = agent.with_patience(Duration::ZERO);
    let mut keep = Keep::new("the agent cannot ask for attachments");
    loop {
        let outcome = answer(&agent, &kubernetes, &who).await;
        keep.after(outcome).await;
    }
}

/// One stream, from its opening to its end. An error means that it was never open.
async fn answer(agent: &Agent, kubernetes: &Kubernetes, who: &Who) -> Result<(), Status> {
    let method = PathAndQuery::from_static(METHOD);
    let channel = agent.connect(&method, Deadline::after(OPEN)).await?;
    let (answers, send) = mpsc::channel(BACKLOG);
    let mut client = AttachmentsClient::new(channel);
    let mut questions = timeout(OPEN, client.answer(ReceiverStream::new(send)))
        .await
        .map_err(|_| Status::deadline_exceeded("the agent does not open the stream"))??
        .into_inner();
    tracing::info!("the agent can ask for attachments");
    // Dropped with this call, and with it what is still being looked up.
    let mut lookups = JoinSet::new();
    loop {
        match questions.message().await {
            Ok(Some(question)) => {
                let (kubernetes, who, answers) = (kubernetes.clone(), who.clone(), answers.clone());
                lookups.spawn(async move {
                    let answer = look_up(&kubernetes, &who, question).await;
                    // The agent is gone, or will ask again.
                    let _ = answers.send(answer).await;
                });
            }
            Ok(None) => break,
            Err(status) => {
                tracing::debug!("the agent ended the stream: {}", status.message());
                break;
            }
        }
        while lookups.try_join_next().is_some() {}
    }
    tracing::info!("the agent asks no more on this stream; opening another");
    Ok(())
}

async fn look_up(
    kubernetes: &Kubernetes,
    who: &Who,
    question: AttachmentQuestion,
) -> AttachmentAnswer {
    let allowed = Duration::from_millis(question.timeout_ms.into());
    let patience = allowed.saturating_sub(HEAD_START.min(allowed / 4));
    let verdict = kubernetes.judge(who, &question, patience).await;
    let volume = &question.volume_id;
    match &verdict {
        Verdict::Exists => tracing::info!(volume, "the attachment exists"),
        Verdict::Gone(why) => tracing::warn!(volume, "the attachment is gone: {why}"),
        Verdict::Unknown(why) => tracing::warn!(volume, "the attachment is not known: {why}"),
    }
    verdict.answer(question.id)
}
