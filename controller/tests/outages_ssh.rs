//! Outages, over SSH: the same tests. The lab goes by the name of this file.

#[path = "outages.rs"]
mod outages;
