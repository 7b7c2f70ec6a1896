//! Carries out statements. What is printed goes to one text, errors included: exec has no other channel.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::print;
use super::syntax::{Call, Piece, Place, Statement, Value, Verb};
use crate::appliance::command::{Command, Menu, Property, Reply};
use crate::config::SshJson;
use crate::ros::error::{CONSOLE_NOT_ALLOWED, Refusal};
use crate::ros::item::Item;
use crate::ros::number::Origin;
use crate::ros::query::{Operation, Query, Word};

/// What the console needs of the world.
pub struct Console<'a> {
    pub execute: &'a dyn Fn(&Command) -> Result<Reply, Refusal>,
    pub json: SshJson,
    pub width: usize,
    /// Errors say where they come from.
    pub context: bool,
}

enum Outcome {
    Nothing,
    Text(String),
    Ids(Vec<String>),
    Items(Vec<Item>),
}

/// An error as a script sees it.
struct Raised(String);

/// Runs a script; all that it prints, with the console's line ends.
pub fn run(console: &Console<'_>, script: &[Statement]) -> String {
    let mut run = Run { console, variables: HashMap::new(), out: String::new() };
    if let Err(Raised(error)) = run.statements(script) {
        run.line(&error);
    }
    run.out
}

/// The data commands of a script, for the log: no values.
pub fn paths(script: &[Statement]) -> Vec<String> {
    let mut out = Vec::new();
    for statement in script {
        match statement {
            Statement::OnError { body, handler, .. } => {
                out.extend(paths(body));
                out.extend(paths(handler));
            }
            Statement::Put(Value::Result(inner)) | Statement::Serialize(Value::Result(inner)) => {
                out.extend(paths(std::slice::from_ref(inner)));
            }
            Statement::Put(_) | Statement::Serialize(_) => {}
            Statement::Call(call) => out.push(call_path(call)),
        }
    }
    out
}

fn call_path(call: &Call) -> String {
    let place = match call.place {
        Place::Menu(menu) => menu.path(),
        Place::Resource => "/system/resource",
        Place::Identity => "/system/identity",
    };
    format!("{place}/{}", call.verb.name())
}

struct Run<'a> {
    console: &'a Console<'a>,
    variables: HashMap<String, String>,
    out: String,
}

impl Run<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push_str("\r\n");
    }

    fn statements(&mut self, statements: &[Statement]) -> Result<(), Raised> {
        statements.iter().try_for_each(|s| self.statement(s, true).map(drop))
    }

    fn statement(&mut self, statement: &Statement, top: bool) -> Result<Outcome, Raised> {
        match statement {
            Statement::OnError { variable, body, handler } => {
                if let Err(Raised(error)) = self.statements(body) {
                    self.variables.insert(variable.clone(), error);
                    self.statements(handler)?;
                }
                Ok(Outcome::Nothing)
            }
            Statement::Put(value) => {
                let text = self.text(value)?;
                self.line(&text);
                Ok(Outcome::Nothing)
            }
            Statement::Serialize(value) => {
                let outcome = self.value(value)?;
                Ok(Outcome::Text(self.serialize(outcome).to_string()))
            }
            Statement::Call(call) => self.call(call, top),
        }
    }

    fn serialize(&self, outcome: Outcome) -> Json {
        match outcome {
            Outcome::Nothing => Json::String(String::new()),
            Outcome::Text(text) => Json::String(text),
            Outcome::Ids(ids) => ids.into_iter().map(Json::String).collect(),
            Outcome::Items(items) => items
                .iter()
                .map(|i| if self.console.json == SshJson::Typed { i.typed() } else { i.rest() })
                .collect(),
        }
    }

    fn value(&mut self, value: &Value) -> Result<Outcome, Raised> {
        match value {
            Value::Word(word) => Ok(Outcome::Text(word.clone())),
            Value::Variable(name) => Ok(Outcome::Text(self.variable(name))),
            Value::Text(pieces) => {
                let text = pieces.iter().map(|p| match p {
                    Piece::Literal(text) => text.clone(),
                    Piece::Variable(name) => self.variable(name),
                });
                Ok(Outcome::Text(text.collect()))
            }
            Value::Result(statement) => self.statement(statement, false),
        }
    }

    fn variable(&self, name: &str) -> String {
        self.variables.get(name).cloned().unwrap_or_default()
    }

    fn text(&mut self, value: &Value) -> Result<String, Raised> {
        Ok(match self.value(value)? {
            Outcome::Nothing => String::new(),
            Outcome::Text(text) => text,
            Outcome::Ids(ids) => ids.join(";"),
            Outcome::Items(items) => {
                let pairs =
                    items.iter().flat_map(|i| i.0.iter().map(|(n, v)| format!("{n}={}", v.rest())));
                pairs.collect::<Vec<_>>().join(";")
            }
        })
    }

    fn call(&mut self, call: &Call, top: bool) -> Result<Outcome, Raised> {
        let reply = match (call.place, call.verb) {
            (Place::Resource, _) => self.execute(call, &Command::Resource)?,
            (Place::Identity, _) => self.execute(call, &Command::Identity)?,
            (Place::Menu(menu), Verb::Add) => {
                let properties = self.properties(call)?;
                self.execute(call, &Command::Add { menu, properties })?
            }
            (Place::Menu(menu), Verb::Set) => {
                let targets = self.targets(call)?;
                let properties = self.properties(call)?;
                // `set [find ...]` that finds nothing is no error.
                if targets.is_empty() {
                    return Ok(Outcome::Nothing);
                }
                self.execute(call, &Command::Set { menu, targets, properties })?
            }
            (Place::Menu(menu), Verb::Remove) => {
                let targets = self.targets(call)?;
                if targets.is_empty() {
                    return Ok(Outcome::Nothing);
                }
                self.execute(call, &Command::Remove { menu, targets })?
            }
            (Place::Menu(_), Verb::MonitorTraffic) => {
                let mut targets = self.targets(call)?;
                // Without `once` it would never end: exec has no key to stop it.
                let (once, rest) = targets.drain(..).partition::<Vec<_>, _>(|t| t == "once");
                if once.is_empty() {
                    return Err(Raised("can not do that".into()));
                }
                self.execute(call, &Command::MonitorTraffic { targets: rest })?
            }
            (Place::Menu(Menu::File), Verb::Copy) => {
                let targets = self.targets(call)?;
                let properties = self.properties(call)?;
                self.execute(call, &Command::Copy { menu: Menu::File, targets, properties })?
            }
            (Place::Menu(menu), Verb::Copy) => {
                let properties = self.properties(call)?;
                self.execute(call, &Command::Copy { menu, targets: Vec::new(), properties })?
            }
            (Place::Menu(menu), Verb::Get) => return self.get(call, menu),
            (Place::Menu(menu), Verb::Print) if !as_data(call) => return self.show(call, menu),
            (Place::Menu(menu), Verb::Print | Verb::Find) => {
                let query = self.query(&call.conditions)?;
                self.execute(call, &Command::Print { menu, query, proplist: Vec::new() })?
            }
        };
        match (call.verb, reply) {
            (Verb::Find, Reply::Items(items)) => {
                Ok(Outcome::Ids(items.iter().map(|i| field(i, ".id")).collect()))
            }
            (Verb::Get, Reply::One(item)) => match call.positional.first() {
                Some(name) => Ok(Outcome::Text(field(&item, &self.text(name)?))),
                None => Ok(Outcome::Items(vec![item])),
            },
            (Verb::MonitorTraffic, Reply::Items(items)) if !top => Ok(Outcome::Items(items)),
            (Verb::Copy | Verb::MonitorTraffic, Reply::Items(items)) => {
                self.out.push_str(&print::single(&items));
                Ok(Outcome::Nothing)
            }
            (_, Reply::Items(items)) => self.print(call, items, top),
            (_, Reply::One(item)) => self.print(call, vec![item], top),
            (_, Reply::Added(id)) if !top => Ok(Outcome::Text(id)),
            (_, Reply::Added(_) | Reply::Done) => Ok(Outcome::Nothing),
        }
    }

    /// Print as data, or of the places that are no lists.
    fn print(&mut self, call: &Call, items: Vec<Item>, top: bool) -> Result<Outcome, Raised> {
        let options = self.options(call)?;
        let proplist = self.proplist(call)?;
        let items: Vec<Item> = items.into_iter().map(|i| i.project(&proplist)).collect();
        if options.iter().any(|o| o == "count-only") {
            let text = items.len().to_string();
            if top {
                self.line(&text);
            }
            return Ok(Outcome::Text(text));
        }
        if options.iter().any(|o| o == "as-value") {
            return Ok(Outcome::Items(items));
        }
        self.out.push_str(&print::single(&items));
        Ok(Outcome::Nothing)
    }

    /// Print for people. Numbers are those of the whole list, also when only some are shown.
    fn show(&mut self, call: &Call, menu: Menu) -> Result<Outcome, Raised> {
        let options = self.options(call)?;
        let proplist = self.proplist(call)?;
        let query = self.query(&call.conditions)?;
        let all = Command::Print { menu, query: Query::default(), proplist: Vec::new() };
        let Reply::Items(items) = self.execute(call, &all)? else { return Ok(Outcome::Nothing) };
        let rows = items.into_iter().enumerate().filter(|(_, i)| query.matches(i));
        let rows: Vec<print::Row> = rows.map(|(n, i)| (n, i.project(&proplist))).collect();
        let detail = options.iter().any(|o| o == "detail") || !proplist.is_empty();
        let table = if detail { None } else { print::table(menu, &rows) };
        let text = table.unwrap_or_else(|| print::detail(menu, &rows, self.console.width));
        self.out.push_str(&text);
        Ok(Outcome::Nothing)
    }

    fn options(&mut self, call: &Call) -> Result<Vec<String>, Raised> {
        let mut options = Vec::new();
        for option in &call.positional {
            let option = self.text(option)?;
            match option.as_str() {
                "as-value" | "count-only" | "detail" | "without-paging" | "terse" => {}
                _ => return Err(Raised(format!("input does not match any value of {option}"))),
            }
            options.push(option);
        }
        Ok(options)
    }

    fn proplist(&mut self, call: &Call) -> Result<Vec<String>, Raised> {
        let mut proplist = Vec::new();
        for (_, value) in &call.named {
            proplist.extend(self.text(value)?.split(',').map(str::to_owned));
        }
        Ok(proplist)
    }

    fn get(&mut self, call: &Call, menu: Menu) -> Result<Outcome, Raised> {
        let Some(target) = call.positional.first() else {
            return Err(Raised("no such item".into()));
        };
        let target = match self.value(target)? {
            Outcome::Ids(mut ids) if ids.len() == 1 => ids.remove(0),
            Outcome::Text(text) => text,
            _ => return Err(Raised("no such item".into())),
        };
        let key = if target.starts_with('*') { ".id" } else { menu.key() };
        let query = Query::equal([(key.to_owned(), target)]);
        let reply = self.execute(call, &Command::Print { menu, query, proplist: Vec::new() })?;
        let Reply::Items(mut items) = reply else { return Ok(Outcome::Nothing) };
        if items.is_empty() {
            return Err(Raised("no such item".into()));
        }
        let item = items.remove(0);
        match call.positional.get(1) {
            Some(name) => Ok(Outcome::Text(field(&item, &self.text(name)?))),
            None => Ok(Outcome::Items(vec![item])),
        }
    }

    fn execute(&self, call: &Call, command: &Command) -> Result<Reply, Raised> {
        (self.console.execute)(command).map_err(|refusal| {
            let place = if self.console.context {
                format!(" ({}; line 1)", call_path(call))
            } else {
                String::new()
            };
            match refusal {
                Refusal::NotAllowed => Raised(format!("{CONSOLE_NOT_ALLOWED}{place}")),
                other => Raised(format!("{other}{place}")),
            }
        })
    }

    fn properties(&mut self, call: &Call) -> Result<Vec<Property>, Raised> {
        let mut out = Vec::new();
        for (name, value) in call.named.iter().filter(|(n, _)| n != "numbers" && n != ".id") {
            out.push(Property {
                name: name.clone(),
                value: self.text(value)?,
                origin: Origin::Text,
            });
        }
        Ok(out)
    }

    fn targets(&mut self, call: &Call) -> Result<Vec<String>, Raised> {
        let named = call.named.iter().filter(|(n, _)| n == "numbers" || n == ".id").map(|(_, v)| v);
        let mut out = Vec::new();
        let mut given = false;
        for value in call.positional.iter().chain(named) {
            given = true;
            match self.value(value)? {
                Outcome::Ids(ids) => out.extend(ids),
                Outcome::Text(text) => out.extend(text.split(',').map(str::to_owned)),
                Outcome::Nothing | Outcome::Items(_) => {}
            }
        }
        if given { Ok(out) } else { Err(Raised("no such item".into())) }
    }

    /// `yes` and `no` are how flags are written here, `true` and `false` how they are compared.
    fn query(&mut self, conditions: &[(String, Value)]) -> Result<Query, Raised> {
        let mut words = Vec::new();
        for (name, value) in conditions {
            let text = self.text(value)?;
            let flag = match text.as_str() {
                "yes" => Some("true"),
                "no" => Some("false"),
                _ => None,
            };
            words.push(Word::Equal(name.clone(), text));
            if let Some(flag) = flag {
                words.push(Word::Equal(name.clone(), flag.into()));
                words.push(Word::Operations(vec![Operation::Or]));
            }
        }
        Ok(Query(words))
    }
}

/// Whether a print is for a script rather than for a person.
fn as_data(call: &Call) -> bool {
    let data = |v: &Value| matches!(v, Value::Word(w) if w == "as-value" || w == "count-only");
    call.positional.iter().any(data)
}

fn field(item: &Item, name: &str) -> String {
    item.get(name).map(|v| v.rest()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::ros::item::Value as V;

    fn parse(text: &str) -> Result<Vec<Statement>, super::super::syntax::SyntaxError> {
        super::super::parse::parse(text, "7.24".parse().unwrap())
    }

    fn shell(script: &str, reply: Result<Reply, Refusal>) -> (String, Vec<Command>) {
        let seen = RefCell::new(Vec::new());
        let execute = |c: &Command| {
            seen.borrow_mut().push(c.clone());
            if matches!(c, Command::Remove { .. }) && reply.is_ok() {
                Ok(Reply::Done)
            } else {
                reply.clone()
            }
        };
        let console =
            Console { execute: &execute, json: SshJson::Typed, width: 80, context: false };
        let out = run(&console, &parse(script).unwrap());
        (out, seen.into_inner())
    }

    const WRAPPED: &str =
        r#":onerror e in={ /disk remove [find slot="x"]; :put "S OK" } do={ :put "S ERR $e" }"#;

    fn item() -> Item {
        let mut item = Item::default();
        item.word(".id", "*2A");
        item.text("slot", "x");
        item.push("size", V::Number(5));
        item
    }

    #[test]
    fn success_and_failure_both_print() {
        let (out, seen) = shell(WRAPPED, Ok(Reply::Items(vec![item()])));
        assert_eq!(out, "S OK\r\n");
        assert_eq!(seen[1], Command::Remove { menu: Menu::Disk, targets: vec!["*2A".into()] });
        assert_eq!(
            shell(WRAPPED, Err(Refusal::Duplicate)).0,
            "S ERR failure: already have such entry\r\n"
        );
        assert_eq!(shell("/disk remove x", Err(Refusal::NoSuchItem)).0, "no such item\r\n");
    }

    #[test]
    fn removing_nothing_found_is_no_error() {
        let (out, seen) = shell(WRAPPED, Ok(Reply::Items(vec![])));
        assert_eq!((out.as_str(), seen.len()), ("S OK\r\n", 1));
    }

    #[test]
    fn json_keeps_types() {
        let script = r#":put [:serialize to=json options=json.no-string-conversion value=[/disk/print detail as-value where slot="x"]]"#;
        let (out, _) = shell(script, Ok(Reply::Items(vec![item()])));
        assert_eq!(out, "[{\".id\":\"*2A\",\"size\":5,\"slot\":\"x\"}]\r\n");
        assert_eq!(shell(script, Ok(Reply::Items(vec![]))).0, "[]\r\n");
        assert_eq!(paths(&parse(script).unwrap()), ["/disk/print"]);
    }
}
