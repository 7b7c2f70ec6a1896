//! Another volume's content under our name: never mapped, however long the I/O waits.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::scene::Scene;
use super::subject::{Kind, RECOVERY, Subject};
use crate::process::run;

/// Raw volumes are sampled every ten seconds while they are healthy.
const SAMPLED: Duration = Duration::from_secs(12);
/// Nothing may happen by itself in this time.
const WATCHED: Duration = Duration::from_secs(4);

/// Both kinds: a file system is known by its UUID, a raw volume by samples.
pub(super) async fn foreign(scene: &mut Scene) -> Result<String> {
    let ext4 = Subject::brief(&mut scene.csi, Kind::Ext4, &[]).await?;
    let raw = Subject::brief(&mut scene.csi, Kind::Raw, &[]).await?;
    tokio::time::sleep(SAMPLED).await;
    let mut seen = Vec::new();
    for subject in [ext4, raw] {
        let kind = subject.kind.name();
        seen.push(swapped(scene, subject).await.with_context(|| format!("{kind} swapped"))?);
    }
    Ok(seen.join("; "))
}

fn checksum(path: &Path) -> Result<u32> {
    let (mut sum, mut buffer) = (crc32fast::Hasher::new(), vec![0; 1 << 20]);
    let mut file = File::open(path)?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finalize()),
            n => sum.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// Another volume's image of the same size.
fn make_other(path: &Path, kind: Kind, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    if kind == Kind::Raw {
        let block: Vec<u8> = (0..=u8::MAX).cycle().map(|b| b ^ 0x5a).take(1 << 20).collect();
        for _ in 0..bytes >> 20 {
            file.write_all(&block)?;
        }
        return Ok(());
    }
    file.set_len(bytes)?;
    run(&["mkfs.ext4", "-q", &path.to_string_lossy()])?;
    Ok(())
}

/// Exports the volume of that name with another file behind it.
fn export_with(scene: &Scene, subject: &Subject, file: &Path, aside: &Path) -> Result<()> {
    let (id, image) = (&subject.volume.id, scene.stack.backing_file(&subject.volume.id));
    scene.stack.order(&["export-off", id])?;
    fs::rename(&image, aside)?;
    fs::rename(file, &image)?;
    scene.stack.order(&["export-on", id])?;
    Ok(())
}

async fn swapped(scene: &mut Scene, subject: Subject) -> Result<String> {
    let image = scene.stack.backing_file(&subject.volume.id);
    let with = |suffix: &str| PathBuf::from(format!("{}.{suffix}", image.display()));
    let (other, ours) = (with("other"), with("ours"));
    make_other(&other, subject.kind, fs::metadata(&image)?.len())?;
    let before = checksum(&other)?;
    export_with(scene, &subject, &other, &ours)?;
    let blocked = |v: &serde_json::Value| v["state"] == "Blocked";
    let view = subject.becomes(&scene.stack, "Blocked", RECOVERY, blocked).await?;
    let reason = view["reason"].as_str().unwrap_or_default().to_owned();
    println!("  blocked: {reason}");
    ensure!(reason.contains("is not this volume"), "the reason is {reason:?}");
    subject.waits(WATCHED).await?;
    ensure!(checksum(&image)? == before, "something was written to the other volume");

    export_with(scene, &subject, &ours, &other)?;
    subject.waits(WATCHED).await?;
    let view = scene.stack.status(&subject.volume.id)?;
    ensure!(blocked(&view), "it went on without a person: {view}");
    ensure!(checksum(&other)? == before, "something was written to the other volume");
    scene.stack.agent_cli(&["reconnect", &subject.volume.id])?;
    subject.writer.progress(10, RECOVERY).await?;
    fs::remove_file(&other)?;
    let kind = subject.kind.name();
    let checked = subject.end(&mut scene.csi).await?;
    Ok(format!("{kind}: Blocked, then all {checked} records"))
}
