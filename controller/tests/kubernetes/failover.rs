//! The leader dies at each point of a publish and of an unpublish, and the next one takes over.
//!
//! Each death has an appliance, a Lease and two controllers of its own, since a take-over takes
//! as long as a lease lasts; they die beside each other.

use std::time::{Duration, Instant};

use rds_kube::Cluster;

use crate::bench::*;
use crate::lab::deaths::{Death, each_death};
use crate::lab::*;

/// How soon it leads is measured elsewhere (election.rs), where the machine has nothing else to do.
const AT_LENGTH: Duration = Duration::from_secs(90);
/// Two controllers and an appliance each.
const AT_A_TIME: usize = 12;
/// A second node comes because somebody says so; both connect as the same host.
const FLAGS: &[&str] = &["--allow-shared-block", "--metrics-addr", "127.0.0.1:0"];

#[tokio::test]
async fn whoever_takes_over_from_a_leader_that_died_anywhere_keeps_to_the_rules() {
    let Some(cluster) = cluster() else { return };
    each_death(AT_A_TIME, &[], |death, lab| take_over(death, lab, cluster)).await;
}

async fn take_over(death: Death, mut lab: Lab, cluster: &Cluster) {
    lab.controller.kill();
    let point = death.point();
    let driver = format!("{}.example", point.replace('.', "-"));
    let client = client(cluster).await;
    free_lease(&client, &driver).await;
    let mut doomed = Replica::command(cluster);
    doomed.args(FLAGS).env("RDS_CSI_CRASH_AT", &point);
    let mut first = Replica::spawn(&lab, &driver, "first", doomed).await;
    first.leads_within(AT_LENGTH).await;
    let second = Replica::start_with(&lab, cluster, &driver, "second", FLAGS).await;
    death.prepare(&lab, &first.volumes()).await;
    assert_eq!((first.number("leader").await, second.number("leader").await), (1, 0), "{point}");

    death.call(&first.volumes()).await.expect_err(&point);
    assert!(tail(&first.log).contains(&format!("crash point {point}")), "{point} was not passed");
    first.process.kill();
    second.leads_within(AT_LENGTH).await;
    // Before anybody has asked it anything.
    second.shows(&death).await;
    death.rules_hold(&lab, &second.volumes()).await;
    for name in ["attachments", "migration_active_migrations"] {
        assert_eq!(second.number(name).await, 0, "{point}: {name}");
    }
}

impl Replica {
    /// Waits until the numbers are those of what the appliance has.
    async fn shows(&self, death: &Death) {
        let held = death.held();
        let wanted = [1, held, usize::from(held == 2)].map(|n| i64::try_from(n).unwrap());
        let begun = Instant::now();
        loop {
            let mut seen = Vec::new();
            for name in ["leader", "attachments", "migration_active_migrations"] {
                seen.push(self.number(name).await);
            }
            if seen == wanted {
                return;
            }
            let text = format!("{}: {seen:?} for {wanted:?}", death.point());
            assert!(begun.elapsed() < Duration::from_secs(20), "{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
