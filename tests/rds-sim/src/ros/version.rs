//! Versions of RouterOS, and what came when (ROUTEROS.md, "Versions").

use std::fmt;

/// Such as 7.24, 7.25.1 or 7.26beta1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: Option<u16>,
}

/// What not every version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `/disk/btrfs/...`
    Subvolumes,
    /// `/file/copy` and `/disk/copy`
    Copy,
}

impl Version {
    pub fn has(self, feature: Feature) -> bool {
        let since = match feature {
            Feature::Subvolumes => (7, 18),
            Feature::Copy => (7, 23),
        };
        (self.major, self.minor) >= since
    }
}

impl std::str::FromStr for Version {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("bad version {s:?}: expected such as 7.24 or 7.24.1");
        let mut parts = s.split('.').map(|p| p.parse().map_err(|_| bad()));
        let mut next = || parts.next().transpose();
        let version = Version {
            major: next()?.ok_or_else(bad)?,
            minor: next()?.ok_or_else(bad)?,
            patch: next()?,
        };
        if next()?.is_some() { Err(bad()) } else { Ok(version) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |p| write!(f, ".{p}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn read_written_and_compared() {
        let version = |s: &str| s.parse::<Version>().unwrap();
        for text in ["7.24", "7.25.0", "7.25.1"] {
            assert_eq!(version(text).to_string(), text);
        }
        assert!(version("7.23").has(Feature::Copy) && !version("7.22.1").has(Feature::Copy));
        assert!(version("7.9") < version("7.21"), "numbers, not text");
        for bad in ["", "7", "7.x", "7.24.1.1", "v7.24"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
