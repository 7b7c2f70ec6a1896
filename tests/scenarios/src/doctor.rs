//! The doctor and the rest of the command line: on a healthy host nothing is wrong; then
//! things are broken one at a time, and exactly that is found, with its remedy.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::csi::{Csi, Volume, filesystem};
use crate::demo::{no_devices, nothing_exported, status, taken_away};
use crate::process::{run as command, sibling, tail};
use crate::report::Report;
use crate::stack::{APPLIANCE, Stack, agent_socket};
use crate::writer::Writer;

const BYTES: i64 = 64 << 20;
const STATE_DIR: &str = "/var/lib/rds-csi";
const RULES: &str = "/run/udev/rules.d/10-rds-csi.rules";
/// A volume that does not exist.
const NOBODY: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const RECOVERY: Duration = Duration::from_secs(120);

/// Runs it; true if all was as it should be.
pub(crate) async fn run() -> bool {
    let kernel = std::env::var("RDS_VM_KERNEL").unwrap_or_default();
    let mut report = Report::new(&format!("doctor, Linux {kernel}"));
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

struct Story {
    stack: Stack,
    csi: Csi,
    volume: Volume,
    writer: Writer,
}

/// Findings that are not `ok`, by their check: verdict, and how to mend it.
type Findings = BTreeMap<String, (String, String)>;

impl Story {
    async fn begin() -> Result<Self> {
        let stack = Stack::start().await?;
        let mut csi: Csi = stack.csi().await?;
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
        report.case("a healthy host has nothing wrong", self.healthy(report));
        report.case("udev rules removed", self.rules_removed());
        report.case("udevd killed", self.udevd_killed());
        report.case("a stray device over a namespace", self.stray_device());
        report.case("a shield that nobody knows", self.unknown_shield());
        report.case("a state directory open to all", self.open_state_dir());
        report.case("a journal that was set aside", self.journal_aside());
        report.case("a portal that drops packets", self.portal_silent().await);
        report.case("an agent that is dead", self.agent_dead().await);
        report.case("and all is well again", self.healthy(report));
        report.case("exit codes", self.exit_codes());
        report.case("answers for programs", self.answers());
        report.case("watch and history tell of a reconnect", self.watched().await);
        report.case("the writer noticed nothing of all this", self.undisturbed().await);
        report.case("nothing is left on either side", self.nothing_is_left().await);
        Ok(())
    }

    /// The agent's own program, by its exit code.
    fn cli(&self, words: &[&str]) -> Result<Output> {
        let mut agent = Command::new(sibling("rds-node-agent")?);
        agent.args(words).arg("--socket").arg(agent_socket(&self.stack.dir));
        agent.stdin(Stdio::null()).output().context("start rds-node-agent")
    }

    /// What the doctor finds, and whether its exit code agrees.
    fn examine(&self, more: &[&str]) -> Result<Findings> {
        let words = [&["doctor", "--state-dir", STATE_DIR, "-o", "json"], more].concat();
        let began = Instant::now();
        let output = self.cli(&words)?;
        ensure!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(said["version"] == 1, "version {}", said["version"]);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut findings = Findings::new();
        for finding in said["findings"].as_array().context("no findings")? {
            let verdict = text(&finding["verdict"]);
            if verdict == "ok" {
                continue;
            }
            let mend = text(&finding["mend"]);
            ensure!(verdict == "unknown" || !mend.is_empty(), "no remedy in {finding}");
            println!(
                "  {verdict} {}: {} | {mend}",
                text(&finding["check"]),
                text(&finding["seen"])
            );
            findings.insert(text(&finding["check"]), (verdict, mend));
        }
        let well = findings.values().all(|(verdict, _)| verdict == "warning");
        let code = output.status.code();
        ensure!(code == Some(i32::from(!well)), "exit {code:?} with {findings:?}");
        Ok(findings)
    }

    /// Exactly these are problems (or unknown); warnings may be there.
    fn finds(&self, more: &[&str], expected: &[(&str, &str)]) -> Result<Findings> {
        let findings = self.examine(more)?;
        let bad: Vec<_> = findings
            .iter()
            .filter(|(_, (verdict, _))| verdict != "warning")
            .map(|(check, (verdict, _))| (check.as_str(), verdict.as_str()))
            .collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        ensure!(bad == expected, "found {bad:?} instead of {expected:?}");
        Ok(findings)
    }

    fn healthy(&self, report: &Report) -> Result<()> {
        let findings = self.finds(&[], &[])?;
        report.say(format!("warnings: {:?}", findings.keys()));
        let ours =
            ["agent.", "volume", "portal", "leftovers", "permissions", "mounts", "udev.rules"];
        let attributable: Vec<_> =
            findings.keys().filter(|check| ours.iter().any(|o| check.starts_with(o))).collect();
        ensure!(attributable.is_empty(), "warnings of our own: {attributable:?}");
        Ok(())
    }

    fn rules_removed(&self) -> Result<()> {
        let rules = fs::read(RULES)?;
        fs::remove_file(RULES)?;
        let found = self.finds(&[], &[("udev.rules", "problem")]);
        fs::write(RULES, rules)?;
        ensure!(found?["udev.rules"].1.contains("udevadm control --reload"), "no command");
        Ok(())
    }

    fn udevd_killed(&self) -> Result<()> {
        command(&["pkill", "-9", "-x", "systemd-udevd"])?;
        let found = self.finds(&[], &[("udev.daemon", "problem")]);
        command(&["/lib/systemd/systemd-udevd", "--daemon"])?;
        found.map(|_| ())
    }

    fn namespace(&self) -> Result<String> {
        let status = self.stack.status(&self.volume.id)?;
        Ok(status["namespace"].as_str().context("no namespace")?.to_owned())
    }

    fn stray_device(&self) -> Result<()> {
        let namespace = self.namespace()?;
        let table = format!("0 2048 linear /dev/{namespace} 0");
        command(&["dmsetup", "create", "stray", "--noudevsync", "--table", &table])?;
        let check = format!("namespaces.holders.{namespace}");
        let found = self.finds(&[], &[(&check, "problem")]);
        command(&["dmsetup", "remove", "--noudevsync", "stray"])?;
        ensure!(found?[&check].1 == "dmsetup remove stray", "another command");
        Ok(())
    }

    fn unknown_shield(&self) -> Result<()> {
        let (name, uuid) = (format!("rds-{NOBODY}"), format!("RDSCSI-{NOBODY}"));
        command(&["dmsetup", "create", &name, "--noudevsync", "--uuid", &uuid, "--notable"])?;
        let found = self.finds(&[], &[(&format!("leftovers.shields.{name}"), "problem")]);
        command(&["dmsetup", "remove", "--noudevsync", &name])?;
        found.map(|_| ())
    }

    fn open_state_dir(&self) -> Result<()> {
        fs::set_permissions(STATE_DIR, fs::Permissions::from_mode(0o777))?;
        let found = self.finds(&[], &[("permissions.state-dir", "problem")]);
        fs::set_permissions(STATE_DIR, fs::Permissions::from_mode(0o700))?;
        ensure!(found?["permissions.state-dir"].1.contains("chmod 0700"), "no command");
        Ok(())
    }

    fn journal_aside(&self) -> Result<()> {
        let aside = Path::new(STATE_DIR).join("journal.damaged-1");
        fs::create_dir(&aside)?;
        let found = self.finds(&[], &[]);
        fs::remove_dir(&aside)?;
        ensure!(found?.contains_key("leftovers.journals"), "it was not seen");
        Ok(())
    }

    async fn portal_silent(&self) -> Result<()> {
        let portal = format!("portal.{APPLIANCE}:4420");
        self.stack.order(&["drop-packets"])?;
        let found = self.finds(&[], &[(&portal, "problem")]);
        self.stack.order(&["heal"])?;
        self.live().await?;
        found.map(|_| ())
    }

    async fn agent_dead(&mut self) -> Result<()> {
        self.stack.kill_agent()?;
        let unknown = ["volumes", "leftovers.shields", "leftovers.controllers"];
        let mut expected: Vec<_> = unknown.iter().map(|check| (*check, "unknown")).collect();
        expected.push(("agent.answers", "problem"));
        let found = self.finds(&[], &expected);
        let refused = self.cli(&["status"])?;
        self.stack.restart_agent().await?;
        self.live().await?;
        ensure!(refused.status.code() == Some(3), "status without an agent: {:?}", refused.status);
        found.map(|_| ())
    }

    async fn live(&self) -> Result<()> {
        let began = Instant::now();
        while self.stack.status(&self.volume.id)?["state"] != "Live" {
            ensure!(began.elapsed() < RECOVERY, "the volume is not live again");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    fn exit_codes(&self) -> Result<()> {
        let id = self.volume.id.as_str();
        let nowhere = ["--portal", "127.0.0.1:9"];
        self.finds(&nowhere, &[("portal.127.0.0.1:9", "problem")])?;
        let cases: [(&[&str], i32, &str); 9] = [
            (&["status"], 0, ""),
            (&["sessions", "-o", "wide"], 0, ""),
            (&["history", id], 0, ""),
            (&["reconnect", id], 0, ""),
            (&["rescan", id], 0, ""),
            (&["status", NOBODY], 1, "is not attached"),
            (&["fail", "raid10"], 1, "pvc-<uuid>"),
            (&["statis"], 2, "statis"),
            (&["doctor", "--portal", "nonsense"], 2, "nonsense"),
        ];
        for (words, code, says) in cases {
            let output = self.cli(words)?;
            let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
            ensure!(output.status.code() == Some(code), "{words:?}: {}: {err}", output.status);
            ensure!(err.contains(says), "{words:?} said {err:?}");
            ensure!((code == 0) == err.is_empty(), "{words:?} on standard error: {err:?}");
            ensure!((code == 0) != out.is_empty(), "{words:?}: an answer where none belongs");
            ensure!(!out.contains(&0x1b), "{words:?}: colours into a pipe");
        }
        Ok(())
    }

    fn answers(&self) -> Result<()> {
        let id = self.volume.id.as_str();
        let all: [&[&str]; 5] =
            [&["status"], &["sessions"], &["history", id], &["reconnect", id], &["fail", "--all"]];
        for words in all {
            let output = self.cli(&[words, &["-o", "json"]].concat())?;
            let said: Value = serde_json::from_slice(&output.stdout).with_context(|| {
                format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr))
            })?;
            ensure!(said["version"] == 1, "{words:?} said {said}");
        }
        Ok(())
    }

    async fn watched(&self) -> Result<()> {
        let mut watcher = Watcher(
            Command::new(sibling("rds-node-agent")?)
                .args(["watch", "--socket"])
                .arg(agent_socket(&self.stack.dir))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let output = watcher.0.stdout.take().context("no output")?;
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        // It says nothing before the first transition, so its being there cannot be seen.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let controller = self.stack.status(&self.volume.id)?["controller"]
            .as_str()
            .context("no controller")?
            .to_owned();
        fs::write(format!("/sys/class/nvme/{controller}/delete_controller"), "1")?;
        self.writer.progress(20, RECOVERY).await?;
        self.live().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let lines: Vec<String> = lines.try_iter().collect();
        let Some(line) = lines.iter().find(|l| l.contains("-> Live")) else {
            bail!("watch said {lines:?}")
        };
        println!("  {line}");
        let year = line.split('-').next().and_then(|y| y.parse::<u32>().ok());
        ensure!(year.is_some_and(|y| y > 2000), "no date in {line:?}");
        let history = self.cli(&["history", &self.volume.id, "-o", "json"])?;
        let history: Value = serde_json::from_slice(&history.stdout)?;
        let transitions = history["transitions"].as_array().context("no transitions")?;
        let last = transitions.last().context("an empty history")?;
        ensure!(last["to"] == "Live", "the last transition is {last}");
        ensure!(
            transitions.iter().all(|t| t["cause"].as_str().is_some_and(|c| !c.is_empty())),
            "a transition without a cause"
        );
        Ok(())
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

/// A child that is not left behind.
struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
