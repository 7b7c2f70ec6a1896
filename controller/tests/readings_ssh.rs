//! Readings, over SSH: the same test. The lab goes by the name of this file.

#[path = "readings.rs"]
mod readings;
