//! What the shim asks of the Kubernetes API: two kinds of objects, one at a time, by name.
//!
//! Rights needed: `get` of `volumeattachments` and `csinodes` in `storage.k8s.io`.

use std::time::Duration;

use rds_csi_proto::agent::AttachmentQuestion;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::api::Source;
use crate::verdict::{self, Verdict, Who};

/// The API group of both.
const STORAGE: &str = "/apis/storage.k8s.io/v1";

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
        if let Some(found) = self.get("volumeattachments", &name).await? {
            return Ok(verdict::of_found(&found, who, question));
        }
        let node = self.get("csinodes", who.node.as_str()).await?;
        Ok(verdict::of_missing(&question.volume_id, who, node.as_ref()))
    }

    /// Reads one object. Without a resourceVersion the answer is what etcd's majority has, not
    /// what some cache had (Kubernetes API concepts, "Resource versions").
    async fn get<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<Option<T>, String> {
        let what = |why: String| format!("get {kind} {name}: {why}");
        let (code, body) = self.0.get(&format!("{STORAGE}/{kind}/{name}")).await.map_err(what)?;
        if code == 200 {
            return serde_json::from_slice(&body)
                .map(Some)
                .map_err(|e| what(format!("the Kubernetes API's answer cannot be read: {e}")));
        }
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        if code == 404 && is_absent(&status, kind, name) {
            return Ok(None);
        }
        let said = status.message.lines().next().unwrap_or_default();
        Err(what(format!("the Kubernetes API says {code} {} {said}", status.reason)))
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
