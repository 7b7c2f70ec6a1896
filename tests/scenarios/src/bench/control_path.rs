//! What the shim costs on the control path.

use std::time::Instant;

use anyhow::Result;
use rds_csi_proto::csi::NodeGetCapabilitiesRequest;
use rds_csi_proto::csi::node_client::NodeClient;

use crate::csi::{channel, request};
use crate::stack::{Stack, agent_socket};

use super::{median, ratio_table};

pub(super) async fn measure(stack: &Stack) -> Result<()> {
    let mut rows = Vec::new();
    for (name, socket) in
        [("agent", agent_socket(&stack.dir)), ("through the shim", stack.dir.join("csi.sock"))]
    {
        let mut node = NodeClient::new(channel(&socket));
        let mut times = Vec::new();
        for _ in 0..200 {
            let began = Instant::now();
            node.node_get_capabilities(request(NodeGetCapabilitiesRequest {})).await?;
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        rows.push((name.to_owned(), median(times)));
    }
    ratio_table("NodeGetCapabilities", "milliseconds (median)", &rows);
    Ok(())
}
