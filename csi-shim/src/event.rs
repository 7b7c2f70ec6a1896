//! What an Event says (`events.k8s.io/v1`), and about what. No I/O in here.

use jiff::Timestamp;
use rds_csi_proto::agent::{Notice, NoticeKind};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::verdict::Who;

/// The API server's limit (kubernetes, pkg/apis/core/validation/events.go).
const LONGEST_NOTE: usize = 1024;
/// An object's name; the rest of it is ours.
const LONGEST_NAME: usize = 253;

/// A PersistentVolumeClaim, as an Event names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claim {
    namespace: String,
    name: String,
    #[serde(default)]
    uid: String,
}

/// What is read of a PersistentVolume.
#[derive(Debug, Deserialize)]
pub struct PersistentVolume {
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    csi: Option<Csi>,
    claim_ref: Option<Claim>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Csi {
    driver: String,
    volume_handle: String,
}

impl PersistentVolume {
    /// Its claim, if it is of that volume.
    #[must_use]
    pub fn claim_of(self, volume: &str, driver: &str) -> Option<Claim> {
        let csi = self.spec.csi?;
        self.spec.claim_ref.filter(|_| csi.driver == driver && csi.volume_handle == volume)
    }
}

/// One Event.
#[derive(Debug, Clone)]
pub struct Event {
    about: Option<Claim>,
    who: Who,
    reason: &'static str,
    is_warning: bool,
    note: String,
    at: Timestamp,
    name: String,
    count: u32,
}

impl Event {
    /// Of a notice about the volume of a claim; without one it is about the node. `None` for a
    /// kind that this release does not know.
    #[must_use]
    pub fn of(notice: &Notice, about: Option<Claim>, who: &Who) -> Option<Self> {
        let (reason, is_warning) = match notice.kind() {
            NoticeKind::SessionLost => ("SessionLost", true),
            NoticeKind::SessionRestored => ("SessionRestored", false),
            NoticeKind::VolumeBlocked => ("VolumeBlocked", true),
            NoticeKind::VolumeFenced => ("VolumeFenced", true),
            NoticeKind::VolumeReadOnly => ("VolumeReadOnly", true),
            NoticeKind::UnstageBusy => ("UnstageBusy", true),
            NoticeKind::Unspecified => return None,
        };
        let mut note = match about {
            Some(_) => format!("node {}: {}", who.node, notice.text),
            None => format!("volume {}: {}", notice.volume_id, notice.text),
        };
        shorten(&mut note, LONGEST_NOTE);
        // The same each time that this notice is told, so that it is not told twice.
        let hash = Sha256::new()
            .chain_update(who.node.as_str())
            .chain_update([0])
            .chain_update(&notice.volume_id)
            .chain_update(notice.kind.to_be_bytes())
            .chain_update(notice.at_unix_ms.to_be_bytes())
            .chain_update(&notice.text)
            .finalize();
        let hash = hex::encode(&hash[..8]);
        let mut name = about.as_ref().map_or(who.node.to_string(), |claim| claim.name.clone());
        shorten(&mut name, LONGEST_NAME - hash.len() - 1);
        let at = Timestamp::from_millisecond(notice.at_unix_ms).unwrap_or_default();
        let (name, who) = (format!("{name}.{hash}"), who.clone());
        Some(Self { about, who, reason, is_warning, note, at, name, count: 1 })
    }

    /// Where it is kept: an Event about a node, which is in no namespace, in `default`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.about.as_ref().map_or("default", |claim| claim.namespace.as_str())
    }

    /// Of the object.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it says the same.
    #[must_use]
    pub fn repeats(&self, earlier: &Self) -> bool {
        self.about == earlier.about && self.reason == earlier.reason && self.note == earlier.note
    }

    /// The earlier Event, once more at the time of this one.
    #[must_use]
    pub fn after(&self, earlier: &Self) -> Self {
        let count = earlier.count.saturating_add(1);
        Self { name: earlier.name.clone(), count, ..self.clone() }
    }

    /// When it happened.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The object.
    #[must_use]
    pub fn body(&self) -> String {
        let node = json!({"apiVersion": "v1", "kind": "Node", "name": self.who.node.as_str()});
        let about = self.about.as_ref().map_or_else(
            || node.clone(),
            |claim| {
                json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name,
                       "namespace": claim.namespace, "uid": claim.uid})
            },
        );
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": self.name, "namespace": self.namespace()},
            "eventTime": micros(self.at),
            "type": if self.is_warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "action": self.reason,
            "note": self.note,
            "regarding": about,
            "related": self.about.as_ref().map(|_| node),
            "reportingController": self.who.driver,
            "reportingInstance": self.who.node.as_str(),
        });
        event.to_string()
    }

    /// What changes in the object when it has happened again.
    #[must_use]
    pub fn series(&self) -> String {
        let series: Value = json!({"count": self.count, "lastObservedTime": micros(self.at)});
        json!({"series": series}).to_string()
    }
}

/// `meta/v1` MicroTime: six digits, neither more nor less.
fn micros(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn shorten(text: &mut String, limit: usize) {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn who() -> Who {
        Who { driver: "rds.csi.srvlab.io".into(), node: "node-1".parse().unwrap() }
    }

    fn notice(kind: NoticeKind, at_unix_ms: i64, text: &str) -> Notice {
        Notice { volume_id: "pvc-1".into(), kind: kind.into(), at_unix_ms, text: text.into() }
    }

    fn claim() -> Option<Claim> {
        let text = r#"{"namespace": "shop", "name": "data", "uid": "u"}"#;
        serde_json::from_str(text).unwrap()
    }

    fn body(event: &Event) -> Value {
        serde_json::from_str(&event.body()).unwrap()
    }

    #[test]
    fn an_event_is_about_the_claim_and_else_about_the_node() {
        let lost = notice(NoticeKind::SessionLost, 1_700_000_000_120, "lost");
        let event = Event::of(&lost, claim(), &who()).unwrap();
        let seen = body(&event);
        assert_eq!(seen["eventTime"], "2023-11-14T22:13:20.120000Z");
        assert_eq!(
            (&seen["type"], &seen["note"]),
            (&json!("Warning"), &json!("node node-1: lost"))
        );
        assert_eq!(seen["regarding"]["name"], "data");
        assert_eq!(seen["metadata"]["namespace"], "shop");
        assert_eq!(seen["related"]["name"], "node-1");
        let node = body(&Event::of(&lost, None, &who()).unwrap());
        assert_eq!((&node["regarding"]["kind"], &node["related"]), (&json!("Node"), &Value::Null));
        assert_eq!(node["metadata"]["namespace"], "default");
        assert_eq!(node["note"], "volume pvc-1: lost");
        assert!(Event::of(&notice(NoticeKind::Unspecified, 0, ""), None, &who()).is_none());
    }

    #[test]
    fn a_notice_has_one_name_and_another_one_another() {
        let name = |kind, at, text| {
            let event = Event::of(&notice(kind, at, text), claim(), &who()).unwrap();
            event.name().to_owned()
        };
        let first = name(NoticeKind::SessionLost, 1, "x");
        assert_eq!(first, name(NoticeKind::SessionLost, 1, "x"));
        assert_ne!(first, name(NoticeKind::SessionLost, 2, "x"));
        assert_ne!(first, name(NoticeKind::VolumeBlocked, 1, "x"));
        assert_ne!(first, name(NoticeKind::SessionLost, 1, "y"));
        assert!(first.starts_with("data."), "{first}");
    }

    #[test]
    fn what_happens_again_is_counted_under_the_first_name() {
        let event = |at, text: &str| {
            Event::of(&notice(NoticeKind::UnstageBusy, at, text), claim(), &who()).unwrap()
        };
        let (first, second) = (event(1, "a"), event(2, "a"));
        assert!(second.repeats(&first) && !event(2, "b").repeats(&first));
        let third = event(3000, "a").after(&second.after(&first));
        assert_eq!(third.name(), first.name());
        let series: Value = serde_json::from_str(&third.series()).unwrap();
        let wanted = json!({"count": 3, "lastObservedTime": "1970-01-01T00:00:03.000000Z"});
        assert_eq!(series["series"], wanted);
    }

    #[test]
    fn what_is_too_long_is_cut_between_letters() {
        let long = "é".repeat(LONGEST_NOTE);
        let event = Event::of(&notice(NoticeKind::SessionLost, 0, &long), None, &who()).unwrap();
        assert!(event.note.len() <= LONGEST_NOTE && event.note.len() > LONGEST_NOTE - 4);
    }

    #[test]
    fn only_the_volumes_own_pv_names_its_claim() {
        let pv = |driver: &str, handle: &str| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {
                "csi": {"driver": driver, "volumeHandle": handle},
                "claimRef": {"namespace": "shop", "name": "data", "uid": "u"}}}))
            .unwrap()
        };
        assert_eq!(pv("d", "v").claim_of("v", "d"), claim());
        assert_eq!(pv("d", "other").claim_of("v", "d"), None);
        assert_eq!(pv("other", "v").claim_of("v", "d"), None);
    }
}
