//! Blocking calls that can be abandoned.
//!
//! A call on a dead device may sleep uninterruptibly for as long as the device is dead.
//! Each such call gets a thread of its own, not one of tokio's pool: that pool has a
//! bound, and one dead device with enough callers would take it from all other volumes.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{Error, Result};

use super::process::hurry_this_thread;

/// Runs `call` on its own thread and waits at most `deadline` for it.
///
/// # Errors
/// [`Error::Timeout`] when the deadline passes: the thread goes on until the kernel lets
/// it go, and its outcome must then be read back from the kernel.
pub async fn blocking<T: Send + 'static>(
    what: impl Into<String>,
    deadline: Duration,
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let what = what.into();
    let (done, outcome) = oneshot::channel();
    std::thread::Builder::new()
        .name("blocking".into())
        .spawn(move || {
            hurry_this_thread();
            // The caller may have gone; then nobody wants the outcome.
            let _ = done.send(call());
        })
        .map_err(Error::kernel("start a thread for", &what))?;
    match tokio::time::timeout(deadline, outcome).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            Err(Error::Unavailable(format!("{what}: the worker thread panicked; see the log")))
        }
        Err(_) => Err(Error::Timeout { what, after: deadline }),
    }
}
