//! As much of the console language as scripts over SSH need.
//!
//! `parse` reads a line (nothing runs unless all of it is understood), `run` carries it out,
//! `print` lays out items for people.

pub mod parse;
pub mod print;
pub mod quote;
pub mod run;
pub mod syntax;
