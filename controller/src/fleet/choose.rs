//! Which appliance a new volume goes to.

use rds_csi_proto::ids::RdsName;

use super::Fleet;
use crate::error::Error;
use crate::rules::topology;
use crate::volumes::{CreatePlan, portal};

impl Fleet {
    /// The appliance that a request means: by name, by address, or by where the volume is
    /// wanted; the main one if it says nothing.
    pub(super) async fn choose(&self, plan: &CreatePlan) -> Result<usize, Error> {
        let at = self.select(plan.rds(), plan.rds_address(), plan.wanted()).await?;
        // The same name with other parameters. Only what is known without asking: to ask
        // all appliances would let one that is down stop the making of volumes on others.
        let elsewhere = self.seen().get(&plan.volume).copied().filter(|seen| *seen != at);
        match elsewhere {
            // No parameter chose it: stay with what an earlier call chose.
            Some(seen) if plan.rds().is_none() && plan.rds_address().is_none() => Ok(seen),
            Some(seen) => Err(self.on_another(plan, seen)),
            None => Ok(at),
        }
    }

    /// What to say of a volume that is not where the request wants it.
    pub(super) fn on_another(&self, plan: &CreatePlan, seen: usize) -> Error {
        match self.member(seen) {
            Ok(member) => Error::Exists(format!(
                "volume {} exists already, but on appliance {}",
                plan.volume,
                member.name()
            )),
            Err(error) => error,
        }
    }

    /// As [`Self::choose`], for any request.
    pub(super) async fn select(
        &self,
        name: Option<&RdsName>,
        address: Option<&str>,
        wanted: Option<&rds_csi_proto::csi::TopologyRequirement>,
    ) -> Result<usize, Error> {
        let candidates = match (name, address) {
            (Some(name), _) => vec![self.by_name(name)?],
            (None, Some(address)) => vec![self.by_address(address).await?],
            (None, None) => (0..self.members.len()).collect(),
        };
        topology::choose(
            candidates.iter().filter_map(|at| Some((*at, self.members.get(*at)?.topology()))),
            wanted,
        )
    }

    fn by_name(&self, name: &RdsName) -> Result<usize, Error> {
        self.members.iter().position(|m| m.name() == name).ok_or_else(|| {
            let known: Vec<_> = self.members.iter().map(|m| m.name().as_str()).collect();
            Error::Invalid(format!(
                "StorageClass parameter rds has the value {name}; accepted is {} (the controller's \
                 --rds-name and --rds-config)",
                known.join(" or ")
            ))
        })
    }

    /// Classes of older drivers name their appliance by its address. As text first: that
    /// needs no name resolution, which may be down.
    async fn by_address(&self, given: &str) -> Result<usize, Error> {
        if let Some(at) = self.members.iter().position(|m| m.rds_host() == given) {
            return Ok(at);
        }
        let theirs = portal::resolve(given).await?;
        let mut unresolved = None;
        for (at, member) in self.members.iter().enumerate() {
            match portal::resolve(member.rds_host()).await {
                Ok(own) if own.iter().any(|a| theirs.contains(a)) => return Ok(at),
                Ok(_) => {}
                Err(error) => unresolved = unresolved.or(Some(error)),
            }
        }
        let known: Vec<_> = self.members.iter().map(|m| m.rds_host()).collect();
        Err(unresolved.unwrap_or_else(|| {
            Error::Invalid(format!(
                "StorageClass parameter rdsAddress has the value {given:?}; accepted is {} (the \
                 controller's --rds-url and --rds-config)",
                known.join(" or ")
            ))
        }))
    }
}
