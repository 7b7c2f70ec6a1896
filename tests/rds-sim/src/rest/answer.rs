//! From what came of a command to HTTP status and JSON body.

use serde_json::{Value, json};

use super::request::Malformed;
use crate::appliance::command::Reply;
use crate::ros::error::Refusal;
use crate::ros::item::Item;

/// How the answer to a request looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    List,
    Single,
    Posted,
    /// PUT, PATCH and DELETE hide why they were refused; PUT and PATCH answer with the whole item.
    Created,
    Patched,
    Deleted,
}

/// Status and body; `None` for none.
pub type Answer = (u16, Option<Body>);

/// Items are written as they are: thousands of them are not copied into a tree first.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    Json(Value),
    Item(Item),
    Items(Vec<Item>),
}

impl std::fmt::Display for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = String::new();
        match self {
            Body::Json(value) => return value.fmt(f),
            Body::Item(item) => item.write_rest(&mut out),
            Body::Items(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    out.push_str(if n > 0 { "," } else { "" });
                    item.write_rest(&mut out);
                }
                out.push(']');
            }
        }
        f.write_str(&out)
    }
}

pub fn reply(result: Result<Reply, Refusal>, shape: Shape) -> Answer {
    match (result, shape) {
        (Ok(Reply::Items(items)), Shape::Single | Shape::Patched | Shape::Created) => {
            match items.into_iter().next() {
                Some(item) if shape == Shape::Created => (201, Some(Body::Item(item))),
                Some(item) => (200, Some(Body::Item(item))),
                None => error(404, None),
            }
        }
        (Ok(Reply::Items(items)), _) => (200, Some(Body::Items(items))),
        (Ok(Reply::One(item)), Shape::List) => (200, Some(Body::Items(vec![item]))),
        (Ok(Reply::One(item)), _) => (200, Some(Body::Item(item))),
        (Ok(Reply::Added(id)), _) => (200, Some(Body::Json(json!({ "ret": id })))),
        (Ok(Reply::Done), Shape::Deleted) => (204, None),
        (Ok(Reply::Done), _) => (200, Some(Body::Items(Vec::new()))),
        (Err(Refusal::NoSuchItem), Shape::Created | Shape::Patched | Shape::Deleted) => {
            error(404, None)
        }
        (Err(e), Shape::Created | Shape::Patched | Shape::Deleted) => error(e.status(), None),
        (Err(e), _) => error(e.status(), Some(e.to_string())),
    }
}

pub fn malformed(m: Malformed) -> Answer {
    match m {
        Malformed::NotFound => error(404, None),
        Malformed::MethodNotAllowed => error(405, None),
        Malformed::UnsupportedMediaType => error(415, None),
        Malformed::BadJson(detail) => error(400, Some(detail)),
        Malformed::Refused(r) => error(r.status(), Some(r.to_string())),
    }
}

pub fn error(status: u16, detail: Option<String>) -> Answer {
    let message = axum::http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Error");
    let mut body = json!({ "error": status, "message": message });
    if let Some(detail) = detail {
        body["detail"] = Value::String(detail);
    }
    (status, Some(Body::Json(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_post_tells_why() {
        let refused = || Err(Refusal::Duplicate);
        let (status, body) = reply(refused(), Shape::Posted);
        let detail = json!({"error":400,"message":"Bad Request","detail":"failure: already have such entry"});
        assert_eq!((status, body), (400, Some(Body::Json(detail))));
        assert_eq!(
            reply(refused(), Shape::Created).1,
            Some(Body::Json(json!({"error":400,"message":"Bad Request"})))
        );
        assert_eq!(reply(Ok(Reply::Items(vec![])), Shape::Single).0, 404);
        assert_eq!(reply(Ok(Reply::Items(vec![])), Shape::List), (200, Some(Body::Items(vec![]))));
        assert_eq!(
            error(401, None).1,
            Some(Body::Json(json!({"error":401,"message":"Unauthorized"})))
        );
    }
}
