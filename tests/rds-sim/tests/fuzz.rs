//! Arbitrary bytes for the simulator's own parsers: they never panic. `corpus/` holds what was once
//! interesting; each of its files goes to every parser.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use rds_sim::appliance::command::{Command, Reply};
use rds_sim::config::SshJson;
use rds_sim::console::parse::parse;
use rds_sim::console::run::{Console, paths, run};
use rds_sim::rest::request::{self, Parts};
use rds_sim::ros::error::Refusal;
use rds_sim::ros::item::{Item, Value};
use rds_sim::ros::query::Query;

const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
const PATHS: &[&str] = &[
    "/rest/disk",
    "/rest/disk/add",
    "/rest/disk/*2A",
    "/rest/disk/print",
    "/rest/disk/copy",
    "/rest/file/copy",
    "/rest/disk/btrfs/subvolume/add",
    "/rest/system/health",
    "/rest/x",
];

fn console(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(script) = parse(&text, "7.24".parse().unwrap()) else { return };
    let mut item = Item::default();
    item.word(".id", "*2A");
    item.text("slot", text.chars().take(300).collect::<String>());
    item.push("size", Value::Number(u64::MAX));
    let answers = [
        Ok(Reply::Items(vec![item.clone()])),
        Ok(Reply::One(item)),
        Ok(Reply::Added("*2A".into())),
        Err(Refusal::NoSuchItem),
    ];
    for answer in answers {
        for width in [0, 1, 7, 80] {
            let execute = |_: &Command| answer.clone();
            let json = SshJson::Typed;
            run(&Console { execute: &execute, json, width, context: true }, &script);
        }
    }
    paths(&script);
}

fn rest(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for method in METHODS {
        for path in PATHS {
            let content_type = Some("application/json");
            let _ = request::parse(Parts { method, path, query: &text, content_type, body: bytes });
        }
        let path = format!("/rest/{text}");
        let _ =
            request::parse(Parts { method, path: &path, query: "", content_type: None, body: b"" });
    }
    if let Some(query) = Query::parse(text.split(',')) {
        let _ = query.matches(&Item::default());
    }
}

#[test]
fn the_corpus() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(files.len() > 10);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        console(&bytes);
        rest(&bytes);
        // Cut anywhere, as well.
        for end in (0..bytes.len()).step_by(7) {
            console(&bytes[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        console(&bytes);
        rest(&bytes);
    }
    #[test]
    fn nearly_right(words in proptest::collection::vec(prop_oneof![
        Just("/disk"), Just("/disk/btrfs/subvolume"), Just("add"), Just("print"), Just("detail"), Just("as-value"),
        Just("copy"), Just("monitor-traffic"), Just("once"), Just("[find"), Just("]"), Just("where"),
        Just("slot=\"x\""), Just("name=a/b"), Just("numbers=*2A"), Just("{"), Just("}"), Just(";"), Just("\n"),
        Just(":put"), Just(":serialize"), Just("to=json"), Just("value=["), Just("\""), Just("$e")], 0..16)) {
        console(words.join(" ").as_bytes());
    }
}
