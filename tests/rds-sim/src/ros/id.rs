//! Item ids: `*` and upper-case hexadecimal, as in `*2A`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The internal number of an item. Never reused within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemId(pub u32);

impl ItemId {
    /// Reads `*2A`; anything else (also `%2A2A`) is no id.
    pub fn parse(text: &str) -> Option<ItemId> {
        let hex = text.strip_prefix('*')?;
        if hex.is_empty() || hex.len() > 8 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u32::from_str_radix(hex, 16).ok().map(ItemId)
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "*{:X}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_star_and_hex_is_an_id() {
        assert_eq!(ItemId::parse("*2A"), Some(ItemId(42)));
        assert_eq!(ItemId::parse("*2a"), Some(ItemId(42)));
        for bad in ["", "*", "2A", "%2A2A", "*+2", "*2G", "*123456789"] {
            assert_eq!(ItemId::parse(bad), None, "{bad}");
        }
        assert_eq!(ItemId(42).to_string(), "*2A");
    }
}
