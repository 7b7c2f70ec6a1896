//! A volume's life, over SSH: the same tests. The lab goes by the name of this file.

#[path = "life.rs"]
mod life;
