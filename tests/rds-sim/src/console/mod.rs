//! As much of the console language as scripts over SSH need.
//!
//! `parse` reads a line of what `menus` lists (nothing runs unless all of it is understood), `run` carries it out,
//! `print` lays out items for people.

mod menus;
pub mod parse;
pub mod print;
pub mod quote;
pub mod run;
pub mod syntax;
