//! Between the node and the appliance.

use anyhow::Result;

use super::scene::Scene;
use crate::faults::{packets_dropped, seconds};

pub(super) async fn packets_5s(scene: &mut Scene) -> Result<String> {
    packets_dropped(&scene.stack, 5).await?;
    Ok(String::new())
}

pub(super) async fn packets_90s(scene: &mut Scene) -> Result<String> {
    packets_dropped(&scene.stack, 90).await?;
    Ok(String::new())
}

pub(super) async fn reset(scene: &mut Scene) -> Result<String> {
    scene.stack.order(&["reset-connections"])?;
    Ok(String::new())
}

pub(super) async fn refused(scene: &mut Scene) -> Result<String> {
    scene.stack.order(&["refuse-connections"])?;
    seconds(15).await;
    scene.stack.order(&["heal"])?;
    Ok(String::new())
}
