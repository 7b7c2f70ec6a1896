//! The values that flags take.

use clap::ValueEnum;

use crate::ros::number::{Origin, parse_size};

/// The file system of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    Xfs,
    Btrfs,
}

impl PoolKind {
    /// As `/disk print` shows it in `fs`.
    pub fn name(self) -> &'static str {
        match self {
            PoolKind::Xfs => "xfs",
            PoolKind::Btrfs => "btrfs",
        }
    }
}

/// Bytes, with or without a binary suffix.
pub fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text, Origin::Text).ok_or_else(|| format!("bad size {text:?}: expected such as 8G"))
}

/// `NAME:BYTES[:xfs|btrfs]` of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    pub name: String,
    pub bytes: u64,
    pub kind: PoolKind,
}

impl std::str::FromStr for PoolSpec {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, rest) = s.split_once(':').ok_or("expected NAME:BYTES[:xfs|btrfs]")?;
        let (bytes, kind) = match rest.split_once(':') {
            None | Some((_, "xfs")) => (rest.split(':').next().unwrap_or(rest), PoolKind::Xfs),
            Some((bytes, "btrfs")) => (bytes, PoolKind::Btrfs),
            Some((_, other)) => return Err(format!("bad file system {other:?}: xfs or btrfs")),
        };
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(format!("bad pool name {name:?}"));
        }
        Ok(PoolSpec { name: name.into(), bytes: self::bytes(bytes)?, kind })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Identity {
    /// New serial and namespace UUID per export creation: what nvmet's source does.
    Random,
    /// As if MikroTik kept them.
    Fixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExistingFile {
    /// Use it; grow it when `file-size` is larger, never shrink it.
    Reuse,
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FullPool {
    Refuse,
    /// The item appears, but never a block device.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Allocate {
    /// As seen on XFS: the whole file at once.
    Full,
    /// For guests with little memory; the pool's limit still counts whole sizes.
    Sparse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportReadBack {
    /// `nvme-tcp-export` reads true once hosts can connect, false once they cannot.
    Actual,
    /// It reads what was last set.
    Configured,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NqnReadBack {
    Effective,
    Configured,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IdsAfterReboot {
    Keep,
    Renumber,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HostKey {
    /// RouterOS's default.
    Rsa,
    Ed25519,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SshJson {
    /// Numbers and booleans keep their console type.
    Typed,
    /// As REST does.
    Strings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GrownSize {
    /// `size` is that of the file.
    Immediately,
    /// `size` is that of the export, until it is switched off and on.
    AfterToggle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Certificate {
    /// Signed by itself: a client pins it.
    SelfSigned,
    /// Signed by a CA of its own, which is in `<state-dir>/ca.pem`.
    PrivateCa,
    /// Self-signed, and no longer valid.
    Expired,
    /// Self-signed, for another host.
    WrongName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CopyProgress {
    /// The target grows while it is copied, as with `cp`: its size tells how far it is.
    Growing,
    /// The target has its whole size from the start: its size tells nothing.
    FullSize,
    /// The target appears when all of it is there.
    Hidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CopyInterrupted {
    /// What was copied so far stays.
    Keep,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CopyFull {
    /// Found out when the pool is full; what was copied stays, or not, as after an interruption.
    Midway,
    /// Refused before it starts.
    UpFront,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CopyExisting {
    Refuse,
    Overwrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SubvolumeReference {
    /// Its `name`: the last component.
    Name,
    /// Its `fullname`.
    Fullname,
}
