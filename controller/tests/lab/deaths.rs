//! The deaths of a controller in the middle of a publish or an unpublish: at each of its points,
//! and what has to hold for whoever comes after it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use rds_csi_proto::ids::HostNqn;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::*;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const A: &str = "node-1";
const B: &str = "node-2";
const C: &str = "node-3";
/// Whom nobody was ever told to connect as.
const STRANGER: &str = "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-41d2-883f-0016d3cca427";

type Context = HashMap<String, String>;
pub type Client = ControllerClient<Channel>;

/// For how many nodes the volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Exclusive,
    Shared,
}

/// What the call that is cut short finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Detached,
    /// Exported to a stranger with nobody on record: an attachment made in part.
    Torn,
    Attached,
    /// Attached, and somebody allows another host.
    OtherHost,
    /// Attached, and somebody turns the export off.
    TurnedOff,
    /// Attached to both nodes.
    Both,
}

/// One death.
#[derive(Debug, Clone, Copy)]
pub struct Death {
    change: &'static str,
    when: &'static str,
    sharing: Sharing,
    before: Before,
    /// Whose publish or unpublish it is.
    node: &'static str,
    /// Who is on record afterwards.
    held: &'static [&'static str],
}

type Row = (&'static str, Sharing, Before, &'static str, [&'static [&'static str]; 2]);

/// Each change that a publish and an unpublish make, and who is on record before and after it.
const CHANGES: &[Row] = &[
    ("publish.close", Sharing::Exclusive, Before::Torn, A, [&[], &[]]),
    ("publish.attach", Sharing::Exclusive, Before::Detached, A, [&[], &[A]]),
    ("publish.correct", Sharing::Exclusive, Before::OtherHost, A, [&[A], &[A]]),
    ("publish.resume", Sharing::Exclusive, Before::TurnedOff, A, [&[A], &[A]]),
    ("publish.join", Sharing::Shared, Before::Attached, B, [&[A], &[A, B]]),
    ("unpublish.close", Sharing::Exclusive, Before::Torn, A, [&[], &[]]),
    ("unpublish.detach", Sharing::Exclusive, Before::Attached, A, [&[A], &[A]]),
    ("unpublish.clear", Sharing::Exclusive, Before::Attached, A, [&[A], &[]]),
    ("unpublish.correct", Sharing::Shared, Before::OtherHost, B, [&[A], &[A]]),
    ("unpublish.resume", Sharing::Shared, Before::TurnedOff, B, [&[A], &[A]]),
    ("unpublish.shut-out", Sharing::Shared, Before::Both, A, [&[A, B], &[A, B]]),
    ("unpublish.leave", Sharing::Shared, Before::Both, A, [&[A, B], &[B]]),
];

/// Goes through all of them, some at a time, each with a lab of its own: most of it is waiting.
pub async fn each_death<F>(at_a_time: usize, simulator: &[&str], run: impl Fn(Death, Lab) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let all: Vec<Death> = CHANGES
        .iter()
        .flat_map(|&(change, sharing, before, node, held)| {
            let death = move |when, held| Death { change, when, sharing, before, node, held };
            [death("before", held[0]), death("after", held[1])]
        })
        .collect();
    let mut failed = 0;
    for some in all.chunks(at_a_time) {
        let mut running = JoinSet::new();
        for death in some {
            let lab = Lab::start_with(simulator, |_| {}).await;
            running.spawn(run(*death, lab));
        }
        while let Some(ended) = running.join_next().await {
            failed += usize::from(ended.is_err());
        }
    }
    assert_eq!(failed, 0, "of {} deaths; which, is said above", all.len());
}

impl Death {
    /// As src/crash.rs names it.
    pub fn point(&self) -> String {
        format!("{}.{}", self.change, self.when)
    }

    /// How many nodes are on record afterwards.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn publishes(&self) -> bool {
        self.change.starts_with("publish")
    }

    /// Makes what the call is to find. None of it passes the point.
    pub async fn prepare(&self, lab: &Lab, volumes: &Client) {
        let mut request = create_request(ID);
        request.volume_capabilities = vec![self.capability()];
        volumes.clone().create_volume(request).await.unwrap();
        let nodes: &[&str] = match self.before {
            Before::Detached | Before::Torn => &[],
            Before::Attached | Before::OtherHost | Before::TurnedOff => &[A],
            Before::Both => &[A, B],
        };
        for node in nodes {
            self.publish(volumes, node).await.unwrap_or_else(|e| panic!("{}: {e}", self.point()));
        }
        let host = "nvme-tcp-server-allow-host-name";
        match self.before {
            Before::Torn => by_hand(lab, json!({host: STRANGER, "nvme-tcp-export": "yes"})).await,
            Before::OtherHost => by_hand(lab, json!({host: STRANGER})).await,
            Before::TurnedOff => by_hand(lab, json!({"nvme-tcp-export": "no"})).await,
            Before::Detached | Before::Attached | Before::Both => {}
        }
    }

    /// The call in which it dies, and which whoever sent it sends again.
    pub async fn call(&self, volumes: &Client) -> Result<(), Status> {
        match self.publishes() {
            true => self.publish(volumes, self.node).await.map(drop),
            false => self.unpublish(volumes, self.node).await,
        }
    }

    /// Whoever is on record has the volume, and nobody else gets it; the call ends when it is
    /// repeated; and so does the volume's life.
    pub async fn rules_hold(&self, lab: &Lab, next: &Client) {
        let point = self.point();
        assert_eq!(on_record(lab).await, self.held, "{point}");
        self.others_are_refused(next, self.held).await;
        let clock = since(lab).await;
        self.call(next).await.unwrap_or_else(|e| panic!("{point}, again: {e}"));
        let stay: &[&str] = match (self.publishes(), self.before) {
            (true, Before::Attached) => &[A, B],
            (true, _) | (false, Before::OtherHost | Before::TurnedOff) => &[A],
            (false, Before::Both) => &[B],
            (false, _) => &[],
        };
        self.have_it(lab, next, stay).await;
        self.others_are_refused(next, stay).await;
        if self.held == stay {
            assert_eq!(since(lab).await, clock, "{point}: the clock was set anew");
        }
        self.next_one_gets_it(lab, next, stay).await;
        let request = DeleteVolumeRequest { volume_id: ID.into(), ..Default::default() };
        next.clone().delete_volume(request).await.unwrap_or_else(|e| panic!("{point}: {e}"));
        assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await, "{point}: leaked");
    }

    /// One more than there is room for.
    async fn others_are_refused(&self, volumes: &Client, held: &[&str]) {
        let (other, said) = match (self.sharing, held) {
            (Sharing::Exclusive, [_]) => (B, "node-1".to_owned()),
            (Sharing::Shared, [one, two]) => (C, format!("{one} and {two}")),
            _ => return,
        };
        let answer = self.publish(volumes, other).await;
        let status = answer.expect_err(&format!("{}: {other} gets it", self.point()));
        assert_eq!(status.code(), Code::FailedPrecondition, "{}: {status}", self.point());
        assert!(status.message().contains(&said), "{}: {status}", self.point());
    }

    /// The appliance lets these nodes connect, as whom they are told, and nobody else.
    async fn have_it(&self, lab: &Lab, volumes: &Client, nodes: &[&str]) {
        let point = self.point();
        assert_eq!(on_record(lab).await, nodes, "{point}");
        let item = lab.item(ID).await.unwrap();
        let allowed = hosts(&item);
        if nodes.is_empty() {
            assert_eq!(item["nvme-tcp-export"], "false", "{point}");
            assert!(
                allowed.iter().all(|h| h.parse::<HostNqn>().unwrap().is_closed()),
                "{point}: {allowed:?}"
            );
            return;
        }
        assert_eq!(item["nvme-tcp-export"], "true", "{point}");
        let (mut told, mut different) = (BTreeSet::new(), BTreeSet::new());
        for node in nodes {
            let context = self.publish(volumes, node).await.unwrap();
            told.insert(context["hostNqn"].clone());
            different.insert((context["hostNqn"].clone(), context.get("arrival").cloned()));
        }
        assert_eq!(told, allowed, "{point}");
        assert_eq!(different.len(), nodes.len(), "{point}: the same for both: {different:?}");
        // Asking changed nothing.
        assert_eq!(hosts(&lab.item(ID).await.unwrap()), allowed, "{point}");
    }

    /// After those who have it, another node, and as somebody else.
    async fn next_one_gets_it(&self, lab: &Lab, volumes: &Client, have: &[&str]) {
        let before = hosts(&lab.item(ID).await.unwrap());
        for node in have {
            self.unpublish(volumes, node).await.unwrap();
        }
        self.have_it(lab, volumes, &[]).await;
        self.publish(volumes, C).await.unwrap();
        self.have_it(lab, volumes, &[C]).await;
        assert!(before.is_disjoint(&hosts(&lab.item(ID).await.unwrap())), "{}", self.point());
        self.unpublish(volumes, C).await.unwrap();
        self.have_it(lab, volumes, &[]).await;
    }

    fn capability(&self) -> VolumeCapability {
        match self.sharing {
            Sharing::Exclusive => mount(Mode::SingleNodeWriter),
            Sharing::Shared => block(Mode::MultiNodeMultiWriter),
        }
    }

    async fn publish(&self, volumes: &Client, node: &str) -> Result<Context, Status> {
        let request = publish_request(ID, node, self.capability());
        let answer = volumes.clone().controller_publish_volume(request).await?;
        Ok(answer.into_inner().publish_context)
    }

    async fn unpublish(&self, volumes: &Client, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: ID.into(),
            node_id: node.into(),
            ..Default::default()
        };
        volumes.clone().controller_unpublish_volume(request).await.map(drop)
    }
}

/// Changes the item as an administrator would, and waits until it reads so.
async fn by_hand(lab: &Lab, mut change: Value) {
    change[".id"] = lab.item(ID).await.unwrap()[".id"].clone();
    assert_eq!(lab.rest("POST", "/rest/disk/set", change.clone()).await.0, 200);
    let wanted = |key: &str, value: &str| match (key, value) {
        ("nvme-tcp-export", "yes") => "true".to_owned(),
        ("nvme-tcp-export", "no") => "false".to_owned(),
        _ => value.to_owned(),
    };
    for _ in 0..200 {
        let item = lab.item(ID).await.unwrap();
        let all = change.as_object().unwrap().iter();
        if all.clone().all(|(key, v)| item[key] == wanted(key, v.as_str().unwrap())) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not done: {change}");
}

/// A field of the record.
async fn field(lab: &Lab, key: &str) -> Option<String> {
    let item = lab.item(ID).await.unwrap();
    let comment = item["comment"].as_str().unwrap();
    comment.split(' ').find_map(|f| f.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
}

async fn on_record(lab: &Lab) -> Vec<String> {
    let nodes = field(lab, "node").await;
    nodes.iter().flat_map(|n| n.split(',')).map(str::to_owned).collect()
}

/// The clock of a migration, or of an attachment.
async fn since(lab: &Lab) -> Option<String> {
    field(lab, "since").await
}

fn hosts(item: &Value) -> BTreeSet<String> {
    let text = item["nvme-tcp-server-allow-host-name"].as_str().unwrap_or_default();
    text.split(',').map(str::to_owned).collect()
}
