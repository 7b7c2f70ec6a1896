//! What has no file of its own for it, over SSH: the same tests. The lab goes by the name of
//! this file; one program links faster than five.
// Each file brings its own lab, as it does when it is a program.
#![allow(clippy::duplicate_mod)]

#[path = "budget.rs"]
mod budget;
#[path = "expand.rs"]
mod expand;
#[path = "fleet.rs"]
mod fleet;
#[path = "look.rs"]
mod look;
#[path = "orphans.rs"]
mod orphans;
#[path = "switch_over.rs"]
mod switch_over;
