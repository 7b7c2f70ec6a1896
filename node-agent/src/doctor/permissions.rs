//! Who may do what: this process, the socket, the state directory.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::session::shield;

use super::Finding;
use super::context::Context;

/// The journal takes some megabytes; sled needs room to write anew before it frees.
const SPACE_LOW: u64 = 256 << 20;
const SPACE_OUT: u64 = 32 << 20;

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    let mut findings = vec![root()];
    if let Some(meta) = look(&context.subject.socket)? {
        findings.push(socket(&context.subject.socket, &meta));
    }
    findings.extend(state_dir(&context.subject.state_dir)?);
    Ok(findings)
}

fn root() -> Finding {
    const CHECK: &str = "permissions.root";
    if rustix::process::geteuid().is_root() {
        Finding::ok(CHECK, "doctor runs as root")
    } else {
        let seen = "doctor does not run as root: much of the rest cannot be seen";
        Finding::problem(CHECK, seen, "sudo rds-node-agent doctor")
    }
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::kernel("look at", path.display())(e)),
    }
}

fn socket(path: &Path, meta: &Metadata) -> Finding {
    const CHECK: &str = "permissions.socket";
    let path = path.display();
    if !meta.file_type().is_socket() {
        return Finding::problem(
            CHECK,
            format!("{path} is no socket"),
            format!("rm {path}; systemctl restart rds-node-agent"),
        );
    }
    judge_socket(&path.to_string(), meta.uid(), meta.mode())
}

fn judge_socket(path: &str, uid: u32, mode: u32) -> Finding {
    const CHECK: &str = "permissions.socket";
    let mode = mode & 0o7777;
    let seen = format!("{path} belongs to user {uid}, mode {mode:04o}");
    if uid != 0 {
        return Finding::problem(
            CHECK,
            format!("{seen}: its owner can replace it"),
            format!("chown root {path}"),
        );
    }
    if mode & 0o007 != 0 {
        // The agent looks at who is there; the mode is the first of two locks.
        let seen =
            format!("{seen}: every user can reach it, and only the agent's own check refuses them");
        return Finding::warning(CHECK, seen, format!("chmod 0660 {path}"));
    }
    Finding::ok(CHECK, seen)
}

fn state_dir(path: &Path) -> Result<Vec<Finding>> {
    const CHECK: &str = "permissions.state-dir";
    let shown = path.display().to_string();
    let Some(meta) = look(path)? else {
        let mend = format!("the agent makes it when it starts; or: install -d -m 0700 {shown}");
        let seen = format!("{shown} does not exist: no agent ever ran with it");
        return Ok(vec![Finding::warning(CHECK, seen, mend)]);
    };
    let mut findings = vec![judge_dir(&shown, meta.uid(), meta.mode())];
    let space = rustix::fs::statvfs(path)
        .map_err(|e| Error::kernel("ask for space in", path.display())(e.into()))?;
    let read_only = space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    findings.push(judge_space(&shown, space.f_bavail * space.f_frsize, read_only));
    findings.push(dependence(&shown, &meta)?);
    Ok(findings)
}

fn judge_dir(path: &str, uid: u32, mode: u32) -> Finding {
    const CHECK: &str = "permissions.state-dir";
    let mode = mode & 0o7777;
    let seen = format!("{path} belongs to user {uid}, mode {mode:04o}");
    if uid != 0 || mode & 0o077 != 0 {
        let seen =
            format!("{seen}: others can read host NQNs, which open volumes, or change the journal");
        return Finding::problem(
            CHECK,
            seen,
            format!("chown root:root {path} && chmod 0700 {path}"),
        );
    }
    Finding::ok(CHECK, seen)
}

fn judge_space(path: &str, free: u64, read_only: bool) -> Finding {
    const CHECK: &str = "permissions.state-space";
    let seen = format!("{} MiB free at {path}", free >> 20);
    let why = "nothing is attached that cannot be written down first";
    if read_only {
        return Finding::problem(
            CHECK,
            format!("the disk of {path} is read-only: {why}"),
            "see dmesg, and remount it",
        );
    }
    match free {
        0..SPACE_OUT => Finding::problem(
            CHECK,
            format!("{seen}: {why}"),
            format!("free space on the disk of {path}"),
        ),
        SPACE_OUT..SPACE_LOW => {
            Finding::warning(CHECK, seen, format!("free space on the disk of {path}"))
        }
        _ => Finding::ok(CHECK, seen),
    }
}

/// The agent must not wait for a volume that only it can bring back.
fn dependence(path: &str, meta: &Metadata) -> Result<Finding> {
    const CHECK: &str = "permissions.state-disk";
    let device = DeviceNumber::from_raw(meta.dev());
    let name = match fs::read_to_string(device.sysfs().join("dm/name")) {
        Ok(name) => name,
        // No device-mapper device, or none at all.
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::kernel("look at the disk of", path)(e)),
    };
    Ok(match shield::volume_of(name.trim()) {
        None => Finding::ok(CHECK, format!("{path} is on no volume that the agent serves")),
        Some(volume) => Finding::problem(
            CHECK,
            format!("{path} is on {volume}, which the agent serves: it would wait for itself"),
            "move the state directory to a local disk (--state-dir)",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn modes_and_owners() {
        assert_eq!(judge_dir("/d", 0, 0o40700).verdict, Verdict::Ok);
        assert_eq!(judge_dir("/d", 0, 0o40777).verdict, Verdict::Problem);
        assert_eq!(judge_dir("/d", 1000, 0o40700).verdict, Verdict::Problem);
        assert_eq!(judge_socket("/s", 0, 0o140660).verdict, Verdict::Ok);
        assert_eq!(judge_socket("/s", 0, 0o140666).verdict, Verdict::Warning);
        assert_eq!(judge_socket("/s", 65534, 0o140660).verdict, Verdict::Problem);
    }

    #[test]
    fn space() {
        assert_eq!(judge_space("/d", 1 << 30, false).verdict, Verdict::Ok);
        assert_eq!(judge_space("/d", 100 << 20, false).verdict, Verdict::Warning);
        assert_eq!(judge_space("/d", 1 << 20, false).verdict, Verdict::Problem);
        assert_eq!(judge_space("/d", 1 << 30, true).verdict, Verdict::Problem);
    }
}
