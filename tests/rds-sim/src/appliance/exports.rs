//! Brings the target in line with what the disks say.
//!
//! Commands only say that something changed ([`Change`]). A moment later, as on the appliance,
//! [`Exports::settle`] compares what is wanted with what is up and closes the difference; it may run
//! at any time and any number of times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::core::{Appliance, Change, Live};
use crate::config::Identity as IdentitySwitch;
use crate::ros::id::ItemId;
use crate::target::{Hosts, Target, TargetError};

/// Longer than configfs waits for EBUSY, several times over; a stuck write is reported, not awaited.
const DEADLINE: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

pub struct Exports {
    appliance: Arc<Appliance>,
    target: Arc<Mutex<Box<dyn Target>>>,
    /// A test wants the portal to answer even when nothing is exported.
    portal_held: AtomicBool,
}

impl Exports {
    pub fn new(appliance: Arc<Appliance>, target: Box<dyn Target>) -> Exports {
        Exports {
            appliance,
            target: Arc::new(Mutex::new(target)),
            portal_held: AtomicBool::new(false),
        }
    }

    /// Settles each change once its time has come. Ends with the appliance.
    pub async fn follow(self: Arc<Self>, mut changes: UnboundedReceiver<Change>) {
        while let Some(change) = changes.recv().await {
            let exports = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(change.after).await;
                exports.settle_patiently(change.id).await;
            });
        }
    }

    /// Exports what was saved as exported, at start.
    pub async fn settle_all(&self) {
        for disk in self.appliance.configured() {
            self.settle_patiently(disk.id).await;
        }
    }

    /// [`Exports::settle`] until it succeeds or there is no hope; the log tells.
    pub async fn settle_patiently(&self, id: ItemId) {
        for attempt in 1..=ATTEMPTS {
            match self.settle(id).await {
                Ok(()) => return,
                Err(e) => tracing::warn!(%id, attempt, "{e}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub async fn settle(&self, id: ItemId) -> Result<(), TargetError> {
        let appliance = self.appliance.clone();
        self.with(move |target| settle(&appliance, target, id)).await
    }

    /// Runs blocking work on the target, with a deadline.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Target) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, TargetError> {
        let target = self.target.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
            work(target.as_mut())
        });
        match tokio::time::timeout(DEADLINE, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => Err(TargetError::Other(format!("target task: {e}"))),
            Err(_) => {
                Err(TargetError::Other(format!("the target is stuck for {} s", DEADLINE.as_secs())))
            }
        }
    }

    pub async fn open_portal(&self) -> Result<(), TargetError> {
        self.with(|t| t.open_portal()).await
    }

    /// Closes the portal, unless exports or [`Exports::hold_portal`] keep it open.
    pub async fn release_portal(&self) -> Result<(), TargetError> {
        if self.portal_held.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.with(|t| t.close_portal()).await
    }

    pub async fn hold_portal(&self, hold: bool) -> Result<(), TargetError> {
        self.portal_held.store(hold, Ordering::SeqCst);
        if hold { self.open_portal().await } else { self.release_portal().await }
    }

    pub fn portal_held(&self) -> bool {
        self.portal_held.load(Ordering::SeqCst)
    }

    /// Everything goes: exports, ports, hosts.
    pub async fn tear_down(&self) -> Result<(), TargetError> {
        let appliance = self.appliance.clone();
        self.with(move |target| {
            target.tear_down()?;
            for id in appliance.live().into_keys() {
                appliance.set_live(id, None);
            }
            Ok(())
        })
        .await
    }
}

fn settle(appliance: &Appliance, target: &mut dyn Target, id: ItemId) -> Result<(), TargetError> {
    let live = appliance.live().remove(&id);
    let wanted = appliance.wanted(id);
    match (live, wanted) {
        (None, None) => Ok(()),
        (Some(mut live), None) if appliance.parks(id) => {
            target.set_hosts(&live.spec.nqn, &Hosts::Only(Vec::new()))?;
            live.parked = true;
            appliance.set_live(id, Some(live));
            Ok(())
        }
        (Some(live), None) => {
            target.unexport(&live.spec.nqn)?;
            appliance.set_live(id, None);
            tracing::info!(nqn = live.spec.nqn, "export off");
            Ok(())
        }
        (Some(mut live), Some((spec, toggles, _))) => {
            let same = live.spec.nqn == spec.nqn
                && live.spec.port == spec.port
                && live.spec.file == spec.file;
            let kept = live.toggles == toggles || appliance.parks(id);
            if !same || !kept {
                target.unexport(&live.spec.nqn)?;
                appliance.set_live(id, None);
                return settle(appliance, target, id);
            }
            if live.parked || live.spec.hosts != spec.hosts {
                target.set_hosts(&spec.nqn, &spec.hosts)?;
            }
            live = Live { spec, toggles, parked: false, ..live };
            appliance.set_live(id, Some(live));
            Ok(())
        }
        (None, Some((spec, toggles, size))) => {
            evict(appliance, target, id, &spec.nqn)?;
            let fixed = appliance.switches.identity == IdentitySwitch::Fixed;
            let known = if fixed { appliance.identity(&spec.nqn, None) } else { None };
            let identity = target.export(&spec, known.as_ref())?;
            if fixed {
                appliance.identity(&spec.nqn, Some(&identity));
            }
            tracing::info!(
                nqn = spec.nqn,
                serial = identity.serial,
                uuid = identity.uuid,
                "export on"
            );
            appliance.set_live(id, Some(Live { spec, identity, size, toggles, parked: false }));
            Ok(())
        }
    }
}

/// A removed disk's export may still be on its way down when the next disk of that name comes up.
fn evict(
    appliance: &Appliance,
    target: &mut dyn Target,
    id: ItemId,
    nqn: &str,
) -> Result<(), TargetError> {
    for (other, live) in appliance.live() {
        if other != id && live.spec.nqn == nqn {
            if appliance.wanted(other).is_some() {
                return Err(TargetError::Other(format!("{nqn} is exported for {other} already")));
            }
            target.unexport(nqn)?;
            appliance.set_live(other, None);
        }
    }
    Ok(())
}
