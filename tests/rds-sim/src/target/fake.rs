//! A target on paper, for hosts without nvmet.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Hosts, Identity, Spec, Target, TargetError};

#[derive(Debug, Default)]
pub struct Fake {
    exports: BTreeMap<String, (Spec, Identity)>,
    portal: bool,
}

impl Target for Fake {
    fn export(
        &mut self,
        spec: &Spec,
        identity: Option<&Identity>,
    ) -> Result<Identity, TargetError> {
        if self.exports.contains_key(&spec.nqn) {
            return Err(TargetError::Other(format!("{} exists", spec.nqn)));
        }
        let invented = || Identity {
            serial: hex::encode(rand::random::<[u8; 10]>()),
            uuid: uuid::Uuid::new_v4().to_string(),
        };
        let identity = identity.cloned().unwrap_or_else(invented);
        self.exports.insert(spec.nqn.clone(), (spec.clone(), identity.clone()));
        Ok(identity)
    }

    fn set_hosts(&mut self, nqn: &str, hosts: &Hosts) -> Result<(), TargetError> {
        match self.exports.get_mut(nqn) {
            Some((spec, _)) => spec.hosts = hosts.clone(),
            None => return Err(TargetError::Other(format!("{nqn} is not exported"))),
        }
        Ok(())
    }

    fn unexport(&mut self, nqn: &str) -> Result<(), TargetError> {
        self.exports.remove(nqn);
        Ok(())
    }

    fn open_portal(&mut self) -> Result<(), TargetError> {
        self.portal = true;
        Ok(())
    }

    fn close_portal(&mut self) -> Result<(), TargetError> {
        self.portal = false;
        Ok(())
    }

    fn tear_down(&mut self) -> Result<(), TargetError> {
        self.exports.clear();
        self.close_portal()
    }

    fn describe(&self, nqn: &str) -> Value {
        json!({ "present": self.exports.contains_key(nqn), "kernel": false })
    }
}
