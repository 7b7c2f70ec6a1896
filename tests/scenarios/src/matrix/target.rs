//! On the appliance.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::number;
use super::scene::Scene;
use super::subject::RECOVERY;
use crate::faults::{export_toggled, rebooted, seconds};

const GROWTH: u64 = 32 << 20;

/// The kernel's connects are answered with Do-Not-Retry until the exports are there.
pub(super) async fn portal_first(scene: &mut Scene) -> Result<String> {
    rebooted(&scene.stack, "--down 5 --export-delay 8 --portal-first true")?;
    Ok(String::new())
}

/// As the target's own administrator would, without taking the subsystem away.
pub(super) async fn namespace_removed(scene: &mut Scene) -> Result<String> {
    for enable in ["0", "1"] {
        for subject in &scene.three {
            let status = scene.stack.status(&subject.volume.id)?;
            let nqn = status["nqn"].as_str().context("no NQN")?;
            let file = format!("/sys/kernel/config/nvmet/subsystems/{nqn}/namespaces/1/enable");
            std::fs::write(&file, enable).with_context(|| format!("write {enable} to {file}"))?;
        }
        if enable == "0" {
            seconds(5).await;
        }
    }
    Ok(String::new())
}

pub(super) async fn identity_changed(scene: &mut Scene) -> Result<String> {
    export_toggled(&scene.stack, &scene.volumes(), "1")?;
    Ok(String::new())
}

pub(super) async fn export_off(scene: &mut Scene) -> Result<String> {
    scene.exports("export-off")?;
    seconds(60).await;
    scene.exports("export-on")?;
    Ok(String::new())
}

/// Hosts see another size only after the export was toggled; the shield has to follow.
pub(super) async fn grown(scene: &mut Scene) -> Result<String> {
    let mut sizes = Vec::new();
    scene.exports("export-off")?;
    for subject in &scene.three {
        let before = number(&scene.stack.status(&subject.volume.id)?, "sizeBytes")?;
        let after = before + GROWTH;
        scene.stack.order(&["grow", &subject.volume.id, &after.to_string()])?;
        sizes.push((before, after));
    }
    seconds(2).await;
    scene.exports("export-on")?;
    for (subject, (before, after)) in scene.three.iter().zip(&sizes) {
        let grown = |v: &serde_json::Value| v["sizeBytes"] == *after;
        subject.becomes(&scene.stack, "as large as its export", RECOVERY, grown).await?;
        ensure!(after > before);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(format!("each shield grew by {} MiB", GROWTH >> 20))
}
