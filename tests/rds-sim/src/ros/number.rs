//! Numbers as RouterOS reads and prints them.
//!
//! Reading (manual, "REST API", JSON format): decimal in strings; literals may also be octal
//! (leading `0`) or hexadecimal (`0x`); an exponent is refused. Sizes take binary suffixes.

/// Where a number came from: the manual says that strings are decimal and literals are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Literal,
    Text,
}

/// Reads a plain number.
pub fn parse_number(text: &str, origin: Origin) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    if origin == Origin::Literal {
        if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            let digits = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
            return digits.then(|| u64::from_str_radix(hex, 16).ok()).flatten();
        }
        if text.len() > 1 && text.starts_with('0') {
            let digits = text.bytes().all(|b| (b'0'..=b'7').contains(&b));
            return digits.then(|| u64::from_str_radix(text, 8).ok()).flatten();
        }
    }
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Reads a size: plain bytes, or with a binary suffix `k`, `M`, `G`, `T`, each also as `KiB` and so on.
pub fn parse_size(text: &str, origin: Origin) -> Option<u64> {
    if let Some(n) = parse_number(text, origin) {
        return Some(n);
    }
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, suffix) = text.split_at(split);
    let shift = match suffix {
        "k" | "K" | "KiB" | "kiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        "P" | "PiB" => 50,
        _ => return None,
    };
    parse_number(digits, Origin::Text)?.checked_mul(1 << shift)
}

/// `1099511627776` as `1024.0GiB`: the rounding for people that must never be parsed back.
/// The sample shows GiB even for a full TiB, so GiB is the largest unit.
pub fn human_size(bytes: u64) -> String {
    let (unit, shift) = match bytes {
        0..=1023 => return bytes.to_string(),
        1024..=1_048_575 => ("KiB", 10),
        1_048_576..=1_073_741_823 => ("MiB", 20),
        _ => ("GiB", 30),
    };
    let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

/// `1099511627776` as `1 099 511 627 776`.
pub fn grouped(bytes: u64) -> String {
    let digits = bytes.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// Rewrites number literals of a JSON text into strings that hold their decimal value.
///
/// RouterOS takes octal and hexadecimal literals, which no JSON parser does, and refuses
/// exponents, which every JSON parser takes; so they are dealt with before the parser sees them.
///
/// # Errors
/// The literal that RouterOS refuses.
pub fn normalise_literals(json: &str) -> Result<String, String> {
    let mut out = String::with_capacity(json.len() + 16);
    let mut chars = json.char_indices().peekable();
    let mut in_string = false;
    while let Some((start, c)) = chars.next() {
        if in_string {
            out.push(c);
            match c {
                '\\' => out.extend(chars.next().map(|(_, e)| e)),
                '"' => in_string = false,
                _ => {}
            }
        } else if c == '"' {
            in_string = true;
            out.push(c);
        } else if c.is_ascii_digit() || c == '-' || c == '+' {
            let mut end = start + c.len_utf8();
            while let Some(&(i, n)) = chars.peek() {
                if !(n.is_ascii_alphanumeric() || matches!(n, '.' | '+' | '-')) {
                    break;
                }
                end = i + n.len_utf8();
                chars.next();
            }
            let literal = &json[start..end];
            let number =
                parse_number(literal, Origin::Literal).ok_or_else(|| literal.to_owned())?;
            out.push_str(&format!("\"{number}\""));
        } else {
            out.push(c);
        }
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_may_be_octal_or_hexadecimal_and_never_have_an_exponent() {
        assert_eq!(parse_number("010", Origin::Literal), Some(8));
        assert_eq!(parse_number("010", Origin::Text), Some(10));
        assert_eq!(parse_number("0x1F", Origin::Literal), Some(31));
        assert_eq!(parse_number("0x1F", Origin::Text), None);
        assert_eq!(parse_number("0", Origin::Literal), Some(0));
        for bad in ["1e9", "1E9", "1.5", "-1", "+1", "08", "0x", " 1", ""] {
            assert_eq!(parse_number(bad, Origin::Literal), None, "{bad}");
        }
    }

    #[test]
    fn suffixes_are_binary() {
        assert_eq!(parse_size("10G", Origin::Text), Some(10 << 30));
        assert_eq!(parse_size("1T", Origin::Text), Some(1 << 40));
        assert_eq!(parse_size("1536MiB", Origin::Text), Some(1536 << 20));
        assert_eq!(parse_size("99999999999999999999T", Origin::Text), None);
        assert_eq!(parse_size("1P", Origin::Text), Some(1 << 50));
        assert_eq!(parse_size("16777216T", Origin::Text), None);
        assert_eq!(parse_size("G", Origin::Text), None);
    }

    #[test]
    fn prints_like_the_sample() {
        assert_eq!(human_size(1 << 40), "1024.0GiB");
        assert_eq!(grouped(1_099_511_627_776), "1 099 511 627 776");
        assert_eq!(grouped(12), "12");
    }

    #[test]
    fn literals_in_json() {
        assert_eq!(
            normalise_literals(r#"{"a":010,"b":"1e5 -3"}"#).unwrap(),
            r#"{"a":"8","b":"1e5 -3"}"#
        );
        assert_eq!(normalise_literals(r#"{"a":1e9}"#), Err("1e9".into()));
        assert_eq!(normalise_literals(r#"["\"5", 5]"#).unwrap(), r#"["\"5", "5"]"#);
    }

    proptest! {
        #[test]
        fn decimal_round_trip(n: u64) {
            prop_assert_eq!(parse_size(&n.to_string(), Origin::Text), Some(n));
        }
        #[test]
        fn never_panics(s in ".*") {
            let _ = parse_size(&s, Origin::Literal);
            let _ = normalise_literals(&s);
        }
        #[test]
        fn valid_json_strings_survive(s in ".*") {
            let json = serde_json::to_string(&s).unwrap();
            prop_assert_eq!(normalise_literals(&json).unwrap(), json);
        }
        #[test]
        fn human_never_panics(n: u64) {
            let _ = human_size(n);
            prop_assert_eq!(grouped(n).replace(' ', ""), n.to_string());
        }
    }
}
