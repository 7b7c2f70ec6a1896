//! Strings of the console (manual, "Scripting", constant escape sequences).

/// A string literal that reads back as `text`.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => out.push_str(&format!("\\{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What follows a backslash: the character meant and how many characters were used.
pub fn unescape(after: &[char]) -> Option<(char, usize)> {
    let simple = match after.first()? {
        c @ ('"' | '\\' | '$' | '?') => *c,
        '_' => ' ',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'v' => '\u{b}',
        _ => {
            let hex: String = after.get(..2)?.iter().collect();
            let upper = hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            let code = u8::from_str_radix(&hex, 16).ok().filter(|b| upper && b.is_ascii())?;
            return Some((char::from(code), 2));
        }
    };
    Some((simple, 1))
}
