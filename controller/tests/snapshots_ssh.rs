//! A volume's snapshots, over SSH: the same tests. The lab goes by the name of this file.

#[path = "snapshots.rs"]
mod snapshots;
