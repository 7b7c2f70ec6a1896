//! Healthy controllers, looked at again in a few reads.
//!
//! A whole look opens a dozen files a volume, which for many volumes, once a second, is most
//! of what an idle agent costs. An open sysfs file belongs to its object, not to its name:
//! once the object is gone each read of it says `ENODEV`, whoever has taken the name since
//! (fs/kernfs/file.c, `kernfs_seq_start`). So a controller that was seen live and whole is
//! the same, with the same namespace, for as long as the files that were opened then can be
//! read and still say so. At the first sign of anything else it is read whole again; holding
//! the files does not keep the kernel from removing what they belong to.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Result;

use super::sysfs::{self, Controller, ControllerState, Namespace};

/// All the same everything is read anew this often, should a kernel be found that changes
/// in place what none of today's does.
const TRUST: Duration = Duration::from_secs(60);

/// What is known of this host's controllers.
#[derive(Debug)]
pub struct Known {
    sys: PathBuf,
    healthy: HashMap<String, Healthy>,
    since: Instant,
}

/// A controller as it was when it was read whole, and the files that tell if it still is.
#[derive(Debug)]
struct Healthy {
    seen: Controller,
    state: File,
    cntlid: File,
    /// The namespace's size; with native multipath that of the head and that of the path.
    sizes: Vec<File>,
}

impl Default for Known {
    fn default() -> Self {
        Self::below(Path::new("/sys"))
    }
}

impl Known {
    fn below(sys: &Path) -> Self {
        Self { sys: sys.to_owned(), healthy: HashMap::new(), since: Instant::now() }
    }

    /// All controllers, as [`sysfs::controllers`] would give them.
    ///
    /// # Errors
    /// As it has.
    pub fn controllers(&mut self) -> Result<Vec<Controller>> {
        if self.since.elapsed() > TRUST {
            self.healthy.clear();
            self.since = Instant::now();
        }
        let listed = sysfs::controllers_listed(&self.sys)?;
        self.healthy.retain(|name, _| listed.iter().any(|(listed, _)| listed == name));
        let mut found = Vec::new();
        for (name, dir) in listed {
            if let Some(same) = self.healthy.get(&name).and_then(Healthy::again) {
                found.push(same);
                continue;
            }
            self.healthy.remove(&name);
            found.extend(self.whole(name, &dir)?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn whole(&mut self, name: String, dir: &Path) -> Result<Option<Controller>> {
        let seen = sysfs::controller(&self.sys, name.clone(), dir)?;
        let Some(healthy) = seen.as_ref().and_then(|seen| Healthy::open(&self.sys, dir, seen))
        else {
            return Ok(seen);
        };
        // The files may be those of a successor of what was read. What is read between their
        // opening and a read of them that succeeds is of their object: it had the name then.
        let seen = sysfs::controller(&self.sys, name.clone(), dir)?;
        if seen.as_ref() == Some(&healthy.seen) && healthy.again().is_some() {
            self.healthy.insert(name, healthy);
        }
        Ok(seen)
    }
}

impl Healthy {
    /// `None` for a controller that is not live and whole, or vanishes meanwhile.
    fn open(sys: &Path, dir: &Path, seen: &Controller) -> Option<Self> {
        let namespace = seen.namespace.as_ref()?;
        let complete = seen.state == ControllerState::Live
            && ![&seen.host_nqn, &seen.address, &seen.cntlid, &namespace.wwid]
                .into_iter()
                .any(String::is_empty);
        let open = |path: PathBuf| File::open(path).ok();
        let path = sysfs::path_of(dir, namespace)?;
        complete.then_some(())?;
        Some(Self {
            seen: seen.clone(),
            state: open(dir.join("state"))?,
            cntlid: open(dir.join("cntlid"))?,
            sizes: vec![
                open(sys.join("block").join(&namespace.name).join("size"))?,
                open(path.join("size"))?,
            ],
        })
    }

    /// The same controller now, if it still is live and has its namespace.
    fn again(&self) -> Option<Controller> {
        let live = ControllerState::parse(&read(&self.state)?) == ControllerState::Live;
        let same = live && read(&self.cntlid)? == self.seen.cntlid;
        let size = |file: &File| read(file)?.parse::<u64>().ok().filter(|sectors| *sectors > 0);
        let sizes = self.sizes.iter().map(size).collect::<Option<Vec<_>>>()?;
        let size_bytes = sizes.first().filter(|_| same)? * 512;
        let namespace = self.seen.namespace.clone().map(|n| Namespace { size_bytes, ..n });
        Some(Controller { namespace, ..self.seen.clone() })
    }
}

/// An attribute's text as it is now; none if its object is gone.
fn read(file: &File) -> Option<String> {
    let mut text = [0; 64];
    let length = file.read_at(&mut text, 0).ok()?;
    Some(std::str::from_utf8(text.get(..length)?).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), format!("{text}\n")).unwrap();
        }
    }

    /// A controller with native multipath: the head and its path are two objects.
    fn controller(sys: &Path, n: u32, state: &str) -> PathBuf {
        let dir = sys.join(format!("class/nvme/nvme{n}"));
        let nqn = format!("nqn.{n}");
        write(
            &dir,
            &[
                ("transport", "tcp"),
                ("subsysnqn", &nqn),
                ("hostnqn", "h"),
                ("address", "a"),
                ("cntlid", "1"),
                ("state", state),
            ],
        );
        write(&dir.join(format!("nvme{n}c{n}n1")), &[("size", "2048")]);
        let head = sys.join(format!("block/nvme{n}n1"));
        let dev = format!("259:{n}");
        write(&head, &[("nsid", "1"), ("dev", &dev), ("size", "2048"), ("wwid", "uuid.x")]);
        dir
    }

    #[test]
    fn what_is_known_is_what_a_whole_look_would_show() {
        let sys = tempfile::tempdir().unwrap();
        let first = controller(sys.path(), 0, "live");
        controller(sys.path(), 1, "live");
        controller(sys.path(), 2, "connecting");
        let mut known = Known::below(sys.path());
        let mut check = |healthy: usize| {
            let whole = sysfs::controllers_in(sys.path()).unwrap();
            assert_eq!(known.controllers().unwrap(), whole);
            assert_eq!(known.controllers().unwrap(), whole);
            assert_eq!(known.healthy.len(), healthy);
        };
        check(2);
        // Each of these is seen at the next look, as long as files are written in place.
        write(&first, &[("state", "connecting")]);
        check(1);
        write(&first, &[("state", "live"), ("cntlid", "7")]);
        check(2);
        write(&sys.path().join("block/nvme0n1"), &[("size", "4096")]);
        check(2);
        write(&sys.path().join("block/nvme0n1"), &[("size", "0")]);
        check(1);
        fs::rename(&first, sys.path().join("gone")).unwrap();
        check(1);
        controller(sys.path(), 3, "live");
        check(2);
    }

    #[test]
    fn a_successor_of_the_same_name_is_not_taken_for_what_was_there() {
        let sys = tempfile::tempdir().unwrap();
        let dir = controller(sys.path(), 0, "live");
        let mut known = Known::below(sys.path());
        let old = known.controllers().unwrap();
        write(&dir, &[("subsysnqn", "nqn.another"), ("cntlid", "2")]);
        let new = known.controllers().unwrap();
        assert_ne!(old, new);
        assert_eq!(new[0].nqn, "nqn.another");
    }

    #[test]
    fn nothing_is_kept_of_a_controller_that_is_not_whole() {
        let sys = tempfile::tempdir().unwrap();
        let dir = controller(sys.path(), 0, "live");
        fs::write(dir.join("hostnqn"), "").unwrap();
        let mut known = Known::below(sys.path());
        assert_eq!(known.controllers().unwrap(), sysfs::controllers_in(sys.path()).unwrap());
        assert!(known.healthy.is_empty());
    }
}
