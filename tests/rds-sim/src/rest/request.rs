//! From an HTTP request to a command: methods, paths, query strings, JSON bodies.

use serde_json::{Map, Value};

use super::answer::Shape;
use crate::appliance::command::{Command, Menu, Property};
use crate::ros::error::Refusal;
use crate::ros::id::ItemId;
use crate::ros::number::{Origin, normalise_literals};
use crate::ros::query::Query;

/// Why no command came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    NotFound,
    MethodNotAllowed,
    UnsupportedMediaType,
    BadJson(String),
    Refused(Refusal),
}

impl From<Refusal> for Malformed {
    fn from(r: Refusal) -> Self {
        Malformed::Refused(r)
    }
}

/// An HTTP request, as far as it matters.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    pub method: &'a str,
    /// As sent: `%2A` is not `*` here.
    pub path: &'a str,
    pub query: &'a str,
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

/// Reads a request; [`Shape`] says how its answer looks.
pub fn parse(parts: Parts<'_>) -> Result<(Command, Shape), Malformed> {
    let rest = parts.path.strip_prefix("/rest/").ok_or(Malformed::NotFound)?;
    let mut segments: Vec<&str> = rest.split('/').filter(|s| !s.is_empty()).collect();
    if segments.first() == Some(&"system") && segments.get(1) != Some(&"health") {
        return system(parts, &segments);
    }
    let (menu, words) = match segments.as_slice() {
        ["disk", "btrfs", "filesystem", ..] => (Menu::BtrfsFilesystem, 3),
        ["disk", "btrfs", "subvolume", ..] => (Menu::BtrfsSubvolume, 3),
        ["disk", ..] => (Menu::Disk, 1),
        ["file", ..] => (Menu::File, 1),
        ["system", "health", ..] => (Menu::Health, 2),
        _ => return Err(Malformed::NotFound),
    };
    segments.drain(..words);
    // File names have slashes.
    let target = segments.join("/");
    match (parts.method, segments.as_slice()) {
        ("GET", []) => {
            let (query, proplist) = get_filter(parts.query)?;
            Ok((Command::Print { menu, query, proplist }, Shape::List))
        }
        ("GET", _) => {
            let (_, proplist) = get_filter(parts.query)?;
            let query = Query::equal([(key(menu, &target), canonical(&target))]);
            Ok((Command::Print { menu, query, proplist }, Shape::Single))
        }
        ("POST", [verb]) => post(menu, verb, object(parts)?),
        ("PUT", []) => {
            Ok((Command::Add { menu, properties: properties(object(parts)?)? }, Shape::Created))
        }
        ("PATCH", [_, ..]) => {
            let properties = properties(object(parts)?)?;
            Ok((Command::Set { menu, targets: vec![target], properties }, Shape::Patched))
        }
        ("DELETE", [_, ..]) => {
            Ok((Command::Remove { menu, targets: vec![target] }, Shape::Deleted))
        }
        _ => Err(Malformed::MethodNotAllowed),
    }
}

fn system(parts: Parts<'_>, segments: &[&str]) -> Result<(Command, Shape), Malformed> {
    let command = match segments.get(1) {
        Some(&"resource") => Command::Resource,
        Some(&"identity") => Command::Identity,
        _ => return Err(Malformed::NotFound),
    };
    match (parts.method, &segments[2..]) {
        ("GET", []) => Ok((command, Shape::Single)),
        ("POST", ["print"]) => Ok((command, Shape::List)),
        _ => Err(Malformed::NotFound),
    }
}

fn post(
    menu: Menu,
    verb: &str,
    mut body: Map<String, Value>,
) -> Result<(Command, Shape), Malformed> {
    let command = match verb {
        "print" => {
            let words = strings(body.remove(".query"), ".query")?;
            let query = Query::parse(words.iter().map(String::as_str))
                .ok_or_else(|| Refusal::InvalidValue(".query".into()))?;
            let proplist = strings(body.remove(".proplist"), ".proplist")?;
            if let Some(name) = body.keys().next() {
                return Err(Refusal::UnknownParameter(name.clone()).into());
            }
            return Ok((Command::Print { menu, query, proplist }, Shape::List));
        }
        "add" => Command::Add { menu, properties: properties(body)? },
        "set" => Command::Set { menu, targets: targets(&mut body)?, properties: properties(body)? },
        "copy" if menu == Menu::File => {
            Command::Copy { menu, targets: targets(&mut body)?, properties: properties(body)? }
        }
        "copy" if menu == Menu::Disk => {
            Command::Copy { menu, targets: Vec::new(), properties: properties(body)? }
        }
        "monitor-traffic" if menu == Menu::Disk => {
            let targets = targets(&mut body)?;
            // Without it a request would run until it is cut.
            if body.remove("once").is_none() {
                return Err(Refusal::CannotDo.into());
            }
            Command::MonitorTraffic { targets }
        }
        "remove" => {
            let targets = targets(&mut body)?;
            if let Some(name) = body.keys().next() {
                return Err(Refusal::UnknownParameter(name.clone()).into());
            }
            Command::Remove { menu, targets }
        }
        _ => return Err(Refusal::NoSuchCommand.into()),
    };
    Ok((command, Shape::Posted))
}

/// The items that `.id` or `numbers` name, as a comma list.
fn targets(body: &mut Map<String, Value>) -> Result<Vec<String>, Malformed> {
    let given = body.remove(".id").or_else(|| body.remove("numbers"));
    Ok(strings(given, ".id")?.iter().map(|t| canonical(t)).collect())
}

/// `*2a` is `*2A`.
fn canonical(target: &str) -> String {
    ItemId::parse(target).map_or_else(|| target.to_owned(), |id| id.to_string())
}

/// The property that identifies an item by what is in the URL.
fn key(menu: Menu, target: &str) -> String {
    if ItemId::parse(target).is_some() { ".id".into() } else { menu.key().into() }
}

fn properties(body: Map<String, Value>) -> Result<Vec<Property>, Malformed> {
    body.into_iter()
        .map(|(name, value)| {
            let value = match value {
                Value::String(s) => s,
                Value::Bool(b) => b.to_string(),
                _ => return Err(Refusal::InvalidValue(name).into()),
            };
            // Literals are decimal text since `normalise_literals`.
            Ok(Property { name, value, origin: Origin::Text })
        })
        .collect()
}

/// A list, or a comma list in one string.
fn strings(value: Option<Value>, name: &str) -> Result<Vec<String>, Malformed> {
    let bad = || Malformed::from(Refusal::InvalidValue(name.to_owned()));
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(s)) => {
            Ok(s.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect())
        }
        Some(Value::Array(list)) => {
            list.into_iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(bad)).collect()
        }
        Some(_) => Err(bad()),
    }
}

fn object(parts: Parts<'_>) -> Result<Map<String, Value>, Malformed> {
    if parts.body.is_empty() {
        return Ok(Map::new());
    }
    let json_type = |t: &str| {
        t.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
    };
    if !parts.content_type.is_some_and(json_type) {
        return Err(Malformed::UnsupportedMediaType);
    }
    let text = std::str::from_utf8(parts.body).map_err(|e| Malformed::BadJson(e.to_string()))?;
    let text = normalise_literals(text)
        .map_err(|literal| Malformed::BadJson(format!("bad number {literal}")))?;
    serde_json::from_str(&text).map_err(|e| Malformed::BadJson(e.to_string()))
}

fn get_filter(query: &str) -> Result<(Query, Vec<String>), Malformed> {
    let mut filter = Vec::new();
    let mut proplist = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (percent_decode(name), percent_decode(value));
        match name.as_str() {
            ".proplist" => proplist.extend(value.split(',').map(str::to_owned)),
            ".query" => return Err(Refusal::UnknownParameter(name).into()),
            ".id" => filter.push((name, canonical(&value))),
            _ => filter.push((name, value)),
        }
    }
    Ok((Query::equal(filter), proplist))
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .filter(|h| bytes[i] == b'%' && h.iter().all(u8::is_ascii_hexdigit));
        let decoded = hex
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match decoded {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(if bytes[i] == b'+' { b' ' } else { bytes[i] });
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts<'a>(method: &'a str, path: &'a str, body: &'a str) -> Parts<'a> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Parts { method, path, query, content_type: Some("application/json"), body: body.as_bytes() }
    }

    #[test]
    fn get_filters_exactly() {
        let (command, shape) =
            parse(parts("GET", "/rest/disk?slot=a%20b&.proplist=.id,slot", "")).unwrap();
        let query = Query::equal([("slot".into(), "a b".into())]);
        assert_eq!(
            command,
            Command::Print { menu: Menu::Disk, query, proplist: vec![".id".into(), "slot".into()] }
        );
        assert_eq!(shape, Shape::List);
    }

    #[test]
    fn a_star_must_be_raw() {
        let id = |path| match parse(parts("GET", path, "")).unwrap().0 {
            Command::Print { query, .. } => query,
            other => panic!("{other:?}"),
        };
        assert_eq!(id("/rest/disk/*2a"), Query::equal([(".id".into(), "*2A".into())]));
        assert_eq!(id("/rest/disk/%2A2A"), Query::equal([("slot".into(), "%2A2A".into())]));
    }

    #[test]
    fn bodies() {
        let (command, _) =
            parse(parts("POST", "/rest/disk/set", r#"{".id":"*2a","file-size":010}"#)).unwrap();
        let size = Property { name: "file-size".into(), value: "8".into(), origin: Origin::Text };
        assert_eq!(
            command,
            Command::Set { menu: Menu::Disk, targets: vec!["*2A".into()], properties: vec![size] }
        );
        let refused = |body| parse(parts("POST", "/rest/disk/add", body)).unwrap_err();
        assert!(matches!(refused(r#"{"file-size":1e9}"#), Malformed::BadJson(_)));
        assert!(matches!(refused(r#"{"slot":null}"#), Malformed::Refused(_)));
        let mut plain = parts("POST", "/rest/disk/add", "{}");
        plain.content_type = None;
        assert_eq!(parse(plain), Err(Malformed::UnsupportedMediaType));
    }

    proptest! {
        #[test]
        fn never_panics(method in "GET|POST|PUT|PATCH|DELETE", path in "/rest/(disk|file|system)?[ -~]{0,20}", body in ".{0,40}") {
            let _ = parse(parts(&method, &path, &body));
        }
        #[test]
        fn percent_decode_never_panics(s in ".*") {
            let _ = percent_decode(&s);
        }
    }
}
