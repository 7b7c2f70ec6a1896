//! The label with which SELinux shows all files of a mount: `context="..."`.
//!
//! Where a CSIDriver says `seLinuxMount: true`, kubelet adds it to the mount flags of stage and
//! publish, in double quotes, since categories are separated by commas (pkg/volume/util/selinux.go,
//! `AddSELinuxMountOption`). The kernel's parser takes it just so (security/selinux/hooks.c,
//! `selinux_sb_eat_lsm_opts`).

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::kernel::mounts::Mount;

/// Longer than any that is in use; a mount's data has to fit into one page.
const LONGEST: usize = 1024;

/// `user:role:type` or `user:role:type:range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context(String);

impl Context {
    /// Reads the value of the option, with or without its quotes.
    ///
    /// # Errors
    /// Says what a label looks like.
    pub(crate) fn parse(value: &str) -> Result<Self> {
        let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.,:+-".contains(&b);
        let mut parts = bare.splitn(4, ':');
        let named = parts.by_ref().take(3).filter(|p| !p.is_empty() && !p.contains(',')).count();
        let range = parts.next().is_none_or(|range| !range.is_empty());
        if named == 3 && range && bare.len() <= LONGEST && bare.bytes().all(allowed) {
            return Ok(Self(bare.to_owned()));
        }
        let shown: String = value.chars().take(80).collect();
        Err(Error::Invalid(format!(
            "mount option context={shown} is not an SELinux label such as \
             context=\"system_u:object_r:container_file_t:s0:c1,c2\" (in quotes if it has commas)"
        )))
    }

    /// As mount(2) takes it.
    pub(crate) fn option(&self) -> String {
        format!("context=\"{}\"", self.0)
    }

    /// Whether two labels mean the same. The kernel writes a range in its own way: `c3,c1,c2`
    /// becomes `c1.c3`, and a range of one level becomes that level.
    fn means(&self, other: &Self) -> bool {
        let split = |label: &Self| {
            let mut parts = label.0.splitn(4, ':').map(str::to_owned);
            let names: Vec<String> = parts.by_ref().take(3).collect();
            (names, parts.next().map(|range| levels(&range)))
        };
        split(self) == split(other)
    }
}

/// The lowest and the highest level of a range: sensitivity and categories.
fn levels(range: &str) -> [(String, BTreeSet<String>); 2] {
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    [low, high].map(|level| {
        let (sensitivity, categories) = level.split_once(':').unwrap_or((level, ""));
        let each = categories.split(',').filter(|c| !c.is_empty());
        (sensitivity.to_owned(), each.flat_map(one_by_one).collect())
    })
}

/// `c1.c3` is c1, c2 and c3.
fn one_by_one(categories: &str) -> Vec<String> {
    let number = |c: &str| c.strip_prefix('c')?.parse::<u16>().ok();
    match categories.split_once('.').map(|(from, to)| (number(from), number(to))) {
        Some((Some(from), Some(to))) => (from..=to).map(|n| format!("c{n}")).collect(),
        _ => vec![categories.to_owned()],
    }
}

/// The label that a mount has by its options, if any.
pub(crate) fn of(mount: &Mount) -> Option<Context> {
    let value = mount.super_options.iter().find_map(|o| o.strip_prefix("context="))?;
    Some(Context(value.trim_matches('"').to_owned()))
}

/// Makes sure that what is mounted has the label that is asked for now.
///
/// # Errors
/// If it has another, or one where none is asked for, or none.
pub(crate) fn expect(mount: &Mount, wanted: Option<&Context>) -> Result<()> {
    let found = of(mount);
    match (&found, wanted) {
        (None, None) => Ok(()),
        (Some(found), Some(wanted)) if found.means(wanted) => Ok(()),
        _ => {
            let told = |c: Option<&Context>| c.map_or("none".to_owned(), Context::option);
            Err(Error::Conflict(format!(
                "the volume is mounted at {} with another SELinux label ({}) than is asked for now \
                 ({}); a file system has one label for all pods of a node: end the pods that use it \
                 first",
                mount.mount_point.display(),
                told(found.as_ref()),
                told(wanted)
            )))
        }
    }
}

/// Makes sure that this kernel takes labels: another would only call the option unknown.
///
/// # Errors
/// If SELinux is off here.
pub(crate) fn expect_enabled(context: &Context) -> Result<()> {
    // Its own file system, which systemd mounts when it loads the policy.
    const POLICY: &str = "/sys/fs/selinux/policyvers";
    if Path::new(POLICY).try_exists().map_err(Error::kernel("look at", POLICY))? {
        return Ok(());
    }
    Err(Error::Precondition(format!(
        "the volume is to be mounted with {}, but SELinux is not enabled on this node ({POLICY} is \
         not there); enable it, or take the label from the mount options and seLinuxMount from the \
         CSIDriver",
        context.option()
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kernel::mounts::MountTable;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label(text: &str) -> Context {
        Context::parse(text).unwrap()
    }

    #[test]
    fn a_label_is_read_with_and_without_quotes() {
        assert_eq!(label(&format!("\"{LABEL}\"")), label(LABEL));
        assert_eq!(label(LABEL).option(), format!("context=\"{LABEL}\""));
        for good in ["a:b:c", "u:r:t-x.y_z:s0-s15:c0.c1023"] {
            assert_eq!(label(good).0, good);
        }
    }

    #[test]
    fn what_is_no_label_is_refused() {
        let long = format!("u:r:{}", "t".repeat(LONGEST));
        for bad in [
            "",
            "\"\"",
            "\"",
            "u:r",
            "u:r:",
            "::",
            "u:r:t:",
            "u,x:r:t",
            "u:r:t\"",
            "\"u:r:t",
            "u:r:t s0",
            "u:r:t\\,rw",
            "u:r:t:s0\n",
            "u:r:t=x",
            "u:r:\u{e4}",
            &long,
        ] {
            let error = Context::parse(bad).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{bad:?}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }

    #[test]
    fn labels_are_compared_by_what_they_mean() {
        for (a, b) in [
            ("u:r:t:s0:c1,c2", "u:r:t:s0:c2,c1"),
            ("u:r:t:s0:c1,c2,c3", "u:r:t:s0:c1.c3"),
            ("u:r:t:s0-s0", "u:r:t:s0"),
            ("u:r:t", "u:r:t"),
        ] {
            assert!(label(a).means(&label(b)), "{a} {b}");
        }
        for (a, b) in [
            ("u:r:t:s0:c1,c2", "u:r:t:s0:c1,c3"),
            ("u:r:t:s0:c1", "u:r:t:s0"),
            ("u:r:t:s0", "u:r:t:s1"),
            ("u:r:t", "u:r:t:s0"),
            ("u:r:t", "u:r:tt"),
            ("u:r:t:s0", "u:r:t:s0-s1"),
        ] {
            assert!(!label(a).means(&label(b)), "{a} {b}");
        }
    }

    #[test]
    fn a_mount_has_the_label_that_is_asked_for() {
        let line = |options: &str| format!("9 1 252:3 / /s rw - ext4 /dev/dm-3 {options}\n");
        let mount = |options: &str| {
            MountTable::parse(line(options).as_bytes()).unwrap().iter().next().unwrap().clone()
        };
        let labelled = mount(&format!("rw,context=\"{LABEL}\",discard"));
        assert_eq!(labelled.super_options.last().unwrap(), "discard");
        let other = label("system_u:object_r:container_file_t:s0:c1,c3");
        let plain = mount("rw,seclabel");
        expect(&labelled, Some(&label(LABEL))).unwrap();
        expect(&mount("rw,context=u:r:t:s0"), Some(&label("u:r:t:s0"))).unwrap();
        expect(&plain, None).unwrap();
        for (mount, wanted) in
            [(&labelled, Some(&other)), (&labelled, None), (&plain, Some(&other))]
        {
            let error = expect(mount, wanted).unwrap_err();
            assert_eq!(error.code(), tonic::Code::AlreadyExists);
        }
    }
}
