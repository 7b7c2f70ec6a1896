//! Who may use the agent's socket, and what becomes of senseless requests: nothing.
//!
//! `RDS_CSI_FUZZ_SEED=N` repeats a run.

mod generate;
mod raw;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rds_csi_proto::agent::StatusRequest;
use rds_csi_proto::agent::sessions_client::SessionsClient;
use rds_csi_proto::csi::NodeGetInfoRequest;
use rds_csi_proto::csi::node_client::NodeClient;
use tonic::Code;

use crate::csi::{Csi, Volume, channel, filesystem, request};
use crate::demo::{no_devices, nothing_exported, status, taken_away};
use crate::process::{Daemon, results, run as command, sibling, socket_up, tail};
use crate::report::Report;
use crate::stack::{Stack, agent_socket};
use crate::writer::Writer;

use generate::{Generator, SANDBOX};

const BYTES: i64 = 64 << 20;
const NOBODY: u32 = 65534;
/// Calls over HTTP/2, and connections with bytes that are not even that.
const CALLS: usize = 3_000;
const CONNECTIONS: usize = 300;
/// Calls at a time, over so many connections.
const AT_ONCE: usize = 16;
const RECOVERY: Duration = Duration::from_secs(120);

/// Runs it; true if all was as it should be.
pub(crate) async fn run() -> bool {
    let mut report = Report::new("hostile");
    let mut story = match Story::begin().await {
        Ok(story) => story,
        Err(error) => {
            report.case("everything starts", Err(error));
            return report.finish();
        }
    };
    let result = story.tell(&mut report).await;
    if !report.case("the story is told to its end", result) {
        println!("--- agent\n{}", tail("agent", 40));
    }
    report.case("everything ends when told to", story.stack.stop());
    report.finish()
}

/// Asks both services of an agent, and prints what they answer. Run as another user.
pub(crate) async fn knock(socket: &Path) -> bool {
    let node = NodeClient::new(channel(socket)).node_get_info(request(NodeGetInfoRequest {})).await;
    let sessions =
        SessionsClient::new(channel(socket)).status(request(StatusRequest::default())).await;
    for answer in [node.map(|_| ()), sessions.map(|_| ())] {
        match answer {
            Ok(()) => println!("Ok"),
            Err(status) => println!("{:?} {}", status.code(), status.message()),
        }
    }
    true
}

struct Story {
    stack: Stack,
    csi: Csi,
    volume: Volume,
    writer: Writer,
}

/// What nobody but the agent may change, and it only for a good reason.
#[derive(Debug, PartialEq, Eq)]
struct World {
    agent: i32,
    mounts: BTreeSet<String>,
    mapped: String,
    controllers: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Story {
    async fn begin() -> Result<Self> {
        let _ = fs::remove_dir_all(SANDBOX);
        fs::create_dir_all(SANDBOX)?;
        let stack = Stack::start().await?;
        let mut csi = stack.csi().await?;
        let name = format!("pvc-{}", uuid::Uuid::new_v4());
        let mut volume = csi
            .create(&name, BYTES, filesystem("ext4"), HashMap::new())
            .await
            .map_err(status("create"))?;
        csi.attach(&mut volume).await.map_err(status("attach"))?;
        csi.mount(&volume).await.map_err(status("stage and publish"))?;
        let writer = Writer::start(&volume.target, false)?;
        Ok(Self { stack, csi, volume, writer })
    }

    async fn tell(&mut self, report: &mut Report) -> Result<()> {
        self.writer.progress(20, RECOVERY).await?;
        let socket = agent_socket(&self.stack.dir);
        report.case("the socket's mode keeps other users out", refused_by_mode(&socket));
        report.case("the agent refuses another user that reaches it", refused_by_agent(&socket));
        report.case("senseless requests change nothing", self.fuzz(report).await);
        self.stack.kill_agent()?;
        let admitted = self.admitted().await;
        self.stack.restart_agent().await?;
        report.case("a user of --allow-uid is admitted, and no other", admitted);
        report.case("the writer noticed nothing of all this", self.undisturbed().await);
        report.case("nothing is left on either side", self.nothing_is_left().await);
        Ok(())
    }

    /// A daemon of its own, which knows of no volume and leaves the others' alone.
    async fn admitted(&self) -> Result<()> {
        let dir = Path::new("/run/rds-hostile");
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
        let socket = dir.join("agent.sock");
        let mut agent = Command::new(sibling("rds-node-agent")?);
        agent.args(["serve", "--allow-uid", &NOBODY.to_string(), "--socket"]).arg(&socket);
        agent.arg("--state-dir").arg(dir.join("state"));
        let mut agent = Daemon::start("agent", agent)?;
        socket_up(&mut agent, &socket, Duration::from_secs(60)).await?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        ensure!(knock_as(NOBODY, &socket)? == ["Ok", "Ok"], "{:?}", knock_as(NOBODY, &socket)?);
        let other = knock_as(NOBODY - 1, &socket)?;
        ensure!(other.iter().all(|a| a.starts_with("PermissionDenied")), "{other:?}");
        agent.stop(Duration::from_secs(30))
    }

    fn world(&self) -> Result<World> {
        let socket = UnixStream::connect(agent_socket(&self.stack.dir))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let controllers = fs::read_dir("/sys/class/nvme")?.flatten();
        let listed = ["find", SANDBOX, "/var/lib/kubelet", "/var/lib/rds-csi", "/tmp", "-xdev"];
        let mut files: BTreeSet<_> = command(&listed)?.lines().map(str::to_owned).collect();
        let names = ["/", "/etc", "/dev", "/run", "."].map(|dir| command(&["ls", "-A", dir]));
        files.extend(names.into_iter().collect::<Result<Vec<_>>>()?);
        // sled's own segments come and go.
        files.retain(|f| !f.contains("/var/lib/rds-csi/journal/"));
        Ok(World {
            agent: getsockopt(&socket, PeerCredentials)?.pid(),
            mounts: mounts.lines().map(str::to_owned).collect(),
            mapped: command(&["dmsetup", "table"])?,
            controllers: controllers
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect(),
            files,
        })
    }

    async fn fuzz(&self, report: &Report) -> Result<()> {
        let seed = match std::env::var("RDS_CSI_FUZZ_SEED") {
            Ok(text) => text.parse().with_context(|| format!("RDS_CSI_FUZZ_SEED={text}"))?,
            Err(_) => rand::rng().random::<u32>().into(),
        };
        report.say(format!("RDS_CSI_FUZZ_SEED={seed} repeats what follows"));
        let before = self.world()?;
        let written = self.writer.last();
        let mut generator = Generator { rng: StdRng::seed_from_u64(seed), volume: &self.volume };
        self.garbage_connections(&mut generator)?;
        report.say(format!("{CONNECTIONS} connections of garbage"));
        let codes = self.calls(&mut generator).await?;
        report.say(format!("{CALLS} calls: {codes:?}"));
        let log = fs::read_to_string(results().join("agent.log"))?;
        ensure!(!log.contains("panicked"), "the agent panicked:\n{}", tail("agent", 40));
        let after = self.world()?;
        ensure!(before == after, "changed: {:?}", difference(&before, &after));
        let now = self.stack.status(&self.volume.id)?;
        ensure!(now["state"] == "Live" && now["outages"] == 0, "the volume is {now}");
        ensure!(self.writer.last() > written, "the writer stands still");
        Ok(())
    }

    /// Not even HTTP/2, or only its beginning.
    fn garbage_connections(&self, generator: &mut Generator<'_>) -> Result<()> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for n in 0..CONNECTIONS {
            let mut stream = UnixStream::connect(agent_socket(&self.stack.dir))?;
            stream.set_read_timeout(Some(Duration::from_millis(20)))?;
            stream.set_write_timeout(Some(Duration::from_secs(5)))?;
            let mut bytes = generator.garbage();
            match n % 3 {
                0 => bytes.splice(0..0, PREFACE.iter().copied()).for_each(drop),
                1 => bytes.splice(0..0, *b"POST / HTTP/1.1\r\nHost: x\r\n\r\n").for_each(drop),
                _ => {}
            }
            // The agent may hang up at any byte.
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 64]);
        }
        Ok(())
    }

    async fn calls(&self, generator: &mut Generator<'_>) -> Result<BTreeMap<String, usize>> {
        let socket = agent_socket(&self.stack.dir);
        let channels: Vec<_> = (0..AT_ONCE).map(|_| channel(&socket)).collect();
        let methods = raw::methods();
        let mut requests = Vec::new();
        for n in 0..CALLS {
            let method = methods[n % methods.len()].clone();
            let message = generator.message(&method);
            requests.push((n, method, message));
        }
        let mut answers = futures::stream::iter(requests)
            .map(|(n, method, message)| {
                let channel = channels[n % AT_ONCE].clone();
                async move {
                    let answer = raw::call(channel, &method, message).await;
                    (n, method, answer)
                }
            })
            .buffer_unordered(AT_ONCE);
        let mut codes = BTreeMap::new();
        while let Some((n, method, answer)) = answers.next().await {
            match answer {
                // The code alone is no fault: bytes that cannot be decoded get it from tonic,
                // and an error of the kernel that nothing is known about, from the agent.
                Ok((Code::Internal, message)) if message.contains("panicked") => {
                    bail!("call {n} ({method}): {message}")
                }
                Ok((code, _)) => *codes.entry(format!("{code:?}")).or_default() += 1,
                Err(status) => bail!("call {n} ({method}) got no answer: {status}"),
            }
        }
        Ok(codes)
    }

    async fn undisturbed(&mut self) -> Result<()> {
        self.writer.progress(20, RECOVERY).await?;
        if let Some(error) = self.writer.error() {
            bail!("a write failed: {error}");
        }
        self.writer.stop(RECOVERY).await?;
        self.writer.verify(self.writer.last()).map(|_| ())
    }

    async fn nothing_is_left(&mut self) -> Result<()> {
        taken_away(&mut self.csi, &self.volume).await?;
        no_devices()?;
        nothing_exported().await
    }
}

fn difference(before: &World, after: &World) -> Vec<String> {
    let sets = [
        ("mount", &before.mounts, &after.mounts),
        ("controller", &before.controllers, &after.controllers),
        ("file", &before.files, &after.files),
    ];
    let mut changes = Vec::new();
    for (what, before, after) in sets {
        changes.extend(before.symmetric_difference(after).map(|x| format!("{what} {x}")));
    }
    if before.agent != after.agent {
        changes.push(format!("agent {} is now {}", before.agent, after.agent));
    }
    if before.mapped != after.mapped {
        changes.push(format!("mapped devices {} are now {}", before.mapped, after.mapped));
    }
    changes
}

/// The answers of both services to a process of another user.
fn knock_as(uid: u32, socket: &Path) -> Result<Vec<String>> {
    let output = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()])
        .arg(std::env::current_exe()?)
        .arg("knock")
        .arg(socket)
        .output()?;
    let lines: Vec<_> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    ensure!(lines.len() == 2, "knock: {}", String::from_utf8_lossy(&output.stderr));
    Ok(lines)
}

fn refused_by_mode(socket: &Path) -> Result<()> {
    let mode = fs::metadata(socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o660, "mode {mode:o}");
    let answers = knock_as(NOBODY, socket)?;
    println!("  {answers:?}");
    ensure!(answers.iter().all(|a| a.starts_with("Unavailable")), "{answers:?}");
    Ok(())
}

fn refused_by_agent(socket: &Path) -> Result<()> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    let answers = knock_as(NOBODY, socket);
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    let answers = answers?;
    println!("  {answers:?}");
    for answer in &answers {
        ensure!(answer.starts_with("PermissionDenied"), "{answer}");
        ensure!(answer.contains("65534") && answer.contains("--allow-uid"), "{answer}");
    }
    Ok(())
}
