//! Leader election: reads and writes the Lease as [`super::lease`] says, and opens the gate to
//! the appliances for as long as that holds.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::lease::{Candidate, Moment, Seen, Step, TIMING};
use crate::metrics::{Metrics, Role};
use crate::routeros::Gate;

/// An answer that takes longer is of no use: the lease is renewed three times in its life.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// After a failure. The lease is short, and the API server one that many others ask too.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes part in the election.
pub(crate) struct Leader {
    api: Api<Lease>,
    name: String,
    id: String,
    candidate: Candidate,
    started: Instant,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    /// What was read, to be written back with what is ours changed.
    last: Option<Lease>,
}

/// What the rest of the program sees of it.
pub(crate) struct Leadership {
    role: watch::Receiver<Role>,
    release: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Leadership {
    /// Waits until this replica leads.
    pub(crate) async fn gained(&mut self) {
        // Its task ends only when told to, or with `Lost`.
        if self.role.wait_for(|role| *role == Role::Leading).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this replica has led and does not any more.
    pub(crate) async fn lost(&mut self) {
        if self.role.wait_for(|role| *role == Role::Lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the lease back. Only when nothing that was sent is under way any more.
    pub(crate) async fn release(self) {
        self.release.cancel();
        if timeout(REQUEST_LIMIT * 2, self.task).await.is_err() {
            tracing::warn!("the lease could not be given back; it runs out by itself");
        }
    }
}

impl Leader {
    /// Begins to take part.
    pub(crate) fn start(
        cluster: &Cluster,
        namespace: Option<&str>,
        (name, pod): (&str, &str),
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
    ) -> Leadership {
        let namespace = namespace.unwrap_or(&cluster.namespace);
        let id = format!("{pod}_{}", uuid::Uuid::new_v4());
        tracing::info!(namespace, lease = name, %id, "takes part in the election of a leader");
        let leader = Self {
            api: Api::namespaced(cluster.client.clone(), namespace),
            name: name.to_owned(),
            candidate: Candidate::new(id.clone(), TIMING),
            id,
            started: Instant::now(),
            gate,
            metrics,
            last: None,
        };
        let role = leader.metrics.role();
        let release = CancellationToken::new();
        let task = tokio::spawn(leader.run(release.clone()));
        Leadership { role, release, task }
    }

    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    async fn run(mut self, release: CancellationToken) {
        while !release.is_cancelled() {
            let limit = match self.candidate.leads_until() {
                Some(until) => until.saturating_sub(self.now()),
                None => Duration::MAX,
            };
            // Whatever is under way: that the time is over has to be noticed.
            let over = tokio::select! {
                () = release.cancelled() => break,
                stepped = timeout(limit, self.step()) => stepped.is_err(),
            };
            if self.show(over) {
                return;
            }
        }
        self.give_back().await;
    }

    /// One step of the rule. Dropped in the middle of a write, it leaves a doubt behind.
    async fn step(&mut self) {
        let now = self.now();
        let result = match self.candidate.step(now) {
            Step::Wait(until) => {
                tokio::time::sleep(until.saturating_sub(now)).await;
                return;
            }
            Step::Look => self.look().await,
            Step::Write => self.write().await,
        };
        if let Err(error) = result {
            tracing::warn!(lease = %self.name, "{error:#}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells everybody; true if all is over.
    fn show(&mut self, over: bool) -> bool {
        let led = *self.metrics.role().borrow() == Role::Leading;
        let leads = self.candidate.leads_until().filter(|until| !over && *until > self.now());
        match (leads, self.candidate.over_at(), self.candidate.seen()) {
            (Some(until), Some(end), _) => {
                self.gate.open_until(self.started + until, self.started + end);
                if !led {
                    tracing::info!(lease = %self.name, "this replica leads");
                    self.metrics.set_role(Role::Leading);
                }
            }
            _ if led => {
                self.gate.close();
                self.metrics.set_role(Role::Lost);
                return true;
            }
            (_, _, Some(seen)) => {
                let of = seen.holder.clone().unwrap_or_default();
                self.metrics.set_role(Role::Standby { of });
            }
            (_, _, None) => {}
        }
        false
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let read = within(self.api.get_opt(&self.name)).await?;
        let read = read.map_err(|e| anyhow!("cannot read the lease {}: {e}", self.name))?;
        self.candidate.saw(self.read(read.as_ref()), self.now());
        self.last = read;
        Ok(())
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        let wanted = self.taken();
        let sent = self.now();
        self.candidate.doubt();
        let written = self.put(&wanted).await?;
        self.candidate.wrote(self.read(Some(&written)), sent, self.now());
        self.last = Some(written);
        Ok(())
    }

    /// Over the version that was read, or in its absence.
    async fn put(&self, lease: &Lease) -> anyhow::Result<Lease> {
        let params = PostParams::default();
        let written = match lease.metadata.resource_version {
            Some(_) => within(self.api.replace(&self.name, &params, lease)).await?,
            None => within(self.api.create(&params, lease)).await?,
        };
        written.map_err(|e| anyhow!("cannot write the lease {}: {e}", self.name))
    }

    fn read(&self, lease: Option<&Lease>) -> Seen {
        let spec = lease.and_then(|l| l.spec.as_ref());
        let holder = spec.and_then(|s| s.holder_identity.clone()).filter(|id| !id.is_empty());
        let seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or_default();
        let lease_of = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Seen {
            version: lease.and_then(|l| l.metadata.resource_version.clone()),
            holder,
            lease: lease_of,
        }
    }

    /// The Lease in our name.
    fn taken(&self) -> Lease {
        let mut lease = self.last.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        // For people: nobody here compares times of different machines.
        let now = MicroTime(Timestamp::now());
        if spec.holder_identity.as_deref() != Some(&self.id) {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
        }
        spec.holder_identity = Some(self.id.clone());
        spec.lease_duration_seconds = i32::try_from(TIMING.lease.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    async fn give_back(&mut self) {
        if !self.candidate.is_holder() {
            return;
        }
        self.gate.close();
        self.metrics.set_role(Role::Standby { of: String::new() });
        // A renewal may have been cut off by the end.
        if let Err(error) = self.look().await {
            tracing::warn!("{error:#}");
        }
        if !self.candidate.is_holder() {
            return;
        }
        let mut lease = self.taken();
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        match self.put(&lease).await {
            Ok(_) => tracing::info!(lease = %self.name, "given back"),
            Err(error) => tracing::warn!("{error:#}; it runs out by itself"),
        }
    }
}

async fn within<T>(request: impl Future<Output = T>) -> anyhow::Result<T> {
    timeout(REQUEST_LIMIT, request)
        .await
        .map_err(|_| anyhow!("the API server has not answered for {} s", REQUEST_LIMIT.as_secs()))
}
