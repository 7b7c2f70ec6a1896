//! Asks the target whether it would let a host connect, and if not, why.
//!
//! The controller asks so to see that an export is off; the agent, why it is refused:
//! `/dev/nvme-fabrics` answers every refused Connect with `EIO`, whatever the NVMe status
//! was, and a controller that the kernel reconnects tells nothing at all. The two refusals
//! mean opposite things: *host not allowed* is the end of this attachment, *no such
//! subsystem* only says "not now". So the agent sends one Connect of its own, from user
//! space, and reads the status.
//!
//! Layouts: NVMe/TCP transport specification 3.6.2 (PDUs), NVMe base specification 6.3
//! (Connect), as Linux has them in include/linux/nvme-tcp.h and nvme.h. Statuses: Linux
//! drivers/nvme/target/core.c, `nvmet_alloc_ctrl`: an unknown subsystem is 0x182, a host
//! that is not on its list 0x184, both with Do Not Retry, unchanged since 5.0.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use uuid::Uuid;

use crate::ids::{HostNqn, Nqn};

/// A portal that does not complete the handshake in this time is as good as gone.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// For each read and write. The target answers from memory.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// What the target says to a Connect with this attachment's host NQN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It lets us in: whatever stood in the way is over.
    Admitted,
    /// *Connect Invalid Host*: the subsystem is exported, but not to us.
    HostRefused,
    /// *Connect Invalid Parameters*: the subsystem is not exported.
    NoSuchSubsystem,
    /// Any other status (type and code, without Do Not Retry), which proves nothing.
    Other(u16),
}

/// Bytes that are not what the specification has at that place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its kind must be, or longer than it can be.
    #[error("a PDU of {0} bytes")]
    Length(usize),
    /// Something else than what was waited for.
    #[error("a PDU of type {0:#04x}")]
    Kind(u8),
    /// The target ended the connection on purpose (C2HTermReq).
    #[error("the target terminated the connection, fatal error status {0:#06x}")]
    Terminated(u16),
    /// A protocol version, alignment or digest that was not offered.
    #[error("connection parameters that were not offered")]
    Parameters,
    /// The answer to a command that was not sent.
    #[error("a response to command {0}")]
    Command(u16),
}

const TYPE_ICREQ: u8 = 0;
const TYPE_ICRESP: u8 = 1;
const TYPE_C2H_TERM: u8 = 3;
const TYPE_COMMAND: u8 = 4;
const TYPE_RESPONSE: u8 = 5;

const HEADER: usize = 8;
/// ICReq and ICResp.
const IC_LENGTH: usize = 128;
/// Header and completion queue entry.
const RESPONSE_LENGTH: usize = 24;
/// Header, fixed part, and at most 128 bytes of the PDU that gave offence.
const TERM_LENGTHS: std::ops::RangeInclusive<usize> = 24..=152;
/// Header and submission queue entry.
const COMMAND_LENGTH: usize = 72;
const CONNECT_DATA: usize = 1024;
/// The largest alignment that a target can ask for: 32 dwords.
const ALIGN_LAST: u8 = 31;

const COMMAND_ID: u16 = 0x5244;
const NQN_FIELD: usize = 256;
/// Entries of the admin queue, less one. 32 is the least that NVMe allows; nvmet answers 0
/// with the same status as an unknown subsystem.
const SQSIZE: u16 = 31;
/// Milliseconds. Not 0, which switches the timer off: should the end of the connection
/// get lost on its way, the target still lets go of what it made.
const KATO: u32 = 5_000;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, Malformed> {
    bytes.get(at).copied().ok_or(Malformed::Length(bytes.len()))
}

fn word(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    Ok(u16::from_le_bytes([byte(bytes, at)?, byte(bytes, at + 1)?]))
}

/// The first 8 bytes of every PDU: type, flags, header length, data offset, whole length.
fn header(kind: u8, header_length: usize, data_at: usize, whole: usize) -> [u8; HEADER] {
    let short = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    let mut bytes = [kind, 0, short(header_length), short(data_at), 0, 0, 0, 0];
    put(&mut bytes, 4, &u32::try_from(whole).unwrap_or(u32::MAX).to_le_bytes());
    bytes
}

/// Initialize Connection Request: version 0, no alignment, no digests, one R2T.
fn ic_request() -> [u8; IC_LENGTH] {
    let mut bytes = [0; IC_LENGTH];
    put(&mut bytes, 0, &header(TYPE_ICREQ, IC_LENGTH, 0, IC_LENGTH));
    bytes
}

/// How many bytes follow the header of an answer. Bounds what is read, whatever is sent.
fn rest_after(header: [u8; HEADER]) -> Result<usize, Malformed> {
    let [kind, _, _, _, length @ ..] = header;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let fits = match kind {
        TYPE_ICRESP => length == IC_LENGTH,
        TYPE_RESPONSE => length == RESPONSE_LENGTH,
        TYPE_C2H_TERM => TERM_LENGTHS.contains(&length),
        _ => return Err(Malformed::Kind(kind)),
    };
    if fits { Ok(length - HEADER) } else { Err(Malformed::Length(length)) }
}

/// Checks that a whole PDU is of this kind; a termination is told apart.
fn expect(pdu: &[u8], kind: u8, length: usize) -> Result<(), Malformed> {
    match byte(pdu, 0)? {
        found if found == kind && pdu.len() == length => Ok(()),
        found if found == kind => Err(Malformed::Length(pdu.len())),
        TYPE_C2H_TERM => Err(Malformed::Terminated(word(pdu, 8)?)),
        other => Err(Malformed::Kind(other)),
    }
}

/// Reads an Initialize Connection Response: where in-capsule data has to begin.
fn data_offset(pdu: &[u8]) -> Result<usize, Malformed> {
    expect(pdu, TYPE_ICRESP, IC_LENGTH)?;
    let (version, alignment, digests) = (word(pdu, 8)?, byte(pdu, 10)?, byte(pdu, 11)?);
    if version != 0 || alignment > ALIGN_LAST || digests != 0 {
        return Err(Malformed::Parameters);
    }
    Ok(COMMAND_LENGTH.next_multiple_of((usize::from(alignment) + 1) * 4))
}

/// A command capsule with Connect for the admin queue, its data beginning at `data_at`.
fn connect_capsule(nqn: &Nqn, host_nqn: &HostNqn, data_at: usize) -> Vec<u8> {
    let whole = data_at + CONNECT_DATA;
    let mut bytes = vec![0; whole];
    put(&mut bytes, 0, &header(TYPE_COMMAND, COMMAND_LENGTH, data_at, whole));
    // Fabrics opcode; data described by an SGL; command id; Connect.
    let [id_low, id_high] = COMMAND_ID.to_le_bytes();
    put(&mut bytes, HEADER, &[0x7f, 0x40, id_low, id_high, 0x01]);
    // The SGL: an offset into this capsule (0), the length, and the kind that says so.
    put(&mut bytes, HEADER + 32, &(CONNECT_DATA as u32).to_le_bytes());
    put(&mut bytes, HEADER + 39, &[0x01]);
    // Record format 0 and queue 0 are zeroes already.
    put(&mut bytes, HEADER + 44, &SQSIZE.to_le_bytes());
    put(&mut bytes, HEADER + 48, &KATO.to_le_bytes());

    // The kernel sends the host id in the order of its text, too.
    let host_id = Uuid::try_parse(host_nqn.host_id()).unwrap_or_default();
    put(&mut bytes, data_at, host_id.as_bytes());
    // Any controller.
    put(&mut bytes, data_at + 16, &0xffffu16.to_le_bytes());
    put(&mut bytes, data_at + NQN_FIELD, nqn.as_str().as_bytes());
    put(&mut bytes, data_at + 2 * NQN_FIELD, host_nqn.as_str().as_bytes());
    bytes
}

/// Reads the response capsule.
fn decode(pdu: &[u8]) -> Result<Answer, Malformed> {
    expect(pdu, TYPE_RESPONSE, RESPONSE_LENGTH)?;
    let id = word(pdu, HEADER + 12)?;
    if id != COMMAND_ID {
        return Err(Malformed::Command(id));
    }
    // Bit 0 is the phase; then 8 bits of code, 3 of type, and hints on retrying.
    Ok(match (word(pdu, HEADER + 14)? >> 1) & 0x7ff {
        0 => Answer::Admitted,
        0x184 => Answer::HostRefused,
        0x182 => Answer::NoSuchSubsystem,
        status => Answer::Other(status),
    })
}

/// Asks once. Blocks for some seconds at most. A target that would admit us is left at
/// once: the end of the connection is the end of what the Connect made.
///
/// # Errors
/// If the portal cannot be reached or does not speak NVMe/TCP: then nothing is known.
pub fn ask(portal: SocketAddr, nqn: &Nqn, host_nqn: &HostNqn) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&portal, CONNECT_DEADLINE)?;
    converse(stream, nqn, host_nqn)
}

fn converse(mut stream: TcpStream, nqn: &Nqn, host_nqn: &HostNqn) -> io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    stream.write_all(&ic_request())?;
    let data_at = data_offset(&read_pdu(&mut stream)?).map_err(invalid)?;
    stream.write_all(&connect_capsule(nqn, host_nqn, data_at))?;
    decode(&read_pdu(&mut stream)?).map_err(invalid)
}

fn read_pdu(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let mut pdu = header.to_vec();
    pdu.resize(HEADER + rest_after(header).map_err(invalid)?, 0);
    stream.read_exact(pdu.get_mut(HEADER..).unwrap_or_default())?;
    Ok(pdu)
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
