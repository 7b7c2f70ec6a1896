//! The wall clock's own opinion of itself.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

/// Whether somebody keeps the clock in step with others (adjtimex(2), `STA_UNSYNC`).
///
/// # Errors
/// If the kernel does not tell.
pub fn synchronized() -> io::Result<bool> {
    let mut time = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: the structure is plain integers, for which zeroes are valid; with `modes` 0
    // the kernel only writes to it, and it lives for the whole call.
    let state = unsafe { libc::adjtimex(time.as_mut_ptr()) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, so every field is initialised, and the call succeeded.
    let time = unsafe { time.assume_init() };
    Ok(time.status & libc::STA_UNSYNC == 0)
}
