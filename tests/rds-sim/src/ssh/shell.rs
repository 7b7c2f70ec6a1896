//! The console of those who log in: a prompt, a line, its output. No completion and no history.

/// Longer lines are cut: nobody types them.
const MAX_LINE: usize = 64 << 10;

/// What typing leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Echo(String),
    Line(String),
    Quit,
}

pub(super) struct Shell {
    user: String,
    line: Vec<u8>,
    /// Within an escape sequence (arrow keys and the like), which is ignored.
    escape: bool,
    after_return: bool,
}

impl Shell {
    pub(super) fn new(user: &str) -> Shell {
        Shell { user: user.to_owned(), line: Vec::new(), escape: false, after_return: false }
    }

    pub(super) fn prompt(&self) -> String {
        format!("[{}@rds-sim] > ", self.user)
    }

    pub(super) fn typed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in bytes {
            let newline = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match *byte {
                // Final bytes of a sequence; `[` and `O` only begin it.
                b'A'..=b'N' | b'P'..=b'Z' | b'a'..=b'z' | b'~' if self.escape => {
                    self.escape = false
                }
                _ if self.escape => {}
                0x1b => self.escape = true,
                b'\n' if newline => {}
                b'\r' | b'\n' => events.extend(self.end_of_line()),
                3 => {
                    self.line.clear();
                    events.push(Event::Echo(format!("\r\n{}", self.prompt())));
                }
                4 if self.line.is_empty() => events.push(Event::Quit),
                8 | 127 => {
                    if !self.line.is_empty() {
                        while self.line.pop().is_some_and(|b| b & 0xC0 == 0x80) {}
                        events.push(Event::Echo("\u{8} \u{8}".into()));
                    }
                }
                b if b < b' ' || self.line.len() >= MAX_LINE => {}
                b => {
                    self.line.push(b);
                    if b.is_ascii() {
                        events.push(Event::Echo(char::from(b).into()));
                    }
                }
            }
        }
        events
    }

    fn end_of_line(&mut self) -> Vec<Event> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned();
        let echo = Event::Echo("\r\n".into());
        match line.as_str() {
            "" => vec![Event::Echo(format!("\r\n{}", self.prompt()))],
            "quit" | "/quit" => vec![echo, Event::Quit],
            _ => vec![echo, Event::Line(line)],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Event> {
        let mut shell = Shell::new("admin");
        let events = shell.typed(bytes).into_iter();
        events.filter(|e| !matches!(e, Event::Echo(_))).collect()
    }

    #[test]
    fn lines_are_edited_and_escapes_ignored() {
        let line = |s: &str| Event::Line(s.into());
        assert_eq!(lines(b"/disk prn\x08int\r\n"), [line("/disk print")]);
        assert_eq!(lines(b"a\x1b[A\x1b[3~b\rc\r"), [line("ab"), line("c")]);
        assert_eq!(lines(b"abc\x03\r\x04"), [Event::Quit]);
        assert_eq!(lines(b"quit\r"), [Event::Quit]);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = lines(&bytes);
        }
    }
}
