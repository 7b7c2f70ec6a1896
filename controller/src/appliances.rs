//! Which appliances there are: the main one from the command line, further ones from a file.
//!
//! ```json
//! {"appliances": [{
//!     "name": "cellar",
//!     "url": "https://10.0.2.2",
//!     "credentials": "/etc/rds-csi/cellar",
//!     "volumePaths": ["/raid10/volumes"],
//!     "nvmeAddress": "10.0.3.2",
//!     "topology": {"topology.kubernetes.io/zone": "b"}
//! }]}
//! ```
//!
//! The file is read at start, and one that cannot be read whole ends the start: a controller
//! that knew only some of its appliances would take the others' volumes for absent.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rds_csi_proto::ids::RdsName;
use serde::Deserialize;

use crate::config::{Args, Host, RdsUrl};
use crate::rules::path::AppliancePath;
use crate::rules::topology::Segments;

/// One appliance, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplianceConfig {
    /// What this cluster calls it.
    pub name: RdsName,
    /// Its management interface.
    pub url: RdsUrl,
    /// Directory with its credentials.
    pub credentials: PathBuf,
    /// Where volume files may be; the first is the default. At least one.
    pub roots: Vec<AppliancePath>,
    /// Its data portal; the management address without it.
    pub nvme_address: Option<Host>,
    /// Where it is reached from.
    pub topology: Segments,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    appliances: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: RdsName,
    url: String,
    credentials: PathBuf,
    volume_paths: Vec<String>,
    nvme_address: Option<String>,
    #[serde(default)]
    topology: BTreeMap<String, String>,
}

impl Entry {
    fn check(self) -> Result<ApplianceConfig, String> {
        if self.volume_paths.is_empty() {
            return Err("volumePaths needs at least one directory".into());
        }
        let roots = self.volume_paths.iter().map(|p| p.parse()).collect::<Result<_, _>>()?;
        Ok(ApplianceConfig {
            name: self.name,
            url: self.url.parse()?,
            credentials: self.credentials,
            roots,
            nvme_address: self.nvme_address.map(|a| a.parse()).transpose()?,
            topology: Segments::parse(&self.topology)?,
        })
    }
}

/// All appliances, the main one first.
///
/// # Errors
/// If the file cannot be read, has anything in it that is not known, or names one twice.
pub fn read(args: &Args) -> anyhow::Result<Vec<ApplianceConfig>> {
    let mut all = vec![ApplianceConfig {
        name: args.rds_name.clone(),
        url: args.rds_url.clone(),
        credentials: args.rds_credentials.clone(),
        roots: args.volume_path.clone(),
        nvme_address: args.nvme_address.clone(),
        topology: args.rds_topology.iter().cloned().collect(),
    }];
    if let Some(path) = &args.rds_config {
        all.extend(from_file(path)?);
    }
    let (mut names, mut urls) = (HashSet::new(), HashSet::new());
    for one in &all {
        if !names.insert(&one.name) {
            bail!("two appliances have the name {}: see --rds-name and --rds-config", one.name);
        }
        // Two names for one appliance would be two queues, and two locks on each volume.
        if !urls.insert(one.url.to_string()) {
            bail!("two appliances have the address {}: see --rds-url, --rds-config", one.url);
        }
    }
    Ok(all)
}

fn from_file(path: &Path) -> anyhow::Result<Vec<ApplianceConfig>> {
    let shown = path.display();
    let text = std::fs::read(path).with_context(|| format!("cannot read --rds-config {shown}"))?;
    let file: File =
        serde_json::from_slice(&text).with_context(|| format!("--rds-config {shown}"))?;
    let checked = file.appliances.into_iter().map(|entry| {
        let name = entry.name.clone();
        entry.check().map_err(|e| anyhow::anyhow!("--rds-config {shown}: appliance {name}: {e}"))
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    fn with(file: &str) -> anyhow::Result<Vec<ApplianceConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rds.json");
        std::fs::write(&path, file).unwrap();
        let line = "x --endpoint unix:///s --rds-url https://main --rds-credentials /c \
                    --volume-path /p/v --rds-topology zone=a --rds-config";
        let words = line.split_whitespace().map(str::to_owned);
        read(&Args::try_parse_from(words.chain([path.display().to_string()])).unwrap())
    }

    const ONE: &str = r#"{"name": "cellar", "url": "https://10.0.2.2", "credentials": "/c2",
        "volumePaths": ["/q/v"], "nvmeAddress": "10.0.3.2", "topology": {"zone": "b"}}"#;

    #[test]
    fn the_main_one_comes_first() {
        let all = with(&format!(r#"{{"appliances": [{ONE}]}}"#)).unwrap();
        let names: Vec<_> = all.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, [crate::config::DEFAULT_NAME, "cellar"]);
        assert_eq!(all[0].topology.to_string(), "zone=a");
        assert_eq!(all[1].topology.to_string(), "zone=b");
        assert_eq!(all[1].roots[0].as_str(), "/q/v");
        assert_eq!(all[1].nvme_address.as_ref().unwrap().as_str(), "10.0.3.2");
    }

    #[test]
    fn a_file_that_is_not_wholly_understood_is_refused() {
        for (change, why) in [
            (ONE.replace("cellar", "default"), "the name default"),
            (ONE.replace("10.0.2.2", "main"), "the address main"),
            (ONE.replace("https:", "http:"), "in the clear"),
            (ONE.replace("\"/q/v\"", ""), "at least one directory"),
            (ONE.replace("/q/v", "q"), "absolute path"),
            (ONE.replace("\"zone\"", "\"zone/\""), "topology segment"),
            (ONE.replace("nvmeAddress", "nvmeAdress"), "nvmeAdress"),
            (ONE.replace("\"name\": \"cellar\",", ""), "name"),
        ] {
            let error = with(&format!(r#"{{"appliances": [{change}]}}"#)).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{why}: {error:#}");
        }
    }
}
