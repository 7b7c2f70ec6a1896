//! Recursive descent over characters. A line that is not understood as a whole is not run at all.

use super::menus::{Trail, takes, verb_named};
use super::quote::unescape;
use super::syntax::{Call, Piece, Place, Statement, SyntaxError, Value, Verb};
use crate::ros::version::Version;

/// Deeper nesting than any script has; recursion must end before the stack does.
const MAX_DEPTH: usize = 32;

type Parsed<T> = Result<T, SyntaxError>;

/// Reads a script, as that version of RouterOS does.
pub fn parse(text: &str, version: Version) -> Parsed<Vec<Statement>> {
    let mut parser = Parser { chars: text.chars().collect(), at: 0, depth: 0, version };
    let statements = parser.statements(None)?;
    if parser.at < parser.chars.len() {
        return Err(parser.syntax());
    }
    Ok(statements)
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
    version: Version,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.chars[..at.min(self.chars.len())];
        let line_start = before.iter().rposition(|c| *c == '\n').map_or(0, |p| p + 1);
        (before.iter().filter(|c| **c == '\n').count() + 1, before.len() - line_start + 1)
    }

    fn syntax(&self) -> SyntaxError {
        let (line, column) = self.position(self.at);
        SyntaxError::Syntax { line, column }
    }

    fn expected_end(&self, at: usize) -> SyntaxError {
        let (line, column) = self.position(at);
        SyntaxError::ExpectedEnd { line, column }
    }

    fn bad_command(&self, name: String, at: usize) -> SyntaxError {
        let (line, column) = self.position(at);
        SyntaxError::BadCommand { name, line, column }
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.eat(c) { Ok(()) } else { Err(self.syntax()) }
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r')) {
            self.at += 1;
        }
    }

    fn at_end_of_command(&self) -> bool {
        matches!(self.peek(), None | Some(';' | '\n' | ']' | '}'))
    }

    fn word(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(is_word) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return Err(self.syntax());
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Up to the end, or to the bracket that closes them.
    fn statements(&mut self, menu: Option<Place>) -> Parsed<Vec<Statement>> {
        let mut out = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                None | Some(']' | '}') => return Ok(out),
                Some(';' | '\n') => self.at += 1,
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                Some(_) => {
                    out.push(self.nested(|p| p.statement(menu))?);
                    self.blanks();
                    if !self.at_end_of_command() {
                        return Err(self.expected_end(self.at));
                    }
                }
            }
        }
    }

    fn statement(&mut self, menu: Option<Place>) -> Parsed<Statement> {
        let start = self.at;
        if self.eat(':') {
            let name = self.word();
            return match name.as_str() {
                "put" => {
                    self.blanks();
                    Ok(Statement::Put(self.value(menu)?))
                }
                "onerror" => self.onerror(menu),
                "serialize" => self.serialize(menu),
                _ => Err(self.bad_command(name, start)),
            };
        }
        let (place, verb) = self.path(menu)?;
        self.arguments(place, verb)
    }

    fn block(&mut self, menu: Option<Place>, name: &str) -> Parsed<Vec<Statement>> {
        self.blanks();
        let start = self.at;
        if self.word() != name || !self.eat('=') {
            self.at = start;
            return Err(self.syntax());
        }
        self.blanks();
        self.expect('{')?;
        let statements = self.statements(menu)?;
        self.expect('}')?;
        Ok(statements)
    }

    fn onerror(&mut self, menu: Option<Place>) -> Parsed<Statement> {
        self.blanks();
        let variable = self.word();
        if variable.is_empty() {
            return Err(self.syntax());
        }
        let body = self.block(menu, "in")?;
        let handler = self.block(menu, "do")?;
        Ok(Statement::OnError { variable, body, handler })
    }

    fn serialize(&mut self, menu: Option<Place>) -> Parsed<Statement> {
        let mut value = None;
        loop {
            self.blanks();
            if self.at_end_of_command() {
                return value.map(Statement::Serialize).ok_or_else(|| self.syntax());
            }
            let start = self.at;
            let name = self.word();
            self.expect('=')?;
            let given = self.value(menu)?;
            let word = |w: &str| given == Value::Word(w.into());
            match name.as_str() {
                "to" if word("json") => {}
                // The only option that is known, since 7.17.
                "options" if word("json.no-string-conversion") => {}
                "value" => value = Some(given),
                _ => return Err(self.expected_end(start)),
            }
        }
    }

    /// `/disk add`, `/disk/add`, or `add` in a menu.
    fn path(&mut self, menu: Option<Place>) -> Parsed<(Place, Verb)> {
        let root = self.eat('/');
        let mut trail = Trail::at(menu.filter(|_| !root));
        loop {
            self.blanks();
            let start = self.at;
            let word = self.path_word();
            if let Some(next) = trail.step(&word) {
                trail = next;
                self.eat('/');
                continue;
            }
            let verb = trail.place.and_then(|p| Some((p, verb_named(&word, p, self.version)?)));
            return match (verb, trail.place) {
                (Some(found), _) => Ok(found),
                (None, Some(_)) if word.is_empty() => Err(self.expected_end(start)),
                (None, None) if word.is_empty() => Err(self.syntax()),
                (None, _) => Err(self.bad_command(word, start)),
            };
        }
    }

    fn path_word(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '-') {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn arguments(&mut self, place: Place, verb: Verb) -> Parsed<Statement> {
        let mut call =
            Call { place, verb, named: Vec::new(), positional: Vec::new(), conditions: Vec::new() };
        let mut conditions = verb == Verb::Find;
        loop {
            self.blanks();
            if self.at_end_of_command() {
                return Ok(Statement::Call(call));
            }
            let start = self.at;
            let name = if self.peek().is_some_and(is_word) { self.word() } else { String::new() };
            if !name.is_empty() && self.eat('=') {
                let value = self.value(Some(place))?;
                if conditions {
                    call.conditions.push((name, value));
                } else if takes(place, verb, &name) {
                    call.named.push((name, value));
                } else {
                    return Err(self.expected_end(start));
                }
            } else if name == "where" && matches!(verb, Verb::Print | Verb::Find) {
                conditions = true;
            } else if conditions {
                // Terms are combined with and, also when it says so; nothing else is understood here.
                if name != "and" && !(name.is_empty() && self.eat('&') && self.eat('&')) {
                    return Err(self.expected_end(start));
                }
            } else {
                self.at = start;
                if verb == Verb::Add {
                    return Err(self.expected_end(start));
                }
                call.positional.push(self.value(Some(place))?);
            }
        }
    }

    fn value(&mut self, menu: Option<Place>) -> Parsed<Value> {
        match self.peek() {
            Some('"') => self.string(),
            Some('$') => {
                self.at += 1;
                let name = self.name();
                if name.is_empty() { Err(self.syntax()) } else { Ok(Value::Variable(name)) }
            }
            Some('[') => {
                self.at += 1;
                self.blanks();
                let statement = self.nested(|p| p.statement(menu))?;
                self.blanks();
                self.expect(']')?;
                Ok(Value::Result(Box::new(statement)))
            }
            // `*2A`, `/raid10/a.img`, `10G`.
            Some(c) if is_word(c) || c == '/' => {
                let start = self.at;
                while self.peek().is_some_and(|c| is_word(c) || matches!(c, '/' | ',' | ':')) {
                    self.at += 1;
                }
                Ok(Value::Word(self.chars[start..self.at].iter().collect()))
            }
            _ => Err(self.syntax()),
        }
    }

    fn name(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric()) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn string(&mut self) -> Parsed<Value> {
        self.expect('"')?;
        let mut pieces = Vec::new();
        let mut literal = String::new();
        loop {
            match self.peek() {
                None => return Err(self.syntax()),
                Some('"') => {
                    self.at += 1;
                    if !literal.is_empty() || pieces.is_empty() {
                        pieces.push(Piece::Literal(literal));
                    }
                    return Ok(Value::Text(pieces));
                }
                Some('\\') => {
                    let (c, used) =
                        unescape(&self.chars[self.at + 1..]).ok_or_else(|| self.syntax())?;
                    literal.push(c);
                    self.at += 1 + used;
                }
                Some('$') => {
                    self.at += 1;
                    let name = self.name();
                    if name.is_empty() {
                        return Err(self.syntax());
                    }
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Variable(name));
                }
                Some(c) => {
                    literal.push(c);
                    self.at += 1;
                }
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*' | '+' | '@' | '%')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::quote::quote;
    use super::*;

    fn parse(text: &str) -> Parsed<Vec<Statement>> {
        super::parse(text, "7.24".parse().unwrap())
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_wrapper_of_the_driver() {
        let text = r#":onerror e in={ /disk add type=file slot="a" file-path=/raid10/a.img file-size=10G; :put "S OK" } do={ :put "S ERR $e" }"#;
        let statements = parse(text).unwrap();
        let [Statement::OnError { variable, body, handler }] = statements.as_slice() else {
            panic!("{statements:?}")
        };
        assert_eq!((variable.as_str(), body.len(), handler.len()), ("e", 2, 1));
        let json = r#":put [:serialize to=json options=json.no-string-conversion value=[/disk/print detail as-value where slot="x"]]"#;
        assert!(matches!(parse(json).unwrap().as_slice(), [Statement::Put(Value::Result(_))]));
    }

    #[test]
    fn places_and_verbs() {
        for text in [
            "/disk print",
            "/disk/print",
            "/system/resource/print",
            "/system resource print",
            "/file/remove \"a/b.img\"",
            "/disk/btrfs/subvolume/add read-only=yes parent=Photos fs=BtrfsDisk name=Snapshots/Photos-1",
            "/disk btrfs subvolume remove [find where name=Photos-1]",
            "/disk/btrfs/filesystem print",
            "/file/copy test1.txt name=dir1/test1copy.txt",
            "/disk/copy src=a dst=raid10/b.img size=1M",
        ] {
            assert_eq!(parse(text).map(|s| s.len()), Ok(1), "{text}");
        }
        let find = parse(r#"/disk remove [find slot="x"]"#).unwrap();
        let [Statement::Call(call)] = find.as_slice() else { panic!("{find:?}") };
        assert!(
            matches!(&call.positional[..], [Value::Result(s)] if matches!(&**s, Statement::Call(c) if c.verb == Verb::Find && c.conditions.len() == 1))
        );
    }

    #[test]
    fn errors_have_the_words_that_were_seen() {
        assert_eq!(refused("/dsik print"), "bad command name dsik (line 1 column 2)");
        assert_eq!(refused("/disk add foo=1"), "expected end of command (line 1 column 11)");
        assert_eq!(refused(":put \"a"), "syntax error (line 1 column 8)");
        assert_eq!(refused(":foo"), "bad command name foo (line 1 column 1)");
        assert_eq!(refused("/disk/btrfs print"), "bad command name print (line 1 column 13)");
        let old = super::parse("/file/copy a name=b", "7.22".parse().unwrap()).unwrap_err();
        assert_eq!(old.to_string(), "bad command name copy (line 1 column 7)");
        assert!(parse(&"[".repeat(5000)).is_err());
        assert!(parse(&":put [".repeat(5000)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = parse(&text);
        }
        #[test]
        fn never_panics_on_near_misses(words in proptest::collection::vec(
            prop_oneof![Just("/disk"), Just("add"), Just("print"), Just(":onerror"), Just("e"), Just("in={"), Just("do={"),
                Just("}"), Just("["), Just("]"), Just("\""), Just("$"), Just("\\"), Just("="), Just("where"), Just(":put"),
                Just("slot"), Just(";"), Just("find"), Just("&&")], 0..20)) {
            let _ = parse(&words.join(" "));
            let _ = parse(&words.concat());
        }
        #[test]
        fn quoting_round_trip(text in any::<String>()) {
            let parsed = parse(&format!(":put {}", quote(&text))).unwrap();
            prop_assert_eq!(parsed, vec![Statement::Put(Value::Text(vec![Piece::Literal(text)]))]);
        }
    }
}
