#![allow(clippy::unwrap_used)]
use std::collections::VecDeque;
use std::sync::Mutex as StdMutex;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::*;

type Answer = Result<Vec<Row>, ApplianceError>;

/// Answers from a script and notes what was sent.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<StdMutex<VecDeque<Answer>>>,
    sent: Arc<StdMutex<Vec<String>>>,
}

impl Transport for Script {
    fn call<'a>(&'a mut self, request: &'a Request) -> BoxFuture<'a, Answer> {
        self.sent.lock().unwrap().push(request.to_string());
        let answer = self.answers.lock().unwrap().pop_front().unwrap();
        async move { answer }.boxed()
    }
}

fn row(pairs: &[(&str, &str)]) -> Row {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn good() -> Answer {
    Ok(vec![row(&[("version", "7.24 (stable)")])])
}

fn down() -> Answer {
    Err(ApplianceError::Unreachable { host: "rds".into(), cause: "refused".into() })
}

fn appliance(answers: Vec<Answer>) -> (Appliance, Script) {
    let script = Script { answers: Arc::new(StdMutex::new(answers.into())), sent: Arc::default() };
    let metrics = Arc::new(Metrics::new().unwrap());
    (Appliance::new(Box::new(script.clone()), metrics), script)
}

fn volume() -> VolumeId {
    VolumeId::from_request_name("v")
}

#[tokio::test]
async fn nothing_is_asked_before_two_good_answers_in_a_row() {
    // Good, nonsense: not proven. Then good, good: proven, and the question is put.
    let (rds, script) =
        appliance(vec![good(), Ok(vec![row(&[("x", "y")])]), good(), good(), Ok(vec![])]);
    assert!(matches!(rds.disk(&volume()).await, Err(ApplianceError::BadAnswer { .. })));
    assert_eq!(rds.disk(&volume()).await.unwrap(), None);
    assert_eq!(script.sent.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn an_outage_must_be_lived_down() {
    let (rds, script) =
        appliance(vec![good(), good(), Ok(vec![]), down(), good(), good(), Ok(vec![])]);
    assert_eq!(rds.disk(&volume()).await.unwrap(), None);
    assert!(matches!(rds.disk(&volume()).await, Err(ApplianceError::Unreachable { .. })));
    assert_eq!(rds.disk(&volume()).await.unwrap(), None);
    assert_eq!(script.sent.lock().unwrap().len(), 7);
}

#[tokio::test]
async fn an_old_router_os_is_refused_by_name() {
    let (rds, _) = appliance(vec![Ok(vec![row(&[("version", "7.20.8 (long-term)")])])]);
    let message = rds.probe().await.unwrap_err().to_string();
    assert!(message.contains("7.20.8") && message.contains("7.21"), "{message}");
}

#[tokio::test]
async fn an_answer_about_something_else_is_no_answer() {
    let other = row(&[(".id", "*1"), ("slot", "raid10"), ("nvme-tcp-export", "false")]);
    let (rds, _) = appliance(vec![good(), good(), Ok(vec![other.clone()])]);
    assert!(matches!(rds.disk(&volume()).await, Err(ApplianceError::BadAnswer { .. })));
}

#[tokio::test]
async fn ids_are_used_only_where_names_are_not_taken() {
    let no_such = Err(ApplianceError::NoSuchItem { action: "/disk/set".into() });
    let slot = volume().to_string();
    let item = row(&[(".id", "*7"), ("slot", &slot), ("nvme-tcp-export", "false")]);
    let (rds, script) = appliance(vec![good(), good(), no_such, Ok(vec![item]), Ok(vec![])]);
    rds.set_disk(&volume(), vec![Property::Export(Switch::Off)]).await.unwrap();
    let sent = script.sent.lock().unwrap();
    assert_eq!(sent[2], format!("/disk/set {slot}"));
    assert_eq!(sent[4], "/disk/set *7");
}

#[tokio::test]
async fn only_an_answer_that_shows_the_item_shows_a_change() {
    let slot = volume().to_string();
    let shown = row(&[(".id", "*7"), ("slot", &slot), ("nvme-tcp-export", "false")]);
    let other = row(&[(".id", "*7"), ("slot", "raid10"), ("nvme-tcp-export", "false")]);
    let partly = row(&[(".id", "*7"), ("slot", &slot)]);
    for (answer, counts) in [
        (vec![shown.clone()], true),
        (vec![], false),
        (vec![other], false),
        (vec![partly], false),
        (vec![shown.clone(), shown], false),
    ] {
        let (rds, _) = appliance(vec![good(), good(), Ok(answer)]);
        let item = rds.set_disk(&volume(), vec![Property::Export(Switch::Off)]).await.unwrap();
        assert_eq!(item.is_some(), counts, "{item:?}");
    }
}
