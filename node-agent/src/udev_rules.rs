//! The udev rules that keep others off the volumes' devices. Packages put them on the host; where
//! none can be installed the agent does it, into `/run/udev/rules.d`.
//!
//! udevd looks at its directories by itself, at most three seconds after the last time, so nobody
//! has to tell it. The file stays when the agent ends, as the volumes do, and goes with the boot.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tracing::{info, warn};

/// As this version ships them.
pub(crate) const SHIPPED: &str = include_str!("../../systemd/udev/10-rds-csi.rules");
/// Their name in any `rules.d`.
pub(crate) const FILE: &str = "10-rds-csi.rules";

/// udev reads what ends in `.rules`, and nothing else.
const UNFINISHED: &str = ".10-rds-csi.rules.new";

/// Makes the directory have the rules. Volumes are kept without them too, so that a directory
/// that cannot be written to is no reason to leave those alone; `doctor` tells what is missing.
pub(crate) fn put(directory: &Path) {
    match written(directory) {
        Ok(true) => info!(directory = %directory.display(), "put the udev rules there"),
        Ok(false) => {}
        Err(error) => {
            warn!(directory = %directory.display(), %error, "the udev rules could not be put there: others may take the volumes' devices");
        }
    }
}

/// Whether anything had to be changed.
fn written(directory: &Path) -> io::Result<bool> {
    let path = directory.join(FILE);
    match fs::read(&path) {
        Ok(found) if found == SHIPPED.as_bytes() => return Ok(false),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    fs::create_dir_all(directory)?;
    // Whole or not at all: udevd may look at any moment.
    let unfinished = directory.join(UNFINISHED);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&unfinished)?;
    io::Write::write_all(&mut file, SHIPPED.as_bytes())?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    fs::rename(&unfinished, &path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_rules_are_put_where_they_are_missing_or_others() {
        let dir = tempfile::tempdir().unwrap();
        let rules_d = dir.path().join("udev/rules.d");
        assert!(written(&rules_d).unwrap());
        assert_eq!(fs::read_to_string(rules_d.join(FILE)).unwrap(), SHIPPED);
        let mode = fs::metadata(rules_d.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        // udevd reads them all anew after any change in there.
        assert!(!written(&rules_d).unwrap());

        fs::write(rules_d.join(FILE), "# of an earlier version\n").unwrap();
        assert!(written(&rules_d).unwrap());
        assert_eq!(fs::read_to_string(rules_d.join(FILE)).unwrap(), SHIPPED);
        assert_eq!(fs::read_dir(&rules_d).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_place_that_takes_no_file_is_told_and_no_reason_to_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(written(&dir.path().join("file")).is_err());
        put(&dir.path().join("file"));
    }
}
