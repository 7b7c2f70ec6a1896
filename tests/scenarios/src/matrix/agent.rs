//! The agent itself and its state directory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::scene::Scene;
use super::subject::{Kind, RECOVERY, Subject};
use crate::csi::with_retries;
use crate::demo::status;
use crate::faults::{agent_killed, export_toggled, seconds};
use crate::process::{run, sibling};
use crate::stack::AgentOptions;
use crate::writer::{Pace, Writer};

/// A small disk of its own for the state directory, so that it can be full.
const DISK: &str = "/scratch/state-disk";
const DISK_BYTES: u64 = 24 << 20;
/// The agent's own copy of its program, so that it can be replaced.
const BINARY: &str = "/scratch/agent-bin/rds-node-agent";
const FILLER: &str = "filler";

/// Makes both; the agent is to be started with them.
pub(super) fn prepare() -> Result<AgentOptions> {
    let binary = PathBuf::from(BINARY);
    fs::create_dir_all(binary.parent().context("path")?)?;
    replace_binary()?;
    let image = format!("{DISK}.img");
    fs::File::create(&image)?.set_len(DISK_BYTES)?;
    run(&["mkfs.ext4", "-q", &image])?;
    fs::create_dir_all(DISK)?;
    run(&["mount", "-o", "loop", &image, DISK])?;
    Ok(AgentOptions { binary, state_dir: Path::new(DISK).join("rds-csi") })
}

/// As a package manager does: a new file under the old name.
fn replace_binary() -> Result<()> {
    let new = format!("{BINARY}.new");
    fs::copy(sibling("rds-node-agent")?, &new)?;
    fs::rename(&new, BINARY)?;
    Ok(())
}

pub(super) async fn killed(scene: &mut Scene) -> Result<String> {
    agent_killed(&mut scene.stack).await?;
    Ok(String::new())
}

async fn upgrade(scene: &mut Scene) -> Result<()> {
    replace_binary()?;
    scene.stack.stop_agent()?;
    scene.stack.restart_agent().await
}

pub(super) async fn upgraded(scene: &mut Scene) -> Result<String> {
    upgrade(scene).await?;
    Ok(String::new())
}

pub(super) async fn upgraded_in_outage(scene: &mut Scene) -> Result<String> {
    scene.stack.order(&["drop-packets"])?;
    seconds(9).await;
    upgrade(scene).await?;
    seconds(2).await;
    scene.stack.order(&["heal"])?;
    Ok(String::new())
}

/// It goes while the agent runs, which then lives through an outage without it, is killed,
/// and starts with nothing.
pub(super) async fn journal_deleted(scene: &mut Scene) -> Result<String> {
    fs::remove_dir_all(&scene.stack.agent_options.state_dir)?;
    export_toggled(&scene.stack, &scene.volumes(), "1")?;
    scene.writes_flow().await.context("without a journal")?;
    scene.stack.kill_agent()?;
    seconds(1).await;
    export_toggled(&scene.stack, &scene.volumes(), "1")?;
    scene.stack.restart_agent().await?;
    Ok("one outage without a journal, one with a new agent".into())
}

/// Writes until there is no space, in ever smaller pieces.
fn fill() -> Result<()> {
    let mut file = fs::File::create(Path::new(DISK).join(FILLER))?;
    for size in [1 << 20, 64 << 10, 4 << 10, 512] {
        let piece = vec![0xa5; size];
        loop {
            match file.write_all(&piece).and_then(|()| file.sync_data()) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => break,
                Err(e) => return Err(e).context("fill the state directory's disk"),
            }
        }
    }
    Ok(())
}

pub(super) fn free_space() {
    let _ = fs::remove_file(Path::new(DISK).join(FILLER));
}

/// Sessions need no journal to come back; a new volume does, and is refused until there is
/// space again.
pub(super) async fn disk_full(scene: &mut Scene) -> Result<String> {
    fill()?;
    export_toggled(&scene.stack, &scene.volumes(), "1")?;
    scene.writes_flow().await.context("with a full disk")?;
    refused_until_space(scene).await
}

/// An agent that starts finds the disk full.
pub(super) async fn disk_full_killed(scene: &mut Scene) -> Result<String> {
    fill()?;
    scene.stack.kill_agent()?;
    export_toggled(&scene.stack, &scene.volumes(), "1")?;
    scene.stack.restart_agent().await?;
    scene.writes_flow().await.context("with a full disk, after a restart")?;
    refused_until_space(scene).await
}

async fn refused_until_space(scene: &mut Scene) -> Result<String> {
    let csi = &mut scene.csi;
    let name = format!("pvc-{}", uuid::Uuid::new_v4());
    let created = csi.create(&name, 16 << 20, Kind::Raw.capability(), Default::default()).await;
    let mut volume = created.map_err(status("create"))?;
    csi.attach(&mut volume).await.map_err(status("attach"))?;
    let seen = match csi.mount(&volume).await {
        // The journal's own file may have had room left: then it is in there.
        Ok(()) => {
            ensure!(journal()?.contains(&volume.id), "staged, and nothing of it is written down");
            "a new volume was staged, since the journal's own file had room".to_owned()
        }
        Err(refusal) => {
            println!("  refused: {:?}: {}", refusal.code(), refusal.message());
            let clear = ["space", "journal"].iter().any(|word| refusal.message().contains(word));
            ensure!(clear, "the refusal does not say why: {}", refusal.message());
            format!("a new volume was refused ({:?}) until there was space", refusal.code())
        }
    };
    free_space();
    with_retries("stage", RECOVERY, || {
        let (mut csi, volume) = (csi.clone(), volume.clone());
        async move { csi.mount(&volume).await }
    })
    .await
    .map_err(status("stage once there is space"))?;
    let pace = Pace { pause_ms: 20, slots: 1024 };
    let writer = Writer::start_paced(&volume.target, true, pace)?;
    let subject = Subject { kind: Kind::Raw, volume, writer };
    subject.writer.progress(20, RECOVERY).await?;
    subject.end(csi).await?;
    Ok(seen)
}

/// What is written down on the state directory's disk.
fn journal() -> Result<String> {
    let agent = sibling("rds-node-agent")?;
    let state = Path::new(DISK).join("rds-csi");
    let words = ["journal", "export", "--state-dir", state.to_str().context("path")?];
    run(&[[agent.to_str().context("path")?].as_slice(), &words].concat())
}
