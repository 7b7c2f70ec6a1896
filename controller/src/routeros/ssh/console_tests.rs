#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use rds_sim::console::syntax::{Call, Piece, Place, Statement, SyntaxError, Value, Verb};

use super::*;
use crate::routeros::wire::Switch;
use crate::rules::owner::{Attachment, ClassHash, NodeKey, Notes, OwnerTag, Sharing, Stage};
use rds_csi_proto::ids::{HostNqn, VolumeId};

const MARK: &str = "rds-1";

fn parse(line: &str) -> Result<Vec<Statement>, SyntaxError> {
    rds_sim::console::parse::parse(line, "7.24".parse().unwrap())
}

fn line(request: &Request) -> String {
    encode(request, &Sentinel(MARK.into()))
}

fn text(value: &str) -> Value {
    Value::Text(vec![Piece::Literal(value.into())])
}

fn put(word: &str) -> Statement {
    Statement::Put(text(&format!("{MARK} {word}")))
}

/// What stands inside the wrapper, which must be exactly as it should be.
fn inside(line: &str) -> Vec<Statement> {
    let mut statements = parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    assert_eq!(statements.len(), 1, "{line}");
    let Some(Statement::OnError { variable, mut body, handler }) = statements.pop() else {
        panic!("{line}")
    };
    let error = vec![Piece::Literal(format!("{MARK} ERR ")), Piece::Variable("e".into())];
    assert_eq!((variable.as_str(), handler), ("e", vec![Statement::Put(Value::Text(error))]));
    assert_eq!(body.pop(), Some(put("OK")));
    body
}

fn call(statement: &Statement) -> &Call {
    match statement {
        Statement::Call(call) => call,
        other => panic!("{other:?}"),
    }
}

fn found(call: &Call) -> &[(String, Value)] {
    let [Value::Result(inner)] = call.positional.as_slice() else { panic!("{call:?}") };
    &self::call(inner).conditions
}

#[test]
fn lines_look_as_documented() {
    let id: VolumeId = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap();
    let filter = Some(Property::Slot((&id).into()));
    let print = Request::Print { menu: Menu::Disk, filter, proplist: &[".id"] };
    let json = format!(
        ":put [:serialize to=json options=json.no-string-conversion value=[/disk/print detail \
         as-value where slot=\"{id}\"]]"
    );
    assert_eq!(
        line(&print),
        format!(":onerror e in={{ {json}; :put \"rds-1 OK\" }} do={{ :put \"rds-1 ERR $e\" }}")
    );
    let set = Request::Set {
        menu: Menu::Disk,
        target: Target::Slot((&id).into()),
        properties: vec![Property::Export(Switch::On), Property::FileSize(1 << 40)],
    };
    assert_eq!(
        line(&set),
        format!(
            ":onerror e in={{ /disk/set [/disk/find where slot=\"{id}\"] nvme-tcp-export=\"yes\" \
             file-size=\"1099511627776\"; :put \"rds-1 DID\"; {json}; :put \"rds-1 OK\" }} \
             do={{ :put \"rds-1 ERR $e\" }}"
        )
    );
    let discard = Request::Discard { file: "/raid10/v/a.img".parse().unwrap(), slot: (&id).into() };
    assert_eq!(
        line(&discard),
        format!(
            ":onerror e in={{ /file/remove [/file/find where name=\"raid10/v/a.img\"]; \
             :put \"rds-1 DID\"; /disk/remove [/disk/find where slot=\"{id}\"]; \
             :put \"rds-1 OK\" }} do={{ :put \"rds-1 ERR $e\" }}"
        )
    );
    let version = Request::Print { menu: Menu::Resource, filter: None, proplist: &["version"] };
    assert!(line(&version).contains("value=[/system/resource/print as-value]]"));
}

#[test]
fn what_could_end_a_string_is_escaped() {
    assert_eq!(
        quote("a \"b\" \\ $c [d]; {e} ?\n\0"),
        "\"a \\22b\\22 \\5C \\24c \\5Bd\\5D\\3B \\7Be\\7D \\3F\\0A\\00\""
    );
    // Not ASCII: byte by byte, as the console's strings are bytes.
    assert_eq!(quote("é"), "\"\\C3\\A9\"");
    assert_ne!(Sentinel::random(), Sentinel::random());
}

fn property() -> impl Strategy<Value = Property> {
    let id = any::<u128>().prop_map(|n| VolumeId::from_request_name(&n.to_string()));
    let path = "/[a-z0-9]{1,8}(/[A-Za-z0-9._-]{1,20}[a-z0-9]){0,3}"
        .prop_filter_map("a path", |p| p.parse().ok());
    let node = "[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?".prop_filter_map("a node", |n| n.parse().ok());
    let tag = ("[A-Za-z0-9._-]{1,36}", id.clone(), node, any::<bool>(), any::<u64>()).prop_map(
        |(cluster, volume, node, attached, since)| OwnerTag {
            cluster: cluster.parse().unwrap(),
            volume,
            class: Some(ClassHash::of([("a", "b")].into_iter())),
            notes: Notes::default(),
            stage: match attached {
                false => Stage::Ready,
                true => {
                    let (node, host) = (NodeKey::of(&node), HostNqn::random());
                    Stage::Attached(Attachment::new(node, host, Sharing::Exclusive, since))
                }
            },
        },
    );
    prop_oneof![
        id.prop_map(|id| Property::Slot(id.into())),
        path.prop_map(Property::FilePath),
        any::<u64>().prop_map(Property::FileSize),
        any::<u16>().prop_map(Property::Port),
        any::<bool>().prop_map(|on| Property::Export(if on { Switch::On } else { Switch::Off })),
        any::<u8>().prop_map(|_| Property::AllowHost(HostNqn::random())),
        Just(Property::TypeFile),
        Just(Property::NoMountFilesystem),
        tag.prop_map(Property::Comment),
    ]
}

/// Whether the simulator's console reads exactly these names and values.
fn assert_same(named: &[(String, Value)], properties: &[Property]) {
    let want: Vec<_> = properties.iter().map(|p| (p.name().to_owned(), text(&p.value()))).collect();
    assert_eq!(named, want);
}

proptest! {
    #[test]
    fn what_is_written_is_what_the_console_reads(
        properties in proptest::collection::vec(property(), 1..8),
        name in any::<u64>(),
    ) {
        let volume = VolumeId::from_request_name(&name.to_string());
        let slot = [("slot".to_owned(), text(volume.as_str()))];
        let add = Request::Add { menu: Menu::Disk, properties: properties.clone() };
        let body = inside(&line(&add));
        prop_assert_eq!(body.len(), 2);
        prop_assert_eq!(&body[1], &put("DID"));
        let added = call(&body[0]);
        prop_assert_eq!((added.verb, added.positional.len()), (Verb::Add, 0));
        assert_same(&added.named, &properties);

        let target = Target::Slot((&volume).into());
        let set = Request::Set { menu: Menu::Disk, target: target.clone(), properties: properties.clone() };
        let body = inside(&line(&set));
        prop_assert_eq!(body.len(), 3);
        let changed = call(&body[0]);
        prop_assert_eq!(changed.verb, Verb::Set);
        prop_assert_eq!(found(changed), &slot);
        assert_same(&changed.named, &properties);

        let body = inside(&line(&Request::Remove { menu: Menu::Disk, target }));
        prop_assert_eq!((body.len(), call(&body[0]).verb), (2, Verb::Remove));
        prop_assert_eq!(found(call(&body[0])), &slot);

        let filter = Some(Property::Slot(volume.into()));
        let body = inside(&line(&Request::Print { menu: Menu::Disk, filter, proplist: &[] }));
        let [Statement::Put(Value::Result(put))] = body.as_slice() else { panic!("{body:?}") };
        let Statement::Serialize(Value::Result(print)) = &**put else { panic!("{put:?}") };
        let print = call(print);
        prop_assert_eq!((print.place, print.verb), (
            Place::Menu(rds_sim::appliance::command::Menu::Disk), Verb::Print));
        prop_assert_eq!(print.conditions.as_slice(), &slot);
    }

    /// Even of texts that no type lets through.
    #[test]
    fn nothing_gets_out_of_a_string(value in "[\\x00-\\x7f]{0,60}") {
        let read = parse(&format!(":put {}", quote(&value))).unwrap();
        prop_assert_eq!(read, vec![Statement::Put(text(&value))]);
    }

    #[test]
    fn no_quoted_text_has_a_byte_of_syntax_in_it(value in any::<String>()) {
        let quoted = quote(&value);
        let inner = &quoted[1..quoted.len() - 1];
        prop_assert!(inner.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
        let syntax = inner.contains(['"', '$', '[', ']', ';', '{', '}', '(', ')', '#', '`', '?']);
        prop_assert!(!syntax, "{}", quoted);
    }
}
