//! What the shim asks of the Kubernetes API, one object at a time, by name, and tells it.
//!
//! Rights needed: `get` of `volumeattachments` and `csinodes` in `storage.k8s.io`; for Events also
//! `get` of `persistentvolumes`, and `create` and `patch` of `events` in `events.k8s.io`.

use std::time::Duration;

use rds_csi_proto::agent::AttachmentQuestion;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::codegen::http::Method;

use crate::api::Source;
use crate::event::{Claim, Event, PersistentVolume};
use crate::verdict::{self, Verdict, Who};

const CORE: &str = "/api/v1";
const STORAGE: &str = "/apis/storage.k8s.io/v1";
const EVENTS: &str = "/apis/events.k8s.io/v1";
/// One that has not answered by then is tried again.
const TELLING: Duration = Duration::from_secs(10);

/// The API server. Cheap to clone; nothing is read or connected before it is asked.
#[derive(Debug, Clone)]
pub struct Kubernetes(pub Source);

impl Kubernetes {
    /// What became of an attachment. Never fails: what cannot be known is unknown.
    pub async fn judge(
        &self,
        who: &Who,
        question: &AttachmentQuestion,
        patience: Duration,
    ) -> Verdict {
        let looked = timeout(patience, self.look(who, question)).await.unwrap_or_else(|_| {
            Err(format!("the Kubernetes API has not answered within {patience:?}"))
        });
        looked.unwrap_or_else(Verdict::Unknown)
    }

    async fn look(&self, who: &Who, question: &AttachmentQuestion) -> Result<Verdict, String> {
        let name = who.attachment_name(&question.volume_id);
        if let Some(found) = self.get(STORAGE, "volumeattachments", &name).await? {
            return Ok(verdict::of_found(&found, who, question));
        }
        let node = self.get(STORAGE, "csinodes", who.node.as_str()).await?;
        Ok(verdict::of_missing(&question.volume_id, who, node.as_ref()))
    }

    /// Reads one object. Without a resourceVersion the answer is what etcd's majority has, not
    /// what some cache had (Kubernetes API concepts, "Resource versions").
    async fn get<T: DeserializeOwned>(
        &self,
        group: &str,
        kind: &str,
        name: &str,
    ) -> Result<Option<T>, String> {
        let what = |why: String| format!("get {kind} {name}: {why}");
        let (code, body) = self.0.get(&format!("{group}/{kind}/{name}")).await.map_err(what)?;
        if code == 200 {
            return serde_json::from_slice(&body)
                .map(Some)
                .map_err(|e| what(format!("the Kubernetes API's answer cannot be read: {e}")));
        }
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        if code == 404 && is_absent(&status, kind, name) {
            return Ok(None);
        }
        Err(what(status.said(code)))
    }

    /// The claim of a volume that this node has. `None` if it has it no more, or there is none.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn claim(&self, who: &Who, volume: &str) -> Result<Option<Claim>, String> {
        let look = async {
            let name = who.attachment_name(volume);
            let attachment: Option<verdict::VolumeAttachment> =
                self.get(STORAGE, "volumeattachments", &name).await?;
            let Some(pv) = attachment.as_ref().and_then(|a| a.persistent_volume()) else {
                return Ok(None);
            };
            let pv: Option<PersistentVolume> = self.get(CORE, "persistentvolumes", pv).await?;
            Ok(pv.and_then(|pv| pv.claim_of(volume, &who.driver)))
        };
        timeout(TELLING, look).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Writes an Event. One that is there already was written by an attempt whose answer was lost.
    ///
    /// # Errors
    /// See [`Untold`].
    pub async fn tell(&self, event: &Event) -> Result<(), Untold> {
        let path = format!("{EVENTS}/namespaces/{}/events", event.namespace());
        let sending = self.0.send(Method::POST, &path, "application/json", event.body());
        told(timeout(TELLING, sending).await, &[200, 201, 202, 409])
    }

    /// Writes that an Event has happened once more.
    ///
    /// # Errors
    /// See [`Untold`].
    pub async fn tell_again(&self, event: &Event) -> Result<(), Untold> {
        let (namespace, name) = (event.namespace(), event.name());
        let path = format!("{EVENTS}/namespaces/{namespace}/events/{name}");
        let sending = self.0.send(Method::PATCH, &path, MERGE_PATCH, event.series());
        told(timeout(TELLING, sending).await, &[200])
    }
}

const MERGE_PATCH: &str = "application/merge-patch+json";

/// Why an Event was not written.
#[derive(Debug)]
pub enum Untold {
    /// It may be, later.
    Later(String),
    /// It will not be.
    Refused(String),
}

fn silent() -> String {
    format!("the Kubernetes API has not answered within {TELLING:?}")
}

type Answer = Result<(u16, Vec<u8>), String>;

fn told(answer: Result<Answer, tokio::time::error::Elapsed>, done: &[u16]) -> Result<(), Untold> {
    let (code, body) = answer.map_err(|_| Untold::Later(silent()))?.map_err(Untold::Later)?;
    if done.contains(&code) {
        return Ok(());
    }
    let said = serde_json::from_slice::<Status>(&body).unwrap_or_default().said(code);
    match code {
        // Not allowed, not valid, not there: it will be the same next time.
        400..500 if ![408, 409, 429].contains(&code) => Err(Untold::Refused(said)),
        _ => Err(Untold::Later(said)),
    }
}

/// What the API server says instead of an object (`meta/v1`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    reason: String,
    message: String,
    code: u16,
    details: Option<Details>,
}

impl Status {
    fn said(&self, code: u16) -> String {
        let said = self.message.lines().next().unwrap_or_default();
        format!("the Kubernetes API says {code} {} {said}", self.reason)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    name: String,
    kind: String,
}

/// Only the API server itself says that there is no such object, and names it. Any other 404
/// comes from something on the way.
fn is_absent(status: &Status, kind: &str, name: &str) -> bool {
    let of_it = |d: &Details| d.kind == kind && d.name == name;
    status.code == 404 && status.reason == "NotFound" && status.details.as_ref().is_some_and(of_it)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn absent(text: &str) -> bool {
        is_absent(&serde_json::from_str(text).unwrap(), "volumeattachments", "csi-1")
    }

    #[test]
    fn only_the_api_servers_own_404_about_that_object_is_absence() {
        let own = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"volumeattachments.storage.k8s.io \"csi-1\" not found","reason":"NotFound",
            "details":{"name":"csi-1","group":"storage.k8s.io","kind":"volumeattachments"},
            "code":404}"#;
        assert!(absent(own));
        for (from, to) in [
            (r#""name":"csi-1""#, r#""name":"csi-2""#),
            (r#""kind":"volumeattachments""#, r#""kind":"nodes""#),
            (r#""reason":"NotFound""#, r#""reason":"Forbidden""#),
            ("404", "403"),
        ] {
            assert!(!absent(&own.replace(from, to)), "{to}");
        }
        // What becomes of a proxy's page.
        assert!(!is_absent(&Status::default(), "volumeattachments", "csi-1"));
    }
}
