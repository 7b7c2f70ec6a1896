//! The owner tag: what the `comment` of a volume's item says.
//!
//! It is the only proof that an item is ours, and the only place where an attachment is
//! recorded, so that a controller that starts knows what one that died had done:
//!
//! ```text
//! rds-csi v1 cluster=<id> vol=<volume> [class=<hash>] [made=<hex>] [opt=<letters>] stage=ready
//! rds-csi v1 cluster=<id> vol=<volume> [class=<hash>] stage=attached <attachment>
//! rds-csi v1 cluster=<id> vol=<volume> [class=<hash>] stage=deleting
//! rds-csi v1 cluster=<id> vol=<volume> [class=<hash>] stage=filling from=<snapshot or volume>
//! ```
//!
//! `made` is when it was made, in seconds of Unix time; left out where the tag would become too
//! long, or was not known. The letters of `opt`: `b`, made without a shield; `g`, grown, and
//! its export has to be renewed still.
//!
//! Read strictly: fields in this order, nothing more, nothing less. Anything else is not
//! ours and is left alone. RouterOS documents no limit for a comment; this one stays below
//! 255 bytes, which is why a long node name is shortened to a key. How an attachment is
//! written: [`super::attachment`].

use std::fmt;
use std::str::FromStr;

use rds_csi_proto::ids::VolumeId;
use sha2::{Digest, Sha256};

pub use super::attachment::{Attachment, Hosts, Migration, NodeKey, Sharing};
use super::source::Source;

const PREFIX: &str = "rds-csi v1 ";
/// No tag is longer.
pub const MAX_LEN: usize = 255 + OPT_MAX;
/// ` opt=bg` may go beyond, in the rarest of cases: it must not be left out.
const OPT_MAX: usize = 7;

/// Names this cluster on an appliance that several may share: 1 to 36 characters, so that
/// the uid of the kube-system namespace fits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterId(String);

impl ClusterId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let ok = (1..=36).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("cluster id {text:?}: expected 1 to 36 letters, digits or ._-"))
        }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a volume is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It exists; nobody holds it.
    Ready,
    /// A node holds it, or is about to.
    Attached(Attachment),
    /// Its deletion has begun and its data may be gone.
    Deleting,
    /// It is there, but its data is not yet that of what it is made from.
    Filling(Source),
}

/// A hash of the StorageClass parameters, to tell a repeated request from a different one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassHash(String);

impl ClassHash {
    /// Of the parameters that are ours, in any order.
    #[must_use]
    pub fn of<'a>(params: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut sorted: Vec<_> = params.collect();
        sorted.sort_unstable();
        let mut hash = Sha256::new();
        for (key, value) in sorted {
            for part in [key, value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part.as_bytes());
            }
        }
        Self(hex::encode(hash.finalize()).chars().take(8).collect())
    }

    fn parse(text: &str) -> Option<Self> {
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 8 && text.bytes().all(hexadecimal)).then(|| Self(text.to_owned()))
    }
}

/// The whole comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerTag {
    /// Whose.
    pub cluster: ClusterId,
    /// Which volume: an item that was copied or renamed by hand is not that volume.
    pub volume: VolumeId,
    /// Made from which parameters; absent for a volume taken over from an older driver.
    pub class: Option<ClassHash>,
    /// What else there is to know.
    pub notes: Notes,
    /// In which state.
    pub stage: Stage,
}

/// Marks that a volume carries through all its stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Notes {
    /// When it was made, in seconds of Unix time; unknown for those made before that was noted.
    pub made: Option<u32>,
    /// Made with `shield: "false"`.
    pub bare: bool,
    /// Its file has grown, but the export that hosts see may still be of before.
    pub growing: bool,
}

impl Notes {
    fn letters(self) -> String {
        [(self.bare, 'b'), (self.growing, 'g')]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, c)| c)
            .collect()
    }
}

impl OwnerTag {
    /// The same volume in another stage.
    #[must_use]
    pub fn at(&self, stage: Stage) -> Self {
        Self { stage, ..self.clone() }
    }

    /// The same volume with or without an expansion to finish.
    #[must_use]
    pub fn growing(&self, growing: bool) -> Self {
        Self { notes: Notes { growing, ..self.notes }, ..self.clone() }
    }
}

impl fmt::Display for OwnerTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text, self.notes.made)?;
        if text.len() > MAX_LEN - OPT_MAX {
            text.clear();
            self.write(&mut text, None)?;
        }
        f.write_str(&text)
    }
}

impl OwnerTag {
    fn write(&self, f: &mut String, made: Option<u32>) -> fmt::Result {
        use fmt::Write as _;
        write!(f, "{PREFIX}cluster={} vol={}", self.cluster, self.volume)?;
        if let Some(class) = &self.class {
            write!(f, " class={}", class.0)?;
        }
        if let Some(made) = made {
            write!(f, " made={made:08x}")?;
        }
        let letters = self.notes.letters();
        if !letters.is_empty() {
            write!(f, " opt={letters}")?;
        }
        match &self.stage {
            Stage::Ready => f.write_str(" stage=ready"),
            Stage::Deleting => f.write_str(" stage=deleting"),
            Stage::Filling(source) => write!(f, " stage=filling from={source}"),
            Stage::Attached(a) => write!(f, " stage=attached {a}"),
        }
    }
}

impl OwnerTag {
    /// False only if the comment is no tag of this cluster: a quick look before reading it.
    #[must_use]
    pub fn may_be_of(comment: &str, cluster: &ClusterId) -> bool {
        let rest = comment.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix("cluster="));
        rest.and_then(|rest| rest.strip_prefix(cluster.as_str()))
            .is_some_and(|r| r.starts_with(' '))
    }

    /// Reads a comment; `None` if it is not, to the letter, a tag of ours.
    #[must_use]
    pub fn parse(comment: &str) -> Option<Self> {
        let mut words = comment.strip_prefix(PREFIX)?.split(' ').peekable();
        let field = |key: &str, words: &mut std::iter::Peekable<std::str::Split<'_, char>>| {
            words
                .next_if(|w| w.split_once('=').is_some_and(|(k, _)| k == key))
                .and_then(|w| w.split_once('='))
                .map(|(_, value)| value.to_owned())
        };
        let cluster = field("cluster", &mut words)?.parse().ok()?;
        let volume = field("vol", &mut words)?.parse().ok()?;
        let class = match field("class", &mut words) {
            None => None,
            Some(text) => Some(ClassHash::parse(&text)?),
        };
        let made = match field("made", &mut words) {
            None => None,
            Some(text) => Some(u32::from_str_radix(&text, 16).ok()?),
        };
        let opt = field("opt", &mut words).unwrap_or_default();
        let notes = Notes { made, bare: opt.contains('b'), growing: opt.contains('g') };
        let stage = match field("stage", &mut words)?.as_str() {
            "ready" => Stage::Ready,
            "deleting" => Stage::Deleting,
            "filling" => Stage::Filling(field("from", &mut words)?.parse().ok()?),
            "attached" => Stage::Attached(Attachment::parse(&mut |key| field(key, &mut words))?),
            _ => return None,
        };
        let tag = Self { cluster, volume, class, notes, stage };
        // One spelling only: whatever else was in there (a number with a sign, a field too
        // many) would be lost at the next write.
        (words.next().is_none() && tag.to_string() == comment).then_some(tag)
    }
}

/// Whose an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Ours: our cluster's tag, for this volume.
    Ours(OwnerTag),
    /// Not ours, and why, for people.
    Foreign(String),
}

/// Judges an item by its slot and comment.
#[must_use]
pub fn judge(slot: &str, comment: &str, volume: &VolumeId, cluster: &ClusterId) -> Ownership {
    let foreign = |why: String| Ownership::Foreign(why);
    if slot != volume.as_str() {
        return foreign(format!("its slot is {slot:?}"));
    }
    match OwnerTag::parse(comment) {
        None if comment.is_empty() => foreign(
            "it has no owner tag in its comment (a volume of the Go driver of the same name has to \
             be adopted: docs/switch-over.md)"
                .into(),
        ),
        None => foreign("its comment is not an owner tag of this driver".into()),
        Some(tag) if &tag.cluster != cluster => {
            foreign(format!("it belongs to cluster {:?}, this is {:?}", tag.cluster.0, cluster.0))
        }
        Some(tag) if &tag.volume != volume => {
            foreign(format!("its owner tag is that of {}", tag.volume))
        }
        Some(tag) => Ownership::Ours(tag),
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
