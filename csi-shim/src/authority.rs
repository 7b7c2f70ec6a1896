//! kubelet's first words, in a form that our HTTP/2 server takes.
//!
//! kubelet dials a registration socket by its path and names no authority, so that grpc-go makes
//! one of the path: `:authority` is `%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2F...`. That is no
//! authority in the sense of RFC 9113 (8.3.1), and h2, below tonic, resets the stream with
//! PROTOCOL_ERROR. Seen with kubelet 1.36.3; its calls of CSI itself say `localhost`
//! (kubernetes/kubernetes#112597 mended all but this one). So what comes from kubelet here passes
//! through a filter that reads frames (RFC 9113, 4) and header blocks (RFC 7541), replaces such an
//! authority, and leaves all else as it is.

use std::io;

use loona_hpack::Decoder;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, copy, duplex, split,
};

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame that may be sent to a server that announces no other size.
const FRAME: usize = 16 << 10;
/// Far more than a call has.
const BLOCK: usize = 64 << 10;
/// Both directions: a registration is a few hundred bytes.
const BUFFER: usize = 64 << 10;
const LOCALHOST: &[u8] = b"localhost";

/// A stream with what comes from this one, in which each `:authority` can be one.
pub(crate) fn mended<S>(client: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (ours, theirs) = duplex(BUFFER);
    tokio::spawn(async move {
        let (mut from_client, mut to_client) = split(client);
        let (mut from_server, mut to_server) = split(ours);
        let there = async {
            let done = forward(&mut from_client, &mut to_server).await;
            // The server ends the connection when its input does.
            let _ = to_server.shutdown().await;
            done
        };
        let back = async {
            let done = copy(&mut from_server, &mut to_client).await;
            let _ = to_client.shutdown().await;
            done
        };
        let (there, back) = tokio::join!(there, back);
        if let Err(error) = there.and(back.map(drop)) {
            tracing::debug!(%error, "a connection to the registration socket ended");
        }
    });
    theirs
}

struct Frame {
    kind: u8,
    flags: u8,
    /// With its reserved bit.
    stream: [u8; 4],
    payload: Vec<u8>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    match from.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let [a, b, c, kind, flags, stream @ ..] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > FRAME {
        return Err(bad("a frame that is larger than HTTP/2 allows"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, flags, stream, payload }))
}

async fn write_frame(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let length = u32::try_from(frame.payload.len()).map_err(|_| bad("a frame too large"))?;
    let [_, a, b, c] = length.to_be_bytes();
    let [s0, s1, s2, s3] = frame.stream;
    to.write_all(&[a, b, c, frame.kind, frame.flags, s0, s1, s2, s3]).await?;
    to.write_all(&frame.payload).await
}

async fn forward(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut decoder = Decoder::new();
    while let Some(mut frame) = read_frame(from).await? {
        if frame.kind == HEADERS {
            let mut block = fragment(&frame)?.to_vec();
            let mut last = frame.flags;
            while last & END_HEADERS == 0 {
                let next = read_frame(from).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                if next.kind != CONTINUATION || next.stream != frame.stream {
                    return Err(bad("headers that do not continue"));
                }
                block.extend_from_slice(&next.payload);
                last = next.flags;
                if block.len() > BLOCK {
                    return Err(bad("headers without end"));
                }
            }
            let headers = decoder
                .decode(&block)
                .map_err(|e| bad(&format!("headers that are none: {e:?}")))?;
            frame.payload = encode(headers);
            if frame.payload.len() > FRAME {
                return Err(bad("headers that are too large for one frame"));
            }
            frame.flags = (frame.flags & END_STREAM) | END_HEADERS;
        }
        write_frame(to, &frame).await?;
        to.flush().await?;
    }
    Ok(())
}

/// A part of a header block, without what a frame may have around it.
fn fragment(frame: &Frame) -> io::Result<&[u8]> {
    let mut rest = frame.payload.as_slice();
    if frame.flags & PADDED != 0 {
        let (length, more) = rest.split_first().ok_or_else(|| bad("no padding"))?;
        let end = more.len().checked_sub(usize::from(*length));
        rest = more.get(..end.ok_or_else(|| bad("more padding than frame"))?).unwrap_or_default();
    }
    if frame.flags & PRIORITY != 0 {
        rest = rest.get(5..).ok_or_else(|| bad("half a priority"))?;
    }
    Ok(rest)
}

/// Each header as a literal that enters no table: nothing has to be remembered of it.
fn encode(headers: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, mut value) in headers {
        if name == b":authority" && !is_authority(&value) {
            value = LOCALHOST.to_vec();
        }
        block.push(0);
        string(&mut block, &name);
        string(&mut block, &value);
    }
    block
}

/// As our server reads it.
fn is_authority(value: &[u8]) -> bool {
    hyper::http::uri::Authority::try_from(value).is_ok()
}

/// RFC 7541, 5.1 and 5.2: seven bits of length, the rest in groups of seven; without Huffman.
fn string(block: &mut Vec<u8>, text: &[u8]) {
    const MOST: usize = 0x7f;
    if text.len() < MOST {
        block.push(text.len() as u8);
    } else {
        block.push(MOST as u8);
        let mut rest = text.len() - MOST;
        while rest > MOST {
            block.push((rest & MOST) as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What grpc-go makes of the path.
    const PATH: &[u8] = b"%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fa-reg.sock";

    type Headers = Vec<(Vec<u8>, Vec<u8>)>;

    fn headers(authority: &[u8], long: usize) -> Headers {
        [
            (&b":method"[..], b"POST".to_vec()),
            (b":authority", authority.to_vec()),
            (b":path", b"/pluginregistration.Registration/GetInfo".to_vec()),
            (b"grpc-trace", vec![b'x'; long]),
        ]
        .map(|(name, value)| (name.to_vec(), value))
        .to_vec()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 3], payload].concat()
    }

    async fn passed(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let preface = [b'P'; PREFACE];
        forward(&mut [&preface, bytes].concat().as_slice(), &mut out).await?;
        assert_eq!(out[..PREFACE], preface);
        Ok(out.split_off(PREFACE))
    }

    /// All headers of all frames, as a server would read them.
    async fn read(mut bytes: &[u8]) -> Vec<(u8, Headers)> {
        let (mut decoder, mut all) = (Decoder::new(), Vec::new());
        while let Some(frame) = read_frame(&mut bytes).await.unwrap() {
            all.push((frame.flags, decoder.decode(&frame.payload).unwrap()));
        }
        all
    }

    #[tokio::test]
    async fn a_path_becomes_a_host_and_all_else_stays() {
        // As a client's encoder does it: what it said once is a number the next time.
        let mut encoder = loona_hpack::Encoder::new();
        let mut block = |wanted: &Headers| {
            encoder.encode(wanted.iter().map(|(n, v)| (n.as_slice(), v.as_slice())))
        };
        let (first, second) = (headers(PATH, 1), headers(b"localhost:80", 300));
        let (a, b) = (block(&first), block(&first));
        assert!(b.len() < a.len(), "nothing was remembered");
        let c = block(&second);
        let settings = frame(0x4, 0, &[0, 3, 0, 0, 0, 100]);
        let data = frame(0x0, END_STREAM, b"\0\0\0\0\0");
        let padded = [&[2][..], &[0; 5], &b, &[0, 0]].concat();
        let (begin, end) = c.split_at(c.len() / 2);
        let bytes = [
            settings.clone(),
            frame(HEADERS, END_HEADERS, &a),
            data.clone(),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY | END_STREAM, &padded),
            frame(HEADERS, 0, begin),
            frame(CONTINUATION, END_HEADERS, end),
        ]
        .concat();
        let out = passed(&bytes).await.unwrap();
        let rest = out.strip_prefix(settings.as_slice()).unwrap();
        let at = rest.windows(data.len()).position(|w| w == data).unwrap();
        let (before, after) = (&rest[..at], &rest[at + data.len()..]);
        let expected = headers(b"localhost", 1);
        assert_eq!(read(before).await, [(END_HEADERS, expected.clone())]);
        let rest = read(after).await;
        assert_eq!(rest, [(END_HEADERS | END_STREAM, expected), (END_HEADERS, second)]);
    }

    #[test]
    fn lengths_are_as_the_standard_has_them() {
        for length in [0, 1, 126, 127, 128, 254, 255, 300, 16_000] {
            let header = (vec![b'n'; length.max(1)], vec![b'v'; length]);
            let block = encode(vec![header.clone()]);
            assert_eq!(Decoder::new().decode(&block).unwrap(), [header], "{length}");
        }
    }

    #[tokio::test]
    async fn what_is_no_http2_ends_the_connection() {
        for wrong in [
            frame(HEADERS, END_HEADERS, &[0xff; 20]),
            frame(HEADERS, END_HEADERS | PADDED, &[9, 0]),
            frame(HEADERS, END_HEADERS | PRIORITY, &[0; 3]),
            [frame(HEADERS, 0, &[]), frame(HEADERS, END_HEADERS, &[])].concat(),
            frame(HEADERS, 0, &[]),
            vec![0xff; 9],
        ] {
            assert!(passed(&wrong).await.is_err(), "{wrong:?}");
        }
    }
}
