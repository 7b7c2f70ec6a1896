//! The wall clock. Deadlines and backoff do not use it, records and people do.

use crate::error::{Error, Result};
use crate::kernel::clock;

use super::Finding;
use super::context::Context;

pub(super) fn check(_: &Context) -> Result<Vec<Finding>> {
    const CHECK: &str = "clock";
    let synchronized = clock::synchronized().map_err(Error::kernel("ask for", "the clock"))?;
    Ok(vec![if synchronized {
        Finding::ok(CHECK, "synchronized")
    } else {
        Finding::warning(
            CHECK,
            "not synchronized: times in the history and in logs may be wrong; sessions do not \
             depend on it",
            "timedatectl set-ntp true, or start chronyd",
        )
    }])
}
