//! Decisions, without I/O: what a request may ask for, whose an item is, who may attach,
//! and from where a volume can be reached.

pub mod adopt;
pub mod attach;
pub mod attachment;
pub mod capability;
pub mod capacity;
pub mod expand;
pub mod health;
pub(crate) mod kubevirt;
pub mod leftover;
pub mod orphan;
pub mod owner;
pub mod path;
pub mod refusal;
pub mod size;
pub mod snapshot;
pub mod source;
pub(crate) mod stale;
pub mod topology;
