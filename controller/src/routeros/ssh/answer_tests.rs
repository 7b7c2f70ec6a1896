#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::routeros::disk::DiskItem;

fn mark() -> Sentinel {
    Sentinel::random()
}

fn read_with(output: &str, expects_rows: bool) -> Verdict {
    let mark = mark();
    let output = output.replace("@", mark.as_str());
    read(output.as_bytes(), &mark, expects_rows, &["slot", "size", "flag", "x"])
}

#[test]
fn data_in_both_spellings() {
    let row = |verdict| match verdict {
        Verdict::Rows(mut rows) if rows.len() == 1 => rows.remove(0),
        other => panic!("{other:?}"),
    };
    let typed = row(read_with(
        "[{\"slot\":\"a\",\"size\":1099511627776,\"flag\":true,\"other\":[1]}]\r\n@ OK\r\n",
        true,
    ));
    let strings = row(read_with(
        "[{\"slot\":\"a\",\"size\":\"1099511627776\",\"flag\":\"true\"}]\r\n@ OK\r\n",
        true,
    ));
    assert_eq!(typed, strings);
    assert_eq!(typed["size"], "1099511627776");
    // One item, as `print as-value` of a menu with a single one.
    assert_eq!(row(read_with("{\"slot\":\"a\"}\r\n@ OK\r\n", true))["slot"], "a");
    // `nil` is not there, and an item without a slot cannot be read.
    let empty = row(read_with("[{\"slot\":null}]\n@ OK", true));
    assert!(empty.is_empty() && DiskItem::read(&empty).is_err());
}

#[test]
fn absence_is_only_an_empty_list() {
    assert_eq!(read_with("[]\r\n@ OK\r\n", true), Verdict::Rows(vec![]));
    assert_eq!(read_with("@ DID\r\n@ OK\r\n", false), Verdict::Rows(vec![]));
    for output in [
        "",
        "[]",
        "[]\r\n",
        "@ OK",
        "@ OK\r\n[]",
        "null\r\n@ OK",
        "[1]\r\n@ OK",
        "[{]\r\n@ OK",
        "[{\"slot\":[\"a\",\"b\"]}]\r\n@ OK",
        "[{\"size\":1.5}]\r\n@ OK",
        "[{\"size\":1e12}]\r\n@ OK",
        "[]\r\n[]\r\n@ OK",
        "[]\r\nrds-0123 OK",
        "<html>\r\n@ OK",
    ] {
        assert!(matches!(read_with(output, true), Verdict::Nonsense(_)), "{output:?}");
    }
}

#[test]
fn errors_with_and_without_their_place() {
    for place in ["", " (/disk/add; line 1)"] {
        let refused = |text: &str| read_with(&format!("@ ERR {text}{place}\r\n"), false);
        assert_eq!(refused("no such item"), Verdict::NoSuchItem);
        assert_eq!(
            refused("failure: already have such entry"),
            Verdict::AlreadyExists("failure: already have such entry".into())
        );
        assert!(matches!(
            refused("invalid value for argument file-size"),
            Verdict::InvalidValue(_)
        ));
        assert!(matches!(refused("not enough permissions (9)"), Verdict::PolicyMissing(_)));
        assert_eq!(
            refused("failure: not enough space"),
            Verdict::Refused("failure: not enough space".into())
        );
        assert_eq!(refused("two\r\nlines"), Verdict::Refused("two\r\nlines".into()));
    }
    // The console did not understand the line, so it did nothing of it.
    for text in [
        "expected end of command (line 1 column 11)",
        "syntax error (line 1 column 8)",
        "bad command name dsik (line 1 column 2)",
    ] {
        assert_eq!(read_with(&format!("{text}\r\n"), false), Verdict::InvalidValue(text.into()));
    }
    // What the item says cannot pass for an end or an error of the line.
    let comment = "[{\"slot\":\"rds-00 ERR no such item\"}]\r\n@ OK\r\n";
    assert!(matches!(read_with(comment, true), Verdict::Rows(_)));
}

#[test]
fn an_error_after_the_change_leaves_it_open() {
    let verdict = read_with("@ DID\r\n@ ERR no such item\r\n", false);
    assert!(matches!(verdict, Verdict::Nonsense(_)), "{verdict:?}");
}

proptest! {
    #[test]
    fn nothing_panics(output in proptest::collection::vec(any::<u8>(), 0..80), rows in any::<bool>()) {
        // Whatever it is, without the mark it is never an answer.
        let verdict = read(&output, &mark(), rows, &["slot"]);
        prop_assert!(!matches!(verdict, Verdict::Rows(_)));
    }
    #[test]
    fn a_cut_answer_is_no_answer(rows in 0usize..4, cut in 1usize..200) {
        let mark = mark();
        let list = vec![serde_json::json!({"slot": "a", "size": 5}); rows];
        let whole = format!("{}\r\n{} OK", serde_json::Value::from(list), mark.as_str());
        let cut = &whole.as_bytes()[..whole.len().saturating_sub(cut)];
        prop_assert!(!matches!(read(cut, &mark, true, &["slot"]), Verdict::Rows(_)));
    }
}
