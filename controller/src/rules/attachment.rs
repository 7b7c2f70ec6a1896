//! An attachment as the owner tag records it: who holds a volume, as whom, on which terms.
//!
//! ```text
//! node=<key> host=<uuid> mode=rwo since=<unix>
//! node=<key> host=<uuid> mode=rwx|rwg:<n>:<m>|rwl:<n>:<m> since=<unix>
//! node=<short key>,<short key> host=<uuid> mode=rwg:<n>:<m>|rwl:<n>:<m> since=<unix>+<limit>
//! ```
//!
//! `<n>:<m>`: `node` was the nth to come, and m have come. Each time that a node comes it
//! connects as another host (`rwl`), or is given another arrival (`rwg`), so that what it had
//! queued when it was shut out stays out when it comes back.
//!
//! The last is a live migration: from the first node to the second, since `since`, which is
//! the clock that survives every restart, for `limit` seconds.

use std::fmt;
use std::hash::{Hash, Hasher};

use rds_csi_proto::context::Arrival;
use rds_csi_proto::ids::{HostNqn, NodeName};
use sha2::{Digest, Sha256};

/// A node as the tag names it: its name if it is at most 48 bytes long, else the first 25
/// and, after a `~` (which no node name contains), 22 hexadecimal digits of its SHA-256.
///
/// Where two of them must fit, both are shortened further, to 14 bytes by the same rule.
/// The long form contains the short one, so both are equal that name the same node.
#[derive(Debug, Clone)]
pub struct NodeKey(String);

/// Length, head and hash of a form.
type Form = (usize, usize, usize);
const LONG: Form = (48, 25, 22);
const SHORT: Form = (14, 4, 9);

impl NodeKey {
    #[must_use]
    pub fn of(node: &NodeName) -> Self {
        let name = node.as_str();
        if name.len() <= LONG.0 { Self(name.to_owned()) } else { Self(cut(name, LONG)) }
    }

    /// The form of which two fit into a tag.
    #[must_use]
    pub fn short(&self) -> Self {
        if self.0.len() <= SHORT.0 {
            return self.clone();
        }
        match self.0.split_once('~') {
            None => Self(cut(&self.0, SHORT)),
            // Head and hash of the same name, each a beginning of what stands here.
            Some((head, hash)) => Self(join(head, hash, SHORT)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let ok = match text.split_once('~') {
            None => (1..=LONG.0).contains(&text.len()) && text.bytes().all(plain),
            Some((head, hash)) => {
                let fits = |(_, h, d): Form| head.len() == h && hash.len() == d;
                (fits(LONG) || fits(SHORT))
                    && head.bytes().all(plain)
                    && hash.bytes().all(hexadecimal)
            }
        };
        ok.then(|| Self(text.to_owned()))
    }
}

fn cut(name: &str, form: Form) -> String {
    join(name, &hex::encode(Sha256::digest(name.as_bytes())), form)
}

/// All of it is ASCII, so that bytes are characters.
fn join(head: &str, hash: &str, (_, head_len, hash_len): Form) -> String {
    let head: String = head.chars().take(head_len).collect();
    let hash: String = hash.chars().take(hash_len).collect();
    format!("{head}~{hash}")
}

impl PartialEq for NodeKey {
    fn eq(&self, other: &Self) -> bool {
        match self.0.contains('~') || other.0.contains('~') {
            true => self.short().0 == other.short().0,
            false => self.0 == other.0,
        }
    }
}

impl Eq for NodeKey {}

impl Hash for NodeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.short().0.hash(state);
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who may hold the volume at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// One node (`rwo`).
    Exclusive,
    /// Two nodes at most, during a live migration, for a raw block volume whose users agree
    /// among themselves (`rwx`, `rwg`, `rwl`).
    Shared,
}

/// As whom the nodes of a shared attachment connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Hosts {
    /// All as the same host: the appliance is only known to take one name (`rwx`). There is no
    /// second one then.
    #[default]
    One,
    /// All as the same host, and the agent of each asks whether its attachment still exists
    /// before it lets I/O go on over a new connection (`rwg`).
    Gated,
    /// Each as its own, made from the attachment's ([`HostNqn::of_node`]) and anew whenever it
    /// comes, for an appliance that takes a list (`rwl`).
    PerNode,
}

/// A second node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Migration {
    /// Where to.
    pub target: NodeKey,
    /// How many seconds after its beginning it counts as stuck.
    pub limit: u64,
}

/// An attachment, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// Who holds the volume; in a migration, the node that had it before.
    pub node: NodeKey,
    /// As whom it connects: the epoch.
    pub host: HostNqn,
    /// On which terms.
    pub sharing: Sharing,
    /// Whether each node has a host NQN of its own.
    pub hosts: Hosts,
    /// The how-manieth to come `node` was, and how many have come: the target of a migration
    /// is the last of them. Counted unless all are the same ([`Hosts::One`]).
    pub arrival: u16,
    pub arrivals: u16,
    /// Since when the present nodes hold it, in seconds of Unix time.
    pub since: u64,
    /// The second node.
    pub migration: Option<Migration>,
}

impl Attachment {
    /// Of one node.
    #[must_use]
    pub fn new(node: NodeKey, host: HostNqn, sharing: Sharing, since: u64) -> Self {
        Self {
            node,
            host,
            sharing,
            hosts: Hosts::One,
            arrival: 0,
            arrivals: 0,
            since,
            migration: None,
        }
    }

    /// All nodes that hold it: one or two.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeKey> {
        std::iter::once(&self.node).chain(self.migration.as_ref().map(|m| &m.target))
    }

    /// Whether it is for two, one has it, and this would be the other.
    #[must_use]
    pub fn may_be_joined_by(&self, node: &NodeKey) -> bool {
        self.sharing == Sharing::Shared && self.migration.is_none() && self.node != *node
    }

    /// As whom this node connects.
    #[must_use]
    pub fn host_of(&self, node: &NodeKey) -> HostNqn {
        match self.hosts {
            Hosts::One | Hosts::Gated => self.host.clone(),
            Hosts::PerNode => self.own_of(node),
        }
    }

    /// What this node is given: differs each time that it comes.
    #[must_use]
    pub fn grant_of(&self, node: &NodeKey) -> Grant {
        let arrival = match self.hosts {
            Hosts::Gated => Some(Arrival::of(&self.own_of(node))),
            Hosts::One | Hosts::PerNode => None,
        };
        Grant { host: self.host_of(node), arrival }
    }

    /// A name that nobody else has, nor this node at another time.
    fn own_of(&self, node: &NodeKey) -> HostNqn {
        self.host.of_node(&format!("{}#{}", node.short(), self.arrival_of(node)))
    }

    fn arrival_of(&self, node: &NodeKey) -> u16 {
        match &self.migration {
            Some(m) if m.target == *node => self.arrivals,
            _ => self.arrival,
        }
    }

    /// What the appliance's list of allowed hosts has to be.
    #[must_use]
    pub fn allow(&self) -> Allow {
        match self.hosts {
            Hosts::One | Hosts::Gated => Allow(vec![self.host.clone()]),
            Hosts::PerNode => Allow(self.nodes().map(|n| self.host_of(n)).collect()),
        }
    }

    /// The same with a second node, from now on.
    #[must_use]
    pub fn joined_by(&self, target: NodeKey, limit: u64, now: u64) -> Self {
        let arrivals = match self.hosts {
            Hosts::One => 0,
            Hosts::Gated | Hosts::PerNode => self.arrivals.wrapping_add(1),
        };
        Self { since: now, arrivals, migration: Some(Migration { target, limit }), ..self.clone() }
    }

    /// What is left of it when nodes leave; `None` if nobody is.
    #[must_use]
    pub fn without(&self, leaves: impl Fn(&NodeKey) -> bool, now: u64) -> Option<Self> {
        let mut staying = self.nodes().filter(|n| !leaves(n));
        match (staying.next(), staying.next()) {
            (None, _) => None,
            (Some(_), Some(_)) => Some(self.clone()),
            (Some(_), None) if self.migration.is_none() => Some(self.clone()),
            (Some(node), None) => {
                let arrival = self.arrival_of(node);
                let node = node.clone();
                Some(Self { node, arrival, since: now, migration: None, ..self.clone() })
            }
        }
    }

    fn mode(&self) -> String {
        match (self.sharing, self.hosts) {
            (Sharing::Exclusive, _) => "rwo".into(),
            (Sharing::Shared, Hosts::One) => "rwx".into(),
            (Sharing::Shared, Hosts::Gated) => format!("rwg:{}:{}", self.arrival, self.arrivals),
            (Sharing::Shared, Hosts::PerNode) => format!("rwl:{}:{}", self.arrival, self.arrivals),
        }
    }

    /// Reads the fields in their order; `field` gives the next one if it has that key.
    pub(super) fn parse(field: &mut impl FnMut(&str) -> Option<String>) -> Option<Self> {
        let nodes = field("node")?;
        let host = format!("nqn.2014-08.org.nvmexpress:uuid:{}", field("host")?).parse().ok()?;
        let mode = field("mode")?;
        let (sharing, hosts, arrivals) = match mode.as_str() {
            "rwo" => (Sharing::Exclusive, Hosts::One, "0:0"),
            "rwx" => (Sharing::Shared, Hosts::One, "0:0"),
            counted => match counted.split_once(':')? {
                ("rwg", arrivals) => (Sharing::Shared, Hosts::Gated, arrivals),
                ("rwl", arrivals) => (Sharing::Shared, Hosts::PerNode, arrivals),
                _ => return None,
            },
        };
        let (arrival, arrivals) = arrivals.split_once(':')?;
        let (arrival, arrivals) = (arrival.parse().ok()?, arrivals.parse().ok()?);
        let clock = field("since")?;
        let (node, since, migration) = match (nodes.split_once(','), clock.split_once('+')) {
            (None, None) => (nodes.as_str(), clock.as_str(), None),
            (Some((node, target)), Some((since, limit))) if sharing == Sharing::Shared => {
                let target = NodeKey::parse(target)?;
                (node, since, Some(Migration { target, limit: limit.parse().ok()? }))
            }
            _ => return None,
        };
        let (node, since) = (NodeKey::parse(node)?, since.parse().ok()?);
        Some(Self { node, host, sharing, hosts, arrival, arrivals, since, migration })
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, mode, since) = (self.host.host_id(), self.mode(), self.since);
        match &self.migration {
            None => write!(f, "node={} host={host} mode={mode} since={since}", self.node),
            Some(m) => write!(
                f,
                "node={},{} host={host} mode={mode} since={since}+{}",
                self.node.short(),
                m.target.short(),
                m.limit
            ),
        }
    }
}

/// What a node is given to connect with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    /// As whom.
    pub host: HostNqn,
    /// Where others connect as the same host: what tells this attachment from all others.
    pub arrival: Option<Arrival>,
}

/// Which hosts may connect; never none, which would mean any.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Allow(Vec<HostNqn>);

impl Allow {
    /// A host that does not exist.
    #[must_use]
    pub fn nobody(closed: &HostNqn) -> Self {
        Self(vec![closed.clone()])
    }

    /// Whether this text, as read from the appliance, admits nobody.
    #[must_use]
    pub fn is_nobody(text: &str) -> bool {
        text.parse::<HostNqn>().is_ok_and(|host| host.is_closed())
    }

    /// The hosts.
    #[must_use]
    pub fn hosts(&self) -> &[HostNqn] {
        &self.0
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, host) in self.0.iter().enumerate() {
            write!(f, "{}{host}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
