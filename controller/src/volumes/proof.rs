//! Whether an export is off.
//!
//! Fencing rests upon that, and what RouterOS prints may be what was configured rather than
//! what is (not documented). The target itself cannot be mistaken: to a Connect for a
//! subsystem that is not exported it answers *Connect Invalid Parameters*. So where the
//! controller reaches the data portal, it asks there, as the volume's own host: nobody else
//! is admitted, and a host that is turned away learns nothing of the subsystem.
//!
//! nvmet closes its port with the last subsystem on it, so a refused TCP connection is the
//! usual sight of a single volume. It proves as much, unless somebody on the way refuses in
//! the target's name: it counts once the portal has been seen to answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use rds_csi_proto::connect::{self, Answer};
use rds_csi_proto::ids::{HostNqn, Nqn};

use super::{Pace, Volumes};
use crate::config::ProveOff;
use crate::error::Error;
use crate::routeros::DiskItem;
use crate::rules::owner::{Hosts, OwnerTag, Stage};

/// How attachments are made and taken away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttachSettings {
    /// Whether the appliance takes a list of hosts.
    pub(crate) hosts: Hosts,
    /// A second node needs no proof.
    pub(crate) allow_shared_block: bool,
    /// When the portal is asked.
    pub(crate) prove_off: ProveOff,
}

/// What the portal says of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Off,
    On,
    Unknown,
}

/// Asks the portal.
pub(crate) struct ExportProof {
    when: ProveOff,
    /// The portal has been seen to answer, so nothing stands in the way.
    reached: AtomicBool,
    /// It was said that it does not.
    complained: AtomicBool,
}

impl ExportProof {
    pub(crate) fn new(when: ProveOff) -> Self {
        Self { when, reached: AtomicBool::new(false), complained: AtomicBool::new(false) }
    }

    async fn ask(&self, portal: SocketAddr, nqn: Nqn, host: HostNqn) -> (Seen, String) {
        let asked = tokio::task::spawn_blocking(move || connect::ask(portal, &nqn, &host)).await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(e) => return (Seen::Unknown, e.to_string()),
        };
        if answer.is_ok() {
            self.reached.store(true, Ordering::Relaxed);
        }
        judge(&answer, self.reached.load(Ordering::Relaxed))
    }
}

fn judge(answer: &std::io::Result<Answer>, reached: bool) -> (Seen, String) {
    match answer {
        Ok(Answer::NoSuchSubsystem) => (Seen::Off, String::new()),
        Ok(Answer::Admitted | Answer::HostRefused) => (Seen::On, "it is exported still".into()),
        Ok(Answer::Other(status)) => (Seen::Unknown, format!("it answers {status:#05x}")),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused && reached => {
            (Seen::Off, String::new())
        }
        Err(e) => (Seen::Unknown, e.to_string()),
    }
}

impl Volumes {
    /// False only if nobody can be connected: what the rules call exported.
    pub(super) async fn may_be_exported(
        &self,
        item: &DiskItem,
        tag: &OwnerTag,
    ) -> Result<bool, Error> {
        if item.export {
            return Ok(true);
        }
        Ok(self.off(item, tag).await?.is_some())
    }

    /// Waits until an export that reads as off is off.
    pub(super) async fn wait_until_off(
        &self,
        item: &DiskItem,
        tag: &OwnerTag,
    ) -> Result<(), Error> {
        let pace = Pace::start();
        while let Some(why) = self.off(item, tag).await? {
            pace.again(&still_on(item, &why)).await?;
        }
        Ok(())
    }

    /// The same for an item that is on nobody's record.
    pub(super) async fn wait_until_off_for(
        &self,
        item: &DiskItem,
        host: &HostNqn,
    ) -> Result<(), Error> {
        let pace = Pace::start();
        while let Some(why) = self.off_for(item, host.clone()).await? {
            pace.again(&still_on(item, &why)).await?;
        }
        Ok(())
    }

    /// Why an export that reads as off may still be on.
    async fn off(&self, item: &DiskItem, tag: &OwnerTag) -> Result<Option<String>, Error> {
        // Nobody on record: what was recorded so was seen to be off.
        let Stage::Attached(held) = &tag.stage else { return Ok(None) };
        self.off_for(item, held.host_of(&held.node)).await
    }

    /// The same, asked as a host of which the target may or may not know.
    async fn off_for(&self, item: &DiskItem, host: HostNqn) -> Result<Option<String>, Error> {
        if self.proof.when == ProveOff::Never {
            return Ok(None);
        }
        let portal = self.portal(None, item).await?.socket_addr();
        // A name that cannot be asked for proves nothing.
        let answer = match item.nqn.parse::<Nqn>() {
            Ok(nqn) => self.proof.ask(portal, nqn, host).await,
            Err(e) => (Seen::Unknown, e.to_string()),
        };
        Ok(match answer {
            (Seen::Off, _) => None,
            (Seen::On, why) => Some(why),
            (Seen::Unknown, why) if self.proof.when == ProveOff::Always => Some(why),
            (Seen::Unknown, why) => {
                if !self.proof.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %portal,
                        "the portal cannot be asked whether an export is off ({why}); that rests \
                         on what RouterOS prints (--prove-export-off, docs/rwx.md#proof)"
                    );
                }
                None
            }
        })
    }
}

fn still_on(item: &DiskItem, why: &str) -> String {
    format!(
        "that the export of {} is off, said by the portal itself ({why}; --prove-export-off)",
        item.slot
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn only_the_target_proves_it() {
        let seen = |answer, reached| judge(&answer, reached).0;
        let error = |kind| Err(Error::from(kind));
        assert_eq!(seen(Ok(Answer::NoSuchSubsystem), true), Seen::Off);
        for on in [Answer::Admitted, Answer::HostRefused] {
            assert_eq!(seen(Ok(on), true), Seen::On);
        }
        assert_eq!(seen(Ok(Answer::Other(6)), true), Seen::Unknown);
        assert_eq!(seen(error(ErrorKind::ConnectionRefused), false), Seen::Unknown);
        assert_eq!(seen(error(ErrorKind::ConnectionRefused), true), Seen::Off);
        for silent in [ErrorKind::TimedOut, ErrorKind::ConnectionReset, ErrorKind::InvalidData] {
            assert_eq!(seen(error(silent), true), Seen::Unknown);
        }
    }
}
