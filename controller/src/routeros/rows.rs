//! JSON as rows, read one by one: 10,000 disks are some MB of text, and would be many times
//! that as a tree of values first.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess};
use serde::de::{Error, Visitor};

use super::wire::Row;

/// What a row may hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule<'a> {
    /// Texts only, as REST answers.
    Texts,
    /// Of these properties numbers and flags, too, as the console writes them; the others
    /// are passed over.
    Only(&'a [&'a str]),
}

/// A list of objects; one object stands for a list of one.
pub(super) fn parse(json: &[u8], rule: Rule<'_>) -> Result<Vec<Row>, String> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let rows = Rows(rule).deserialize(&mut reader).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(rows)
}

struct Rows<'a>(Rule<'a>);

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = Vec<Row>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Vec<Row>, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = Vec<Row>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects, or an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Row>, A::Error> {
        let mut rows = Vec::new();
        while let Some(row) = list.next_element_seed(OneRow(self.0))? {
            rows.push(row);
        }
        Ok(rows)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Vec<Row>, A::Error> {
        Ok(vec![OneRow(self.0).visit_map(object)?])
    }
}

struct OneRow<'a>(Rule<'a>);

impl<'de> DeserializeSeed<'de> for OneRow<'_> {
    type Value = Row;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Row, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneRow<'_> {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Row, A::Error> {
        let mut row = Row::new();
        while let Some(key) = object.next_key::<String>()? {
            match self.0 {
                Rule::Texts => {
                    let text = object
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("{key} is no text: {e}")))?;
                    row.insert(key, text);
                }
                Rule::Only(wanted) if wanted.contains(&key.as_str()) => {
                    let Single(text) = object
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("{key} is no single value: {e}")))?;
                    // `nil`: the console's word for a value that is not there.
                    text.map(|text| row.insert(key, text));
                }
                Rule::Only(_) => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(row)
    }
}

/// A text, a flag or a whole number, as text. A number with a fraction or an exponent has
/// lost digits.
struct Single(Option<String>);

impl<'de> Deserialize<'de> for Single {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Single;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a flag or a whole number")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Single, E> {
                Ok(Single(Some(text.to_owned())))
            }
            fn visit_bool<E: Error>(self, flag: bool) -> Result<Single, E> {
                Ok(Single(Some(flag.to_string())))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Single, E> {
                Ok(Single(Some(number.to_string())))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Single, E> {
                Ok(Single(Some(number.to_string())))
            }
            fn visit_unit<E: Error>(self) -> Result<Single, E> {
                Ok(Single(None))
            }
        }
        reader.deserialize_any(Any)
    }
}
