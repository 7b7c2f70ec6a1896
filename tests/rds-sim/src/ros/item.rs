//! An item as it is printed: names and typed values, in the order that RouterOS prints them.

use serde_json::{Map, Value as Json};

/// A value with its console type: REST turns all of them into strings, `:serialize` does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    /// A word of a fixed set or an id; printed without quotes.
    Word(String),
    Flag(bool),
    Number(u64),
    /// A number that the console prints for people (`1024.0GiB`).
    Size(u64),
}

impl Value {
    /// As REST sends it and as filters compare it.
    pub fn rest(&self) -> String {
        match self {
            Value::Text(s) | Value::Word(s) => s.clone(),
            Value::Flag(b) => b.to_string(),
            Value::Number(n) | Value::Size(n) => n.to_string(),
        }
    }

    /// As `:serialize to=json options=json.no-string-conversion` writes it.
    pub fn typed(&self) -> Json {
        match self {
            Value::Text(s) | Value::Word(s) => Json::String(s.clone()),
            Value::Flag(b) => Json::Bool(*b),
            Value::Number(n) | Value::Size(n) => Json::from(*n),
        }
    }
}

/// One printed item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Item(pub Vec<(&'static str, Value)>);

impl Item {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Whether one of the ids or names means this item.
    pub fn is_any(&self, key: &str, targets: &[String]) -> bool {
        let is = |name| self.get(name).is_some_and(|v| targets.contains(&v.rest()));
        is(".id") || is(key)
    }

    pub fn push(&mut self, name: &'static str, value: Value) {
        self.0.push((name, value));
    }

    pub fn text(&mut self, name: &'static str, value: impl Into<String>) {
        self.push(name, Value::Text(value.into()));
    }

    pub fn word(&mut self, name: &'static str, value: impl Into<String>) {
        self.push(name, Value::Word(value.into()));
    }

    /// Keeps only the named properties; an unknown name is silently absent, as with `.proplist`.
    pub fn project(mut self, proplist: &[String]) -> Item {
        if !proplist.is_empty() {
            self.0.retain(|(n, _)| proplist.iter().any(|p| p == n));
        }
        self
    }

    /// The REST object: every value a string. As [`Item::write_rest`] writes it.
    pub fn rest(&self) -> Json {
        Json::Object(
            self.0
                .iter()
                .map(|(n, v)| ((*n).to_owned(), Json::String(v.rest())))
                .collect::<Map<_, _>>(),
        )
    }

    /// The same as text, for thousands of items: a tree of them takes many times as long.
    pub fn write_rest(&self, out: &mut String) {
        out.push('{');
        for (n, (name, value)) in self.0.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            // Names are ours: nothing in them needs an escape.
            out.push('"');
            out.push_str(name);
            out.push_str("\":");
            match value {
                Value::Text(s) | Value::Word(s) => write_string(s, out),
                Value::Flag(true) => out.push_str("\"true\""),
                Value::Flag(false) => out.push_str("\"false\""),
                Value::Number(_) | Value::Size(_) => write_string(&value.rest(), out),
            }
        }
        out.push('}');
    }

    /// The object of `:serialize`.
    pub fn typed(&self) -> Json {
        Json::Object(
            self.0.iter().map(|(n, v)| ((*n).to_owned(), v.typed())).collect::<Map<_, _>>(),
        )
    }
}

fn write_string(text: &str, out: &mut String) {
    if text.bytes().any(|b| b < b' ' || b == b'"' || b == b'\\') {
        out.push_str(&Json::from(text).to_string());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_text_is_the_object(text: String, word in "[ -~]*", number: u64, flag: bool) {
            let mut item = Item::default();
            item.text("a", text);
            item.word("b-c", word);
            item.push("d", Value::Number(number));
            item.push("e", Value::Flag(flag));
            let mut out = String::new();
            item.write_rest(&mut out);
            prop_assert_eq!(serde_json::from_str::<Json>(&out).unwrap(), item.rest());
        }
    }
}
