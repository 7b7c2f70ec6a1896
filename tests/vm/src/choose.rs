//! Which kernel package to take, from what apt offers. Pure: names in, a choice out.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A kernel series as the command line names it: `6.1`, `6.12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    major: u32,
    minor: u32,
}

impl Series {
    /// From here on the kernel drops a namespace that is absent when a session comes back
    /// (docs/design.md §2.2); any later series stands in for this one where it is not packaged.
    pub(crate) const NEW: Self = Self { major: 6, minor: 12 };
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('.')
            .and_then(|(major, minor)| {
                Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
            })
            .ok_or_else(|| format!("'{text}' is not a kernel series such as 6.1 or 6.12"))
    }
}

/// A kernel image package, unsigned (the signed twin has the same content but pulls in
/// more), of the general flavour: cloud lacks modules, rt is another kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// All packages that hold parts of it; Ubuntu splits the modules off.
    pub(crate) packages: Vec<String>,
    numbers: Vec<u32>,
}

impl Image {
    fn parse(name: &str) -> Option<Self> {
        if let Some(release) =
            name.strip_prefix("linux-image-unsigned-").and_then(|r| r.strip_suffix("-generic"))
        {
            let packages = vec![
                name.to_owned(),
                format!("linux-modules-{release}-generic"),
                format!("linux-modules-extra-{release}-generic"),
            ];
            return Some(Self { packages, numbers: numbers(release)? });
        }
        let release = name.strip_prefix("linux-image-")?.strip_suffix("-amd64-unsigned")?;
        if release.ends_with("-cloud") || release.ends_with("-rt") {
            return None;
        }
        Some(Self { packages: vec![name.to_owned()], numbers: numbers(release)? })
    }

    fn series(&self) -> Series {
        let at = |i| self.numbers.get(i).copied().unwrap_or(0);
        Series { major: at(0), minor: at(1) }
    }

    fn newer(a: &Self, b: &Self) -> Ordering {
        a.numbers.cmp(&b.numbers)
    }
}

/// The newest image of the series; for 6.12, where apt has none, the newest that is later.
pub(crate) fn newest<'a>(
    names: impl IntoIterator<Item = &'a str>,
    series: Series,
) -> Option<Image> {
    let images: Vec<Image> = names.into_iter().filter_map(Image::parse).collect();
    let of_series = images.iter().filter(|image| image.series() == series);
    let later = images.iter().filter(|image| series == Series::NEW && image.series() > series);
    of_series.max_by(|a, b| Image::newer(a, b)).or(later.max_by(|a, b| Image::newer(a, b))).cloned()
}

/// `6.12.117+deb12` is [6, 12, 117, 12]; `None` for what is no version (a meta package).
fn numbers(release: &str) -> Option<Vec<u32>> {
    if !release.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let words = release.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
    words.map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BOOKWORM: [&str; 9] = [
        "linux-image-6.1.0-9-amd64-unsigned",
        "linux-image-6.1.0-56-amd64-unsigned",
        "linux-image-6.1.0-56-cloud-amd64-unsigned",
        "linux-image-6.1.0-57-rt-amd64-unsigned",
        "linux-image-6.12.9+bpo-amd64-unsigned",
        "linux-image-6.12.107+deb12-amd64-unsigned",
        "linux-image-6.12.117+deb12-amd64-unsigned",
        "linux-image-6.12.118+deb12-cloud-amd64-unsigned",
        "linux-image-amd64-unsigned",
    ];
    const UBUNTU: [&str; 3] = [
        "linux-image-unsigned-6.8.0-71-generic",
        "linux-image-unsigned-6.14.0-24-generic",
        "linux-image-unsigned-6.11.0-9-generic",
    ];

    fn pick(names: &[&str], series: &str) -> Option<Vec<String>> {
        newest(names.iter().copied(), series.parse().unwrap()).map(|image| image.packages)
    }

    #[test]
    fn the_newest_of_the_series_by_number_not_by_letter() {
        assert_eq!(pick(&BOOKWORM, "6.1").unwrap(), ["linux-image-6.1.0-56-amd64-unsigned"]);
        assert_eq!(pick(&BOOKWORM, "6.12").unwrap(), ["linux-image-6.12.117+deb12-amd64-unsigned"]);
    }

    #[test]
    fn a_later_series_stands_in_for_6_12_only() {
        assert_eq!(
            pick(&UBUNTU, "6.12").unwrap(),
            [
                "linux-image-unsigned-6.14.0-24-generic",
                "linux-modules-6.14.0-24-generic",
                "linux-modules-extra-6.14.0-24-generic"
            ]
        );
        assert_eq!(pick(&UBUNTU, "6.1"), None);
    }
}
