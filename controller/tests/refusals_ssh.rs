//! What users get, over SSH: the same tests. The lab goes by the name of this file.

#[path = "refusals.rs"]
mod refusals;
