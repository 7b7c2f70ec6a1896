//! The owners of this host's controllers, where newer nvme-cli looks for them.
//!
//! `nvme disconnect-all` used to disconnect everything. From version 3 on it leaves alone what has an
//! owner in `/run/nvme/registry`: a directory for each controller, in it a file for each
//! attribute: `owner`, and `seqnum`, the uevent sequence number at that time, by which
//! libnvme's udev rule tells the removal of an earlier controller of the same name. Entries
//! appear and go whole, by renaming. Described in nvme-cli, `libnvme/design/REGISTRY.md`.
//!
//! It is a courtesy between programs and no guard: everything here is best effort.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

const OWNER: &str = "rds-csi";
const UEVENT_SEQNUM: &str = "/sys/kernel/uevent_seqnum";

/// The registry. Its calls touch memory only.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Default for Registry {
    fn default() -> Self {
        Self { dir: "/run/nvme/registry".into() }
    }
}

impl Registry {
    /// Says that a controller (`nvme3`) is ours. An entry that says so already is left as it
    /// is; another's is replaced, since it is the record of whoever had that name before.
    pub fn claim(&self, controller: &str) {
        if is_controller(controller) && !self.is_ours(controller) {
            match self.write(controller) {
                Ok(()) => debug!(controller, "registered as ours"),
                Err(error) => {
                    warn!(controller, %error, "not registered: nvme disconnect-all would disconnect it");
                }
            }
        }
    }

    /// Removes our entry of a controller that is gone.
    pub fn release(&self, controller: &str) {
        if is_controller(controller)
            && self.is_ours(controller)
            && let Err(error) = self.remove(controller)
        {
            warn!(controller, %error, "its entry in /run/nvme/registry is left behind");
        }
    }

    fn release_if_gone(&self, controller: &str) -> bool {
        let gone = !Path::new("/sys/class/nvme").join(controller).exists();
        if gone {
            self.release(controller);
        }
        gone
    }

    fn is_ours(&self, controller: &str) -> bool {
        fs::read_to_string(self.dir.join(controller).join("owner"))
            .is_ok_and(|owner| owner.trim() == OWNER)
    }

    fn write(&self, controller: &str) -> io::Result<()> {
        // Hidden: readers pass over such names.
        let new = self.dir.join(format!(".{controller}.{OWNER}.new"));
        let _ = remove_entry(&new);
        for dir in self.dir.parent().into_iter().chain([self.dir.as_path(), &new]) {
            match fs::DirBuilder::new().mode(0o755).create(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        let seqnum = fs::read_to_string(UEVENT_SEQNUM)?;
        fs::write(new.join("owner"), format!("{OWNER}\n"))?;
        fs::write(new.join("seqnum"), format!("{}\n", seqnum.trim()))?;
        // A directory does not replace one that has files in it.
        self.remove(controller)?;
        fs::rename(&new, self.dir.join(controller))
    }

    fn remove(&self, controller: &str) -> io::Result<()> {
        let old = self.dir.join(format!(".{controller}.{OWNER}.old"));
        let _ = remove_entry(&old);
        match fs::rename(self.dir.join(controller), &old) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => remove_entry(&old),
        }
    }

    /// Where it is, for tests.
    #[cfg(test)]
    fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

/// Follows one session's controller.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    registry: Registry,
    controller: Option<String>,
}

impl Registration {
    /// Tells which controller the session has now. Cheap if it is the same as before.
    pub fn follow(&mut self, controller: Option<&str>) {
        if self.controller.as_deref() == controller {
            return;
        }
        let gone = self.controller.as_ref().is_none_or(|old| self.registry.release_if_gone(old));
        if let Some(new) = controller {
            self.registry.claim(new);
            self.controller = Some(new.to_owned());
        } else if gone {
            self.controller = None;
        }
    }
}

/// An entry holds files only.
fn remove_entry(entry: &Path) -> io::Result<()> {
    for attribute in fs::read_dir(entry)? {
        fs::remove_file(attribute?.path())?;
    }
    fs::remove_dir(entry)
}

/// The name becomes a path.
fn is_controller(name: &str) -> bool {
    let number = name.strip_prefix("nvme").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_entry_is_as_libnvme_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("nvme/registry");
        let registry = Registry::at(&root);
        registry.claim("nvme3");
        let entry = root.join("nvme3");
        assert_eq!(fs::read_to_string(entry.join("owner")).unwrap(), "rds-csi\n");
        let seqnum = fs::read_to_string(entry.join("seqnum")).unwrap();
        assert!(seqnum.trim().parse::<u64>().is_ok(), "{seqnum:?}");
        assert_eq!(fs::metadata(&entry).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "nothing is left beside it");
        registry.release("nvme3");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn a_recycled_name_is_taken_over_whole_and_ours_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        let entry = dir.path().join("nvme0");
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("owner"), "stas\n").unwrap();
        fs::write(entry.join("note"), "of another controller\n").unwrap();
        registry.claim("nvme0");
        assert!(!entry.join("note").exists());
        fs::write(entry.join("seqnum"), "7\n").unwrap();
        registry.claim("nvme0");
        assert_eq!(fs::read_to_string(entry.join("seqnum")).unwrap(), "7\n");
    }

    #[test]
    fn what_is_not_ours_is_not_released_and_no_other_path_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(&dir.path().join("registry"));
        registry.claim("nvme1");
        fs::write(dir.path().join("registry/nvme1/owner"), "stas\n").unwrap();
        registry.release("nvme1");
        assert!(dir.path().join("registry/nvme1").exists());
        for name in ["", "nvme", "nvme1n1", "../x", "nvme1/.."] {
            registry.claim(name);
        }
        assert_eq!(fs::read_dir(dir.path().join("registry")).unwrap().count(), 1);
    }
}
