//! With real streams: the service on a socket of its own, and clients that answer or do not.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use hyper_util::rt::TokioIo;
use rds_csi_proto::agent::attachments_client::AttachmentsClient;
use rds_csi_proto::agent::attachments_server::AttachmentsServer;
use rds_csi_proto::ids::{HostNqn, Portal};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server, Uri};

use super::*;

fn spec(volume: &str) -> SessionSpec {
    SessionSpec {
        volume: volume.parse().unwrap(),
        nqn: format!("nqn.2000-02.com.mikrotik:{volume}").parse().unwrap(),
        host_nqn: HostNqn::random(),
        portal: Portal::parse("10.0.0.2", "4420").unwrap(),
        ctrl_loss_tmo: -1,
        reconnect_delay: 1,
        keep_alive_tmo: 5,
        nr_io_queues: 1,
        shield: true,
        io_timeout_secs: 0,
        reattach_check_secs: 60,
        arrival: Some("a-1".parse().unwrap()),
    }
}

const VOLUMES: [&str; 2] =
    ["pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e21", "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e22"];

struct Agent {
    dir: tempfile::TempDir,
    answerers: Answerers,
}

impl Agent {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let answerers = Answerers::new(Arc::new(Metrics::new().unwrap()));
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let server = Server::builder().add_service(AttachmentsServer::new(answerers.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self { dir, answerers }
    }

    fn asks(&self, volume: &str, patience: Duration) -> tokio::task::JoinHandle<Attachment> {
        let (all, spec) = (self.answerers.clone(), spec(volume));
        tokio::spawn(async move { all.ask_until(&spec, Instant::now() + patience).await })
    }

    async fn have(&self, lines: usize) {
        let wait = async {
            while self.answerers.lock().lines.len() != lines {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap();
    }
}

/// What anything in here may take before the test is broken.
const LIMIT: Duration = Duration::from_secs(20);

struct Shim {
    answers: mpsc::Sender<AttachmentAnswer>,
    questions: Streaming<AttachmentQuestion>,
}

impl Shim {
    async fn connect(agent: &Agent) -> Self {
        let before = agent.answerers.lock().lines.len();
        let path: Arc<Path> = agent.dir.path().join("s").into();
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        let (answers, send) = mpsc::channel(8);
        let mut client = AttachmentsClient::new(channel);
        let opened = client.answer(ReceiverStream::new(send));
        let questions = opened.await.unwrap().into_inner();
        agent.have(before + 1).await;
        Self { answers, questions }
    }

    async fn question(&mut self) -> AttachmentQuestion {
        tokio::time::timeout(LIMIT, self.questions.next()).await.unwrap().unwrap().unwrap()
    }

    async fn say(&self, id: u64, verdict: AttachmentVerdict, reason: &str) {
        let answer = AttachmentAnswer { id, verdict: verdict.into(), reason: reason.to_owned() };
        self.answers.send(answer).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_shim_nothing_is_known_at_once() {
    let agent = Agent::new();
    let answer = agent.asks(VOLUMES[0], LIMIT * 10).await.unwrap();
    assert!(matches!(&answer, Attachment::Unknown(why) if why.contains("no shim")), "{answer:?}");
}

#[tokio::test]
async fn questions_overtake_one_another_and_each_gets_its_own_answer() {
    let agent = Agent::new();
    let mut shim = Shim::connect(&agent).await;
    let first = agent.asks(VOLUMES[0], LIMIT);
    let a = shim.question().await;
    let second = agent.asks(VOLUMES[1], LIMIT);
    let b = shim.question().await;
    assert_eq!((a.volume_id.as_str(), b.volume_id.as_str()), (VOLUMES[0], VOLUMES[1]));
    assert_eq!(a.identity["arrival"], "a-1");
    assert!(a.identity["hostNqn"].starts_with("nqn.2014-08"));
    shim.say(b.id, AttachmentVerdict::Gone, "deleted").await;
    assert_eq!(second.await.unwrap(), Attachment::Gone("deleted".into()));
    // An answer to nothing, and one that came before.
    shim.say(77, AttachmentVerdict::Gone, "").await;
    shim.say(b.id, AttachmentVerdict::Exists, "").await;
    shim.say(a.id, AttachmentVerdict::Exists, "").await;
    assert_eq!(first.await.unwrap(), Attachment::Exists);
    let third = agent.asks(VOLUMES[0], LIMIT);
    let c = shim.question().await;
    // A verdict that this version does not know.
    shim.answers
        .send(AttachmentAnswer { id: c.id, verdict: 99, reason: "?".into() })
        .await
        .unwrap();
    assert_eq!(third.await.unwrap(), Attachment::Unknown("?".into()));
}

#[tokio::test]
async fn one_who_says_nothing_costs_a_deadline_and_leaves_nothing_behind() {
    let agent = Agent::new();
    let mut shim = Shim::connect(&agent).await;
    let asked = agent.asks(VOLUMES[0], Duration::from_millis(200));
    let question = shim.question().await;
    let answer = asked.await.unwrap();
    assert!(matches!(&answer, Attachment::Unknown(why) if why.contains("not answered")));
    assert!(agent.answerers.lock().lines[0].waiting.is_empty());
    shim.say(question.id, AttachmentVerdict::Gone, "too late").await;
    let asked = agent.asks(VOLUMES[0], LIMIT);
    let question = shim.question().await;
    shim.say(question.id, AttachmentVerdict::Exists, "").await;
    assert_eq!(asked.await.unwrap(), Attachment::Exists);
}

#[tokio::test]
async fn the_newest_is_asked_and_when_it_ends_the_other() {
    let agent = Agent::new();
    let mut old = Shim::connect(&agent).await;
    let mut new = Shim::connect(&agent).await;
    let asked = agent.asks(VOLUMES[0], LIMIT);
    new.question().await;
    drop(new);
    let again = old.question().await;
    old.say(again.id, AttachmentVerdict::Exists, "").await;
    assert_eq!(asked.await.unwrap(), Attachment::Exists);
    agent.have(1).await;
    let asked = agent.asks(VOLUMES[0], LIMIT);
    old.question().await;
    drop(old);
    let answer = asked.await.unwrap();
    assert!(matches!(&answer, Attachment::Unknown(why) if why.contains("ended before")));
    assert!(!agent.answerers.is_anybody_there());
}

#[tokio::test]
async fn an_agent_that_stops_ends_the_streams_and_takes_no_more() {
    let agent = Agent::new();
    let mut shim = Shim::connect(&agent).await;
    agent.answerers.close();
    let end = tokio::time::timeout(LIMIT, shim.questions.next()).await.unwrap();
    assert!(end.is_none_or(|message| message.is_err()));
    assert!(agent.answerers.join().is_none());
}
