//! gRPC calls whose messages are any bytes.

use rds_csi_proto::agent::sessions_server::SERVICE_NAME as SESSIONS;
use rds_csi_proto::csi::node_server::SERVICE_NAME as NODE;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Status};

use prost::bytes::{Buf, BufMut};

/// Every method of the agent's socket.
pub(super) fn methods() -> Vec<String> {
    let node = [
        "NodeStageVolume",
        "NodeUnstageVolume",
        "NodePublishVolume",
        "NodeUnpublishVolume",
        "NodeGetVolumeStats",
        "NodeExpandVolume",
        "NodeGetCapabilities",
        "NodeGetInfo",
    ];
    let sessions = ["Status", "Reconnect", "Rescan", "Fail", "History", "Watch"];
    let of = |service: &str, names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("/{service}/{name}")).collect()
    };
    [of(NODE, &node), of(SESSIONS, &sessions)].concat()
}

#[derive(Debug, Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// Makes one call; its answer's code and message. A stream's first item is not waited for.
pub(super) async fn call(
    channel: Channel,
    method: &str,
    message: Vec<u8>,
) -> Result<(Code, String), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path: PathAndQuery =
        method.parse().map_err(|_| Status::invalid_argument(format!("{method} is no path")))?;
    let request = crate::csi::request(message);
    let answer = if method.ends_with("/Watch") {
        client.server_streaming(request, path, Bytes).await.map(|_| ())
    } else {
        client.unary(request, path, Bytes).await.map(|_| ())
    };
    match answer {
        Ok(()) => Ok((Code::Ok, String::new())),
        // An answer has no cause on this side; the want of one has.
        Err(status) if std::error::Error::source(&status).is_none() => {
            Ok((status.code(), status.message().to_owned()))
        }
        Err(status) => Err(status),
    }
}
