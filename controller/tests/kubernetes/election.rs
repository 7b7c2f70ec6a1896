//! One of several controllers leads, and only that one changes anything.

use std::process::Command;
use std::time::{Duration, Instant};

use rds_kube::Cluster;
use tonic::Code;

use crate::bench::*;
use crate::lab::*;

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
/// What is promised for a death without a word.
const FAILOVER: Duration = Duration::from_secs(15);

#[tokio::test]
async fn the_next_one_leads_when_the_leader_is_killed_or_told_to_stop() {
    let Some(cluster) = cluster() else { return };
    let driver = "election.example";
    let (mut lab, client) = tokio::join!(Lab::start(), client(cluster));
    lab.controller.kill();
    let leases = free_lease(&client, driver).await;
    let mut first = Replica::start(&lab, cluster, driver, "first").await;
    first.leads_within(Duration::from_secs(10)).await;
    let second = Replica::start(&lab, cluster, driver, "second").await;
    first.create(VOLUME).await.unwrap();
    // One that stands by says who it is, and nothing else.
    refused(second.create(VOLUME).await, Code::Unavailable, "not the leader");
    refused(second.publish(VOLUME, "node-1").await, Code::Unavailable, "not the leader");
    assert!(!second.leads().await);

    // Killed in the middle of an attachment, whose change was sent and not answered.
    lab.ctl(&["delay", "3000", "--pattern", "disk/set", "--times", "1"]);
    let cut = first.publish(VOLUME, "node-1");
    let killed = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    tokio::select! {
        result = cut => panic!("not delayed: {result:?}"),
        () = killed => {}
    }
    first.process.kill();
    let took = second.leads_within(FAILOVER).await;
    assert!(took > Duration::from_secs(6), "the lease had not run out after {took:?}");
    second.publish(VOLUME, "node-1").await.unwrap();
    refused(second.publish(VOLUME, "node-2").await, Code::FailedPrecondition, "node-1");
    let lease = leases.get(driver).await.unwrap().spec.unwrap();
    assert!(lease.holder_identity.unwrap().starts_with("second_"));

    // Told to stop, it gives the lease back.
    let third = Replica::start(&lab, cluster, driver, "third").await;
    assert!(!third.leads().await);
    let begun = Instant::now();
    let mut second = second;
    let (ended, _) =
        tokio::join!(second.process.terminate(), third.leads_within(Duration::from_secs(5)));
    assert_eq!(ended, Some(0), "{}", tail(&second.log));
    eprintln!("killed: led after {took:?}; told to stop: after {:?}", begun.elapsed());
    third.unpublish(VOLUME, "node-1").await.unwrap();
    refused(third.publish(VOLUME, "Not a node").await, Code::InvalidArgument, "node");
}

fn send(signal: &str, pid: u32) {
    Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
}

#[tokio::test]
async fn a_leader_that_cannot_renew_its_lease_stops_before_another_one_begins() {
    let Some(cluster) = Cluster::start().unwrap() else { return };
    let driver = "silence.example";
    let (mut lab, client) = tokio::join!(Lab::start(), client(&cluster));
    lab.controller.kill();
    free_lease(&client, driver).await;
    let mut first = Replica::start(&lab, &cluster, driver, "first").await;
    first.leads_within(Duration::from_secs(10)).await;
    let second = Replica::start(&lab, &cluster, driver, "second").await;
    first.create(VOLUME).await.unwrap();
    // A change that the appliance takes far too long for.
    lab.ctl(&["delay", "20000", "--pattern", "disk/set", "--times", "1"]);
    let mut volumes = first.volumes();
    let request = publish_request(VOLUME, "node-1", mount(Mode::SingleNodeWriter));
    let hangs = tokio::spawn(async move { volumes.controller_publish_volume(request).await });

    send("-STOP", cluster.server_pid());
    let silent = Instant::now();
    let mut stopped = None;
    let status = loop {
        // No Probe, which would wait for the appliance.
        let answer = first.publish("", "node-1").await.unwrap_err();
        if stopped.is_none() && answer.code() != Code::InvalidArgument {
            stopped = Some(silent.elapsed());
        }
        if let Some(status) = first.process.ended() {
            break status;
        }
        assert!(silent.elapsed() < Duration::from_secs(10), "still there: {}", tail(&first.log));
        assert!(!second.leads().await, "leads without the API server");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let ended = silent.elapsed();
    eprintln!("stopped after {stopped:?}, ended after {ended:?}");
    assert_eq!(status, Some(1), "{}", tail(&first.log));
    assert!(stopped.unwrap() < Duration::from_millis(6500), "{stopped:?}");
    assert!(ended < Duration::from_millis(9500), "{ended:?}");
    assert!(tail(&first.log).contains("the lease is lost"), "{}", tail(&first.log));
    let cut = hangs.await.unwrap().unwrap_err();
    eprintln!("the change under way: {cut}");
    send("-CONT", cluster.server_pid());
    second.leads_within(FAILOVER).await;
}
