//! Quoting for the POSIX shell that reads the job in the guest.

/// One word, whatever is in it: single quotes protect everything but the single quote.
pub(crate) fn sh(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A command line of several words.
pub(crate) fn sh_words<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(sh).collect::<Vec<_>>().join(" ")
}

/// A value inside a QEMU option list, where a comma separates and two are one.
pub(crate) fn qemu(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let words = ["plain", "", "two words", "it's", "$HOME `id` \\ \"x\"", "new\nline", "*"];
        let script = format!("printf '%s\\0' {}", sh_words(words));
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        let read: Vec<_> = output.stdout.split(|&b| b == 0).collect();
        let expected: Vec<_> = words.iter().map(|w| w.as_bytes()).chain([&b""[..]]).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn commas_are_doubled_for_qemu() {
        assert_eq!(qemu("/a,b"), "/a,,b");
    }
}
