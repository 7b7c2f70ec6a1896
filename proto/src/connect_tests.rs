//! The wire format byte by byte, and a target that is played by a thread.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use std::net::TcpListener;
use std::thread;

const NQN: &str = "nqn.2000-02.com.mikrotik:pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff";

fn ic_response(alignment: u8) -> Vec<u8> {
    let mut pdu = vec![0; IC_LENGTH];
    put(&mut pdu, 0, &header(TYPE_ICRESP, IC_LENGTH, 0, IC_LENGTH));
    put(&mut pdu, 10, &[alignment]);
    // MAXH2CDATA as nvmet sends it.
    put(&mut pdu, 12, &0x40_0000u32.to_le_bytes());
    pdu
}

fn response(id: u16, status: u16) -> Vec<u8> {
    let mut pdu = vec![0; RESPONSE_LENGTH];
    put(&mut pdu, 0, &header(TYPE_RESPONSE, RESPONSE_LENGTH, 0, RESPONSE_LENGTH));
    put(&mut pdu, 20, &id.to_le_bytes());
    put(&mut pdu, 22, &(status << 1).to_le_bytes());
    pdu
}

#[test]
fn the_connection_request_is_as_nvmet_wants_it() {
    let pdu = ic_request();
    assert_eq!(pdu[..8], [0, 0, 128, 0, 128, 0, 0, 0]);
    assert!(pdu[8..].iter().all(|b| *b == 0));
}

#[test]
fn the_connect_capsule_has_each_field_in_its_place() {
    let pdu = connect_capsule(&NQN.parse().unwrap(), &HOST.parse().unwrap(), 72);
    // 72 + 1024 = 0x448.
    assert_eq!(pdu[..8], [4, 0, 72, 72, 0x48, 0x04, 0, 0]);
    assert_eq!(pdu.len(), 0x448);
    let (command, data) = (&pdu[8..72], &pdu[72..]);
    assert_eq!((command[0], command[1], command[4]), (0x7f, 0x40, 0x01));
    // Offset 0, 1024 bytes, a data block by offset.
    assert_eq!(command[24..40], [0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1]);
    assert_eq!(command[40..52], [0, 0, 0, 0, 31, 0, 0, 0, 0x88, 0x13, 0, 0]);
    assert_eq!(
        data[..18],
        [
            0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff, 0xff, 0xff
        ]
    );
    assert_eq!(&data[256..256 + NQN.len()], NQN.as_bytes());
    assert_eq!(&data[512..512 + HOST.len()], HOST.as_bytes());
    assert!(data[256 + NQN.len()..512].iter().all(|b| *b == 0));
    assert!(data[768..].iter().all(|b| *b == 0));
}

#[test]
fn the_data_begins_where_the_target_wants_it() {
    for (alignment, at) in [(0, 72), (1, 72), (3, 80), (15, 128), (31, 128)] {
        assert_eq!(data_offset(&ic_response(alignment)), Ok(at));
    }
    assert_eq!(data_offset(&ic_response(32)), Err(Malformed::Parameters));
}

#[test]
fn statuses() {
    // Do Not Retry, and More, say nothing of why.
    for (status, answer) in [
        (0, Answer::Admitted),
        (0x184, Answer::HostRefused),
        (0x4184, Answer::HostRefused),
        (0x4182, Answer::NoSuchSubsystem),
        (0x2182, Answer::NoSuchSubsystem),
        // The same codes of another type, and neighbours.
        (0x0084, Answer::Other(0x84)),
        (0x4284, Answer::Other(0x284)),
        (0x4181, Answer::Other(0x181)),
        (0x4191, Answer::Other(0x191)),
    ] {
        assert_eq!(decode(&response(COMMAND_ID, status)), Ok(answer), "{status:#x}");
    }
    assert_eq!(decode(&response(7, 0x4184)), Err(Malformed::Command(7)));
}

#[test]
fn a_termination_is_told_apart() {
    let mut pdu = vec![0; 24];
    put(&mut pdu, 0, &header(TYPE_C2H_TERM, 24, 0, 24));
    put(&mut pdu, 8, &[1, 0]);
    assert_eq!(data_offset(&pdu), Err(Malformed::Terminated(1)));
    assert_eq!(decode(&pdu), Err(Malformed::Terminated(1)));
}

/// Plays a target: answers each PDU of ours with the next of these.
fn target(answers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for (answer, length) in answers.into_iter().zip([IC_LENGTH, 0x448]) {
            let mut request = vec![0; length];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    address
}

#[test]
fn a_whole_conversation() {
    let (nqn, host) = (NQN.parse().unwrap(), HOST.parse().unwrap());
    let refusing = target(vec![ic_response(0), response(COMMAND_ID, 0x4184)]);
    assert_eq!(ask(refusing, &nqn, &host).unwrap(), Answer::HostRefused);
    // Whatever is not an answer is unknown, never a refusal.
    for broken in [vec![], vec![ic_response(0)], vec![vec![0xff; 128]]] {
        assert!(ask(target(broken), &nqn, &host).is_err());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(pdu in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = data_offset(&pdu);
        let _ = decode(&pdu);
        let mut stream = pdu.as_slice();
        let _ = read_pdu(&mut stream);
    }

    #[test]
    fn damaged_answers_neither(
        at in 0..IC_LENGTH, value: u8, status: u16, cut in 0..RESPONSE_LENGTH,
    ) {
        let mut pdu = ic_response(0);
        pdu[at] = value;
        if let Ok(offset) = data_offset(&pdu) {
            prop_assert!((COMMAND_LENGTH..=IC_LENGTH).contains(&offset));
        }
        let whole = response(COMMAND_ID, status);
        prop_assert!(decode(&whole).is_ok());
        prop_assert!(decode(&whole[..cut]).is_err());
    }

    #[test]
    fn only_the_explicit_status_is_a_refused_host(status in 0u16..0x8000) {
        let answer = decode(&response(COMMAND_ID, status)).unwrap();
        prop_assert_eq!(answer == Answer::HostRefused, status & 0x7ff == 0x184);
    }

    #[test]
    fn what_is_read_is_bounded(header: [u8; HEADER]) {
        if let Ok(rest) = rest_after(header) {
            prop_assert!(rest <= 152 - HEADER);
        }
    }
}
