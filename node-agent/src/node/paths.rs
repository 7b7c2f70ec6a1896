//! Paths that callers name: where to stage, where to publish.
//!
//! Kubelet's directory is often reached through a symbolic link, and the mount table knows
//! only real paths. So the parent is resolved and the last component is not: nothing is
//! ever mounted on, or removed through, a link that somebody put there.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// An absolute path without `.` and `..`, which is not the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenPath(PathBuf);

impl GivenPath {
    /// Checks the text of a request.
    pub(crate) fn parse(what: &str, text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::Invalid(format!(
                "{what} {text:?} {why}; expected an absolute path without \"..\""
            )))
        };
        if text.is_empty() {
            return refuse("is missing");
        }
        if text.contains('\0') || text.len() > 4000 {
            return refuse("is not a usable path");
        }
        let path = Path::new(text);
        if !path.is_absolute() {
            return refuse("is not absolute");
        }
        // `components` drops "." and empty ones in the middle, but keeps "..".
        let clean: PathBuf = path.components().collect();
        if clean.components().any(|c| matches!(c, Component::ParentDir)) {
            return refuse("climbs");
        }
        if clean.file_name().is_none() {
            return refuse("is the root directory");
        }
        Ok(Self(clean))
    }

    /// The path as the kernel names it, or `None` if its parent does not exist. Blocks.
    pub(crate) fn resolve(&self) -> Result<Option<PathBuf>> {
        let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name()) else {
            return Err(Error::Invalid(format!("{} has no parent", self.0.display())));
        };
        match parent.canonicalize() {
            Ok(parent) => Ok(Some(parent.join(name))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::kernel("resolve", parent.display())(e)),
        }
    }

    /// Like [`Self::resolve`], and makes the parent if only it is missing: one level, since
    /// a longer missing path is a mistake. Blocks.
    pub(crate) fn resolve_or_create_parent(&self) -> Result<PathBuf> {
        if let Some(path) = self.resolve()? {
            return Ok(path);
        }
        if let Some(parent) = self.0.parent() {
            create_dir(parent)?;
        }
        self.resolve()?.ok_or_else(|| {
            Error::Precondition(format!("the directory of {} vanished", self.0.display()))
        })
    }
}

/// Makes one directory, for its owner and group only, as kubelet does. It may exist.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o750).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::kernel("create the directory", path.display())(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_plain_absolute_paths() {
        for bad in ["", "a/b", "/", "//", "/a/../b", "/..", "/a\0b", "."] {
            assert_eq!(
                GivenPath::parse("target_path", bad).unwrap_err().code(),
                tonic::Code::InvalidArgument,
                "{bad:?}"
            );
        }
        assert_eq!(GivenPath::parse("p", "/a//b/./c/").unwrap().0, Path::new("/a/b/c"));
    }

    #[test]
    fn links_are_followed_in_the_parent_only() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", real.join("x")).unwrap();
        let given = dir.path().join("link/x");
        let path = GivenPath::parse("p", given.to_str().unwrap()).unwrap();
        assert_eq!(path.resolve().unwrap().unwrap(), real.join("x"));
        let deep = dir.path().join("a/b/c");
        let path = GivenPath::parse("p", deep.to_str().unwrap()).unwrap();
        assert_eq!(path.resolve().unwrap(), None);
        assert!(path.resolve_or_create_parent().is_err(), "two missing levels are a mistake");
    }
}
