//! Which files on the appliance may be ours.
//!
//! Older drivers deleted a hundred live files by comparing path prefixes. Here a file can be
//! a volume's only if its whole path is what we would have written: one of the configured
//! directories (or one below it), then exactly `<volume id>.img`.

use std::fmt;
use std::str::FromStr;

use rds_csi_proto::ids::VolumeId;
use rds_csi_proto::params::is_plain_path;

/// An absolute path on the appliance, of components that need no quoting.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AppliancePath(String);

impl AppliancePath {
    /// As `/disk` writes it: with a leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As `/file` writes it: without.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.trim_start_matches('/')
    }

    /// Whether two spellings mean one file. RouterOS reads paths back with a leading slash,
    /// whichever way they were written.
    #[must_use]
    pub fn is(&self, other: &str) -> bool {
        self.file_name() == other.trim_start_matches('/')
    }

    /// The file of a volume in this directory.
    #[must_use]
    pub fn volume_file(&self, volume: &VolumeId) -> Self {
        Self(format!("{}/{volume}.img", self.0))
    }

    /// Whether this is `directory` or below it, component by component.
    #[must_use]
    pub fn is_within(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(&directory.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for AppliancePath {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if is_plain_path(text) {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(format!(
                "{text:?} is not an absolute path of letters, digits and ._- such as /raid10/volumes"
            ))
        }
    }
}

impl fmt::Display for AppliancePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a volume's file, if `path` can be that of `volume` at all.
#[must_use]
pub fn own_file(path: &str, volume: &VolumeId, roots: &[AppliancePath]) -> Option<AppliancePath> {
    let path: AppliancePath = format!("/{}", path.trim_start_matches('/')).parse().ok()?;
    let directory = AppliancePath(path.0.strip_suffix(&format!("/{volume}.img"))?.to_owned());
    roots.iter().any(|root| directory.is_within(root)).then_some(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

    #[test]
    fn only_the_exact_path_is_ours() {
        let id: VolumeId = ID.parse().unwrap();
        let roots = ["/raid10/volumes".parse().unwrap()];
        for good in ["/raid10/volumes/ID.img", "raid10/volumes/ID.img", "/raid10/volumes/a/ID.img"]
        {
            assert!(own_file(&good.replace("ID", ID), &id, &roots).is_some(), "{good}");
        }
        for bad in [
            "/raid10/volumes2/ID.img",
            "/raid10/ID.img",
            "/raid10/volumes/xID.img",
            "/raid10/volumes/ID.img.bak",
            "/raid10/volumes/../ID.img",
            "/raid10/volumes",
            "/ID.img",
            "",
            "/raid10/volumes/pvc-00000000-0000-0000-0000-000000000000.img",
        ] {
            assert!(own_file(&bad.replace("ID", ID), &id, &roots).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_path_ours_lies_in_a_root(path in "(/?(raid10|volumes|\\.\\.|x|ID\\.img)){0,5}") {
            let id: VolumeId = ID.parse().unwrap();
            let roots: [AppliancePath; 1] = ["/raid10/volumes".parse().unwrap()];
            if let Some(found) = own_file(&path.replace("ID", ID), &id, &roots) {
                prop_assert!(found.as_str().starts_with("/raid10/volumes/"));
                let suffix = format!("/{ID}.img");
                prop_assert!(found.as_str().ends_with(&suffix));
                prop_assert!(!found.as_str().contains(".."));
            }
        }
    }
}
