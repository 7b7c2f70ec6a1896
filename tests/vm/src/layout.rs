//! Where things are kept: all below one directory, by default `vm` in cargo's target
//! directory, so that `cargo clean` removes them and git ignores them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::choose::Series;

/// What a run's own directory is called; it is gone once the guest is up.
pub(crate) const RUN_PREFIX: &str = "run-";

/// Far longer than any boot may take.
const STALE_AFTER: Duration = Duration::from_secs(3600);

pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// `given` is the user's choice; else the target directory this program runs from
    /// (cargo marks it with CACHEDIR.TAG); else `target` where we are.
    pub(crate) fn find(given: Option<PathBuf>) -> Result<Self> {
        let root = match given {
            Some(root) => root,
            None => std::env::current_exe()
                .ok()
                .and_then(|exe| target_directory(&exe))
                .unwrap_or_else(|| PathBuf::from("target"))
                .join("vm"),
        };
        fs::create_dir_all(&root).with_context(|| {
            format!("creating {}; choose another place with --dir", root.display())
        })?;
        let root =
            fs::canonicalize(&root).with_context(|| format!("resolving {}", root.display()))?;
        Ok(Self { root })
    }

    /// Removes what runs left behind that were killed while their guest booted. Best effort:
    /// it is about disk space, and the next run tries again.
    pub(crate) fn remove_stale(&self) {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for entry in entries {
            let ours = entry.file_name().to_string_lossy().starts_with(RUN_PREFIX);
            let modified = entry.metadata().and_then(|data| data.modified());
            let stale = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE_AFTER));
            if ours && stale {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    pub(crate) fn kernel(&self, series: Series) -> PathBuf {
        self.kernels().join(series.to_string())
    }

    pub(crate) fn console_log(&self, run: &str) -> PathBuf {
        self.root.join("log").join(format!("{run}.log"))
    }

    pub(crate) fn results(&self, run: &str) -> PathBuf {
        self.root.join("results").join(run)
    }
}

/// A name for one run that sorts by time and differs between runs at the same time.
pub(crate) fn run_name(series: Series) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format!("{}-{series}-{}", timestamp(now), std::process::id())
}

fn target_directory(exe: &Path) -> Option<PathBuf> {
    exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).map(Path::to_owned)
}

/// Seconds since 1970 as `20260131T235959Z` (days to date after Hinnant's
/// "chrono-compatible low-level date algorithms").
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn timestamps_are_civil_dates() {
        assert_eq!(timestamp(0), "19700101T000000Z");
        assert_eq!(timestamp(951_827_696), "20000229T123456Z");
        assert_eq!(timestamp(1_767_225_599), "20251231T235959Z");
    }
}
