//! Which RouterOS is needed.

use std::fmt;

/// Major and minor: `7.24.1 (stable)` is 7.24, `7.21rc3 (testing)` is 7.21.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The first with a settable `nvme-tcp-server-nqn`.
pub const FLOOR: Version = Version(7, 21);

impl Version {
    /// Reads what `/system/resource` calls `version`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, rest) = text.split_once('.')?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(Self(major.parse().ok()?, digits.parse().ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, want) in [
            ("7.24 (stable)", Some(Version(7, 24))),
            ("7.25.1 (stable)", Some(Version(7, 25))),
            ("7.21rc3 (testing)", Some(Version(7, 21))),
            ("7.9 (stable)", Some(Version(7, 9))),
            ("", None),
            ("stable", None),
            ("7.", None),
        ] {
            assert_eq!(Version::parse(text), want, "{text:?}");
        }
        assert!(Version(7, 9) < FLOOR && FLOOR < Version(7, 24) && FLOOR < Version(8, 0));
    }
}
