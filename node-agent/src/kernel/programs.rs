//! Helper programs: with a deadline, no input, and the end of what they printed.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tracing::{debug, warn};

use crate::error::{Error, Result};

/// How much of the output is kept for the error message: its end, where the reason is.
const TAIL: usize = 2048;
/// A killed program that is waiting for a device does not end before the device answers.
/// This long it is waited for in the call; then on the side, with the volume kept locked.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Where programs usually are, systemd says so or not.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where programs are looked for: the usual places, and behind them those of the agent's own
/// environment, for hosts such as NixOS that have them nowhere else.
#[must_use]
pub fn search_path(own: Option<OsString>) -> OsString {
    let mut path = OsString::from(USUAL);
    if let Some(own) = own.filter(|own| !own.is_empty()) {
        path.push(":");
        path.push(own);
    }
    path
}

/// Runs a program to its end. `held` is dropped only when the program is really gone,
/// which may be after this function has returned.
///
/// # Errors
/// If it cannot be started, fails, or is not done by the deadline; then it is killed.
pub async fn run<H: Send + 'static>(
    program: &str,
    arguments: &[String],
    device: &Path,
    deadline: Duration,
    held: H,
) -> Result<()> {
    debug!(program, ?arguments, "running a helper program");
    let mut child = Command::new(program)
        .args(arguments)
        // Messages in one language.
        .env("LC_ALL", "C")
        .env("PATH", search_path(std::env::var_os("PATH")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::kernel("start (is it installed?)", program))?;
    let output = tokio::spawn(tail(child.stdout.take(), child.stderr.take()));
    let status = match tokio::time::timeout(deadline, child.wait()).await {
        Ok(status) => status.map_err(Error::kernel("wait for", program))?,
        Err(_) => {
            end(child, program, held).await;
            return Err(Error::Timeout {
                what: format!("{program} {}", device.display()),
                after: deadline,
            });
        }
    };
    drop(held);
    if status.success() {
        return Ok(());
    }
    let output = match tokio::time::timeout(KILL_GRACE, output).await {
        Ok(Ok(text)) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "it printed nothing".to_owned(),
    };
    Err(Error::Program {
        program: program.to_owned(),
        target: device.to_owned(),
        output: format!("{output} ({status})"),
    })
}

async fn end<H: Send + 'static>(mut child: Child, program: &str, held: H) {
    let program = program.to_owned();
    if let Err(error) = child.start_kill() {
        warn!(program, %error, "a helper program could not be killed");
    }
    if tokio::time::timeout(KILL_GRACE, child.wait()).await.is_err() {
        warn!(
            program,
            "a killed helper program waits for its device; its volume stays locked until it is gone"
        );
        tokio::spawn(async move {
            let _ = child.wait().await;
            drop(held);
        });
    }
}

async fn tail(out: Option<impl AsyncRead + Unpin>, err: Option<impl AsyncRead + Unpin>) -> String {
    let (mut out, err) = tokio::join!(end_of(out), end_of(err));
    out.extend(err);
    String::from_utf8_lossy(&out).into_owned()
}

async fn end_of(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut chunk = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        kept.extend(chunk.iter().take(n));
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn sh(script: &str, deadline: Duration) -> Result<()> {
        run("sh", &["-c".into(), script.into()], Path::new("/dev/x"), deadline, ()).await
    }

    #[test]
    fn the_agents_own_search_path_comes_last() {
        let path = |own: Option<&str>| search_path(own.map(Into::into)).into_string().unwrap();
        assert_eq!(path(None), USUAL);
        // An empty part of it would be the working directory.
        assert_eq!(path(Some("")), USUAL);
        assert_eq!(path(Some("/nix/x/bin")), format!("{USUAL}:/nix/x/bin"));
    }

    #[tokio::test]
    async fn a_failure_carries_the_end_of_the_output() {
        sh("exit 0", Duration::from_secs(10)).await.unwrap();
        let error = sh("seq 100000; echo the reason >&2; exit 3", Duration::from_secs(10))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("the reason") && error.contains("exit status: 3"), "{error}");
        assert!(error.len() < 3 * TAIL);
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed() {
        let error = sh("exec sleep 100", Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}
