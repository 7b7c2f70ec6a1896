//! Which appliance a volume goes to that is made from a snapshot or from another volume: the
//! one of its source, since none reads what is on another.

use rds_csi_proto::ids::VolumeId;

use super::Fleet;
use crate::error::Error;
use crate::rules::source::Source;
use crate::rules::topology;
use crate::volumes::CreatePlan;

impl Fleet {
    /// Adds to an answer of "not yet" how far the volume is filled.
    pub(crate) fn with_progress(&self, volume: &VolumeId, error: Error) -> Error {
        if !matches!(error, Error::Busy { .. } | Error::StillRunning { .. }) {
            return error;
        }
        match self.members.iter().find_map(|member| member.filled_so_far(volume)) {
            Some(progress) => Error::Copying { cause: Box::new(error), progress },
            None => error,
        }
    }

    /// The appliance of the source, if what the request says of appliances and places fits it.
    pub(super) async fn beside(&self, plan: &CreatePlan, source: &Source) -> Result<usize, Error> {
        if self.members.len() == 1 {
            return self.choose(plan).await;
        }
        let holder = match source {
            Source::Snapshot(id) => self.find_snapshot(id).await?,
            Source::Volume(volume) => self.find(volume).await?,
        };
        let Some(at) = holder else {
            // What was made from it may outlive it, and its making may be asked for again.
            return self.find(&plan.volume).await?.ok_or_else(|| source.missing());
        };
        let name = self.member(at)?.name();
        if plan.rds().is_some() || plan.rds_address().is_some() {
            let meant = self.select(plan.rds(), plan.rds_address(), None).await?;
            if meant != at {
                return Err(Error::Invalid(format!(
                    "StorageClass parameter {} means appliance {}, but {source} is on appliance \
                     {name}, and no appliance reads what is on another: use a class with rds: \
                     {name}, or one that names none",
                    if plan.rds().is_some() { "rds" } else { "rdsAddress" },
                    self.member(meant)?.name(),
                )));
            }
        }
        let elsewhere = self.seen().get(&plan.volume).copied().filter(|seen| *seen != at);
        if let Some(seen) = elsewhere {
            return Err(self.on_another(plan, seen));
        }
        topology::choose([(at, self.member(at)?.topology())].into_iter(), plan.wanted())
    }
}
