//! The second guest of a pair (`rds-vm run --peer`): a node, which is an agent and a shim, and
//! a way in for the first guest, where the story is told. Over the guests' own link, which no
//! story cuts: its faults are cuts between this node and everything that the node talks to.
//!
//! A command is one line, a JSON list of words. Its input and output follow; its exit status
//! comes last, after a record separator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result};

use crate::process::run;
use crate::stack::{AgentOptions, DIRECTORY, Stack, udev_rules};

/// The two ends of the link (tests/vm/src/peer.rs).
pub(crate) const FIRST: &str = "10.98.0.1";
pub(crate) const SECOND: &str = "10.98.0.2";
/// Where the appliance is, behind the first guest.
pub(crate) const APPLIANCES: &str = "10.99.0.0/24";
pub(crate) const COMMANDS: (&str, u16) = (SECOND, 7000);
pub(crate) const SHIM: (&str, u16) = (SECOND, 7001);
pub(crate) const NODE: &str = "node-2";
const STATUS: u8 = 0x1e;

/// Is the node, until the guest ends.
pub(crate) async fn serve() -> Result<()> {
    run(&["ip", "route", "add", APPLIANCES, "via", FIRST])?;
    let dir = PathBuf::from(DIRECTORY);
    std::fs::create_dir_all(&dir)?;
    udev_rules()?;
    let _agent = Stack::start_agent(&dir, &AgentOptions::usual()?).await?;
    let _shim = Stack::start_shim(&dir, NODE).await?;
    let shim = TcpListener::bind(SHIM)?;
    let commands = TcpListener::bind(COMMANDS)?;
    println!("the node is up");
    let socket = dir.join("csi.sock");
    thread::spawn(move || each(&shim, move |stream| forward(&stream, &socket)));
    perform_each(commands).await
}

/// Performs what it is told to on this socket, until the guest ends.
pub(crate) async fn perform_each(commands: TcpListener) -> Result<()> {
    Ok(tokio::task::spawn_blocking(move || each(&commands, perform)).await?)
}

/// Serves each connection in a thread of its own.
fn each(listener: &TcpListener, serve: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static) {
    for stream in listener.incoming().map_while(|s| s.ok()) {
        let serve = serve.clone();
        thread::spawn(move || {
            if let Err(error) = serve(stream) {
                println!("{error:#}");
            }
        });
    }
}

fn forward(stream: &TcpStream, socket: &Path) -> Result<()> {
    let local = UnixStream::connect(socket).context("connect to the shim")?;
    let (mut from, mut to) = (stream.try_clone()?, local.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (local, stream);
    std::io::copy(&mut from, &mut to)?;
    Ok(to.shutdown(Shutdown::Write)?)
}

fn perform(mut stream: TcpStream) -> Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let words: Vec<String> = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
    let (program, arguments) = words.split_first().context("an empty command")?;
    let (mut output, theirs) = std::io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(theirs.try_clone()?).stderr(theirs);
    let child = command.spawn();
    // It has our ends of the pipe, whose end is the child's.
    drop(command);
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            writeln!(stream, "start {program}: {error}")?;
            return finish(&mut stream, 127);
        }
    };
    let mut stdin = child.stdin.take().context("no input")?;
    thread::spawn(move || std::io::copy(&mut input, &mut stdin));
    if std::io::copy(&mut output, &mut stream).is_err() {
        // Whoever asked is gone.
        child.kill()?;
    }
    let code = child.wait()?.code().unwrap_or(-1);
    finish(&mut stream, code)
}

fn finish(stream: &mut TcpStream, code: i32) -> Result<()> {
    stream.write_all(&[STATUS])?;
    writeln!(stream, "{code}")?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Runs a command in the second guest as if it were here: input, output, exit status.
pub(crate) fn ask(words: &[String]) -> ExitCode {
    match asked(words) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("on the second guest: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn asked(words: &[String]) -> Result<i32> {
    let mut stream = TcpStream::connect(COMMANDS)?;
    writeln!(stream, "{}", serde_json::to_string(words)?)?;
    let mut to = stream.try_clone()?;
    thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut answer = BufReader::new(stream);
    let mut out = std::io::stdout();
    loop {
        let mut line = Vec::new();
        anyhow::ensure!(answer.read_until(b'\n', &mut line)? > 0, "it went away");
        if let Some(at) = line.iter().position(|b| *b == STATUS) {
            let (rest, status) = line.split_at(at);
            out.write_all(rest)?;
            let mut text = String::new();
            status.get(1..).unwrap_or_default().read_to_string(&mut text)?;
            return text.trim().parse().context("exit status");
        }
        out.write_all(&line)?;
        out.flush()?;
    }
}
