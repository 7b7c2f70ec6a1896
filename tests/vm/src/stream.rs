//! What comes out of the guest's virtio-serial port: the command's output, with two
//! messages of the harness among it.
//!
//! One stream rather than two, so that order is kept: when the exit status arrives, all
//! output that the command wrote before it has arrived too. A message is
//! `RS TOKEN WORDS NEWLINE`; RS (record separator) is rare and the token is random for
//! each run, so nothing that a command prints is taken for one.

const RECORD_SEPARATOR: u8 = 0x1e;

/// What the next bytes of the stream turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Output(Vec<u8>),
    /// The guest has set itself up and starts the command.
    Ready,
    /// The command's exit status, as a shell reports it (128 + n for signal n).
    Exit(i32),
}

pub(crate) struct Decoder {
    prefix: Vec<u8>,
    held: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new(token: &str) -> Self {
        let mut prefix = vec![RECORD_SEPARATOR];
        prefix.extend_from_slice(token.as_bytes());
        prefix.push(b' ');
        Self { prefix, held: Vec::new() }
    }

    /// Output is passed on at once; only what may be the start of a message is held back.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.held.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        let mut from = 0;
        while let Some(start) = self.find_separator(from) {
            let candidate = &self.held[start..];
            let shorter = candidate.len().min(self.prefix.len());
            if candidate[..shorter] != self.prefix[..shorter] {
                from = start + 1;
                continue;
            }
            output(&mut pieces, self.held.drain(..start).collect());
            let Some(end) = self.held.iter().position(|&b| b == b'\n') else {
                return pieces;
            };
            let line: Vec<u8> = self.held.drain(..=end).collect();
            match message(&line[self.prefix.len().min(end)..end]) {
                Some(piece) => pieces.push(piece),
                None => output(&mut pieces, line),
            }
            from = 0;
        }
        output(&mut pieces, std::mem::take(&mut self.held));
        pieces
    }

    /// What was held back when the stream ended.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.held
    }

    fn find_separator(&self, from: usize) -> Option<usize> {
        self.held[from..].iter().position(|&b| b == RECORD_SEPARATOR).map(|at| at + from)
    }
}

fn output(pieces: &mut Vec<Piece>, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        pieces.push(Piece::Output(bytes));
    }
}

fn message(words: &[u8]) -> Option<Piece> {
    let words = std::str::from_utf8(words).ok()?;
    match words.split_once(' ') {
        None if words == "ready" => Some(Piece::Ready),
        Some(("exit", status)) => status.parse().ok().map(Piece::Exit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"\x1etok ready\na\x1eb no newline\x1etok exit 3\n";

    #[test]
    fn messages_are_told_from_output() {
        let pieces = Decoder::new("tok").push(STREAM);
        assert_eq!(
            pieces,
            [Piece::Ready, Piece::Output(b"a\x1eb no newline".to_vec()), Piece::Exit(3)]
        );
    }

    #[test]
    fn any_cut_into_chunks_reads_the_same() {
        for size in 1..STREAM.len() {
            let mut decoder = Decoder::new("tok");
            let (mut text, mut messages) = (Vec::new(), Vec::new());
            for piece in STREAM.chunks(size).flat_map(|chunk| decoder.push(chunk)) {
                match piece {
                    Piece::Output(bytes) => text.extend(bytes),
                    other => messages.push(other),
                }
            }
            assert_eq!(text, b"a\x1eb no newline", "chunks of {size}");
            assert_eq!(messages, [Piece::Ready, Piece::Exit(3)], "chunks of {size}");
            assert!(decoder.finish().is_empty());
        }
    }

    #[test]
    fn output_without_a_newline_is_not_held_back() {
        assert_eq!(Decoder::new("tok").push(b"progress"), [Piece::Output(b"progress".to_vec())]);
    }
}
