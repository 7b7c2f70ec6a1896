//! Makes Events of what the agent has to tell (`rdscsi.agent.v1.Notices`).
//!
//! One notice at a time: while the API server does not answer, the others wait in the agent, which
//! keeps the newest of them. What cannot be told in four minutes is logged, and dropped.

use std::collections::HashMap;
use std::time::Duration;

use jiff::SignedDuration;
use rds_csi_proto::agent::notices_client::NoticesClient;
use rds_csi_proto::agent::{Notice, NoticesRequest};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::codegen::http::uri::PathAndQuery;

use crate::agent::Agent;
use crate::deadline::Deadline;
use crate::event::{Claim, Event};
use crate::keep::Keep;
use crate::kubernetes::{Kubernetes, Untold};
use crate::verdict::Who;

/// For error messages of the connection.
const METHOD: &str = "/rdscsi.agent.v1.Notices/Listen";
/// An agent takes the stream at once.
const OPEN: Duration = Duration::from_secs(10);
/// Tries of one notice, the pause doubling from one to the next: four minutes.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After that, what happens again is an Event of its own. As client-go and the controller have it.
const SERIES: SignedDuration = SignedDuration::from_secs(6 * 60);
/// Volumes that are remembered: more than a node has.
const REMEMBERED: usize = 1024;

/// Tells until it is dropped.
pub async fn run(agent: Agent, kubernetes: Kubernetes, who: Who) {
    let agent = agent.with_patience(Duration::ZERO);
    let mut teller = Teller { kubernetes, who, claims: HashMap::new(), last: HashMap::new() };
    let mut keep = Keep::new("the agent cannot tell what happens to volumes");
    loop {
        let outcome = listen(&agent, &mut teller).await;
        keep.after(outcome).await;
    }
}

/// One stream, from its opening to its end. An error means that it was never open.
async fn listen(agent: &Agent, teller: &mut Teller) -> Result<(), Status> {
    let method = PathAndQuery::from_static(METHOD);
    let channel = agent.connect(&method, Deadline::after(OPEN)).await?;
    let mut client = NoticesClient::new(channel);
    let mut notices = timeout(OPEN, client.listen(NoticesRequest {}))
        .await
        .map_err(|_| Status::deadline_exceeded("the agent does not open the stream"))??
        .into_inner();
    loop {
        match notices.message().await {
            Ok(Some(notice)) => teller.tell(&notice).await,
            Ok(None) => return Ok(()),
            Err(status) => {
                tracing::debug!("the agent ended the stream: {}", status.message());
                return Ok(());
            }
        }
    }
}

struct Teller {
    kubernetes: Kubernetes,
    who: Who,
    /// By volume: one that is being detached has no attachment that leads to its claim.
    claims: HashMap<String, Claim>,
    /// By volume and kind, what was told last.
    last: HashMap<(String, i32), Event>,
}

impl Teller {
    async fn tell(&mut self, notice: &Notice) {
        let (volume, mut pause) = (&notice.volume_id, FIRST_PAUSE);
        for attempt in 1.. {
            let why = match self.attempt(notice).await {
                Ok(()) => return,
                Err(Untold::Later(why)) if attempt < TRIES => {
                    tracing::debug!(volume, "an Event is to be told later: {why}");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                Err(Untold::Later(why) | Untold::Refused(why)) => why,
            };
            tracing::warn!(volume, text = notice.text, "no Event is written of this: {why}");
            return;
        }
    }

    async fn attempt(&mut self, notice: &Notice) -> Result<(), Untold> {
        let volume = &notice.volume_id;
        let found = self.kubernetes.claim(&self.who, volume).await.map_err(Untold::Later)?;
        if let Some(claim) = found {
            keep_some(&mut self.claims);
            self.claims.insert(volume.clone(), claim);
        }
        let about = self.claims.get(volume).cloned();
        let Some(event) = Event::of(notice, about, &self.who) else {
            tracing::info!(volume, kind = notice.kind, text = notice.text, "of an unknown kind");
            return Ok(());
        };
        let key = (volume.clone(), notice.kind);
        let earlier = self.last.get(&key);
        let again = earlier
            .filter(|e| event.repeats(e) && event.at().duration_since(e.at()) < SERIES)
            .map(|e| event.after(e));
        let told = match again {
            Some(again) => {
                // One that is gone, or older than the API server keeps them, is told anew.
                match self.kubernetes.tell_again(&again).await {
                    Err(Untold::Refused(_)) => self.kubernetes.tell(&event).await.map(|()| event),
                    told => told.map(|()| again),
                }
            }
            None => self.kubernetes.tell(&event).await.map(|()| event),
        }?;
        keep_some(&mut self.last);
        self.last.insert(key, told);
        Ok(())
    }
}

/// A memory that is only a convenience begins anew when it is full.
fn keep_some<K, V>(memory: &mut HashMap<K, V>) {
    if memory.len() >= REMEMBERED {
        memory.clear();
    }
}
