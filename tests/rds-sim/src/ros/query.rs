//! Filters: the words of `.query`, of the GET query string and of `where`.
//!
//! Manual, "API", Queries: words go onto a stack; `#` words combine what is on it; what is left
//! at the end is combined with and.

use super::item::Item;

/// One word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Has(String),
    Lacks(String),
    Equal(String, String),
    Less(String, String),
    Greater(String, String),
    Operations(Vec<Operation>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Not,
    And,
    Or,
    /// A duplicate of the topmost value (`.`).
    Copy,
}

/// A whole filter; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(pub Vec<Word>);

impl Query {
    /// The filter of a GET query string or of `where a=b c=d`.
    pub fn equal(pairs: impl IntoIterator<Item = (String, String)>) -> Query {
        Query(pairs.into_iter().map(|(n, v)| Word::Equal(n, v)).collect())
    }

    /// Reads the words of `.query`; `None` for what RouterOS would call a bad query.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<Query> {
        words.into_iter().map(parse_word).collect::<Option<Vec<_>>>().map(Query)
    }

    /// The value that one property must have, where the query is that and other equalities.
    pub fn only(&self, property: &str) -> Option<&str> {
        let simple = self.0.iter().all(|w| matches!(w, Word::Equal(..)));
        let mut words = self.0.iter().filter(|_| simple);
        words.find_map(|w| match w {
            Word::Equal(name, value) if name == property => Some(value.as_str()),
            _ => None,
        })
    }

    pub fn matches(&self, item: &Item) -> bool {
        let mut stack = Vec::new();
        for word in &self.0 {
            match word {
                Word::Has(n) => stack.push(item.get(n).is_some()),
                Word::Lacks(n) => stack.push(item.get(n).is_none()),
                Word::Equal(n, v) => stack.push(item.get(n).is_some_and(|have| have.rest() == *v)),
                Word::Less(n, v) => {
                    stack.push(compare(item, n, v) == Some(std::cmp::Ordering::Less))
                }
                Word::Greater(n, v) => {
                    stack.push(compare(item, n, v) == Some(std::cmp::Ordering::Greater))
                }
                Word::Operations(ops) => {
                    if ops.iter().any(|op| apply(*op, &mut stack).is_none()) {
                        return false;
                    }
                }
            }
        }
        stack.into_iter().all(|b| b)
    }
}

fn parse_word(word: &str) -> Option<Word> {
    let word = word.strip_prefix('?').unwrap_or(word);
    if let Some(ops) = word.strip_prefix('#') {
        let ops = ops.chars().map(|c| match c {
            '!' => Some(Operation::Not),
            '&' => Some(Operation::And),
            '|' => Some(Operation::Or),
            '.' => Some(Operation::Copy),
            _ => None,
        });
        return ops.collect::<Option<Vec<_>>>().map(Word::Operations);
    }
    if let Some(name) = word.strip_prefix('-') {
        return (!name.is_empty()).then(|| Word::Lacks(name.to_owned()));
    }
    let (mark, rest) = match word.chars().next()? {
        c @ ('<' | '>') => (c, &word[1..]),
        _ => ('=', word.strip_prefix('=').unwrap_or(word)),
    };
    match (rest.split_once('='), mark) {
        (Some(("", _)), _) => None,
        (Some((name, value)), '<') => Some(Word::Less(name.to_owned(), value.to_owned())),
        (Some((name, value)), '>') => Some(Word::Greater(name.to_owned(), value.to_owned())),
        (Some((name, value)), _) => Some(Word::Equal(name.to_owned(), value.to_owned())),
        (None, '=') if !rest.is_empty() => Some(Word::Has(rest.to_owned())),
        (None, _) => None,
    }
}

fn compare(item: &Item, name: &str, value: &str) -> Option<std::cmp::Ordering> {
    let have = item.get(name)?.rest();
    match (have.parse::<u64>(), value.parse::<u64>()) {
        (Ok(a), Ok(b)) => Some(a.cmp(&b)),
        _ => Some(have.as_str().cmp(value)),
    }
}

fn apply(op: Operation, stack: &mut Vec<bool>) -> Option<()> {
    let top = stack.pop()?;
    match op {
        Operation::Not => stack.push(!top),
        Operation::Copy => stack.extend([top, top]),
        Operation::And => {
            let other = stack.pop()?;
            stack.push(top && other);
        }
        Operation::Or => {
            let other = stack.pop()?;
            stack.push(top || other);
        }
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item() -> Item {
        let mut item = Item::default();
        item.text("slot", "vm-1");
        item.word("type", "file");
        item.push("size", super::super::item::Value::Number(20));
        item
    }

    fn matches(words: &[&str]) -> bool {
        Query::parse(words.iter().copied()).unwrap().matches(&item())
    }

    #[test]
    fn exact_and_combined() {
        assert!(matches(&[]));
        assert!(matches(&["slot=vm-1", "type=file"]));
        assert!(!matches(&["slot=vm"]), "never a substring");
        assert!(matches(&["slot=vm-2", "type=file", "#|"]));
        assert!(matches(&["slot=vm-2", "#!"]));
        assert!(matches(&["comment", "#!"]));
        assert!(matches(&["-comment"]));
        assert!(matches(&[">size=3"]), "numbers compare as numbers");
        assert!(!matches(&["#|"]), "an operation without operands matches nothing");
    }

    proptest! {
        #[test]
        fn never_panics(words in proptest::collection::vec(".{0,12}", 0..6)) {
            if let Some(q) = Query::parse(words.iter().map(String::as_str)) {
                let _ = q.matches(&item());
            }
        }
    }
}
