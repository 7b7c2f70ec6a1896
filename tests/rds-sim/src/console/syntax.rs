//! What a line is made of.

use crate::appliance::command::Menu;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `:onerror e in={ ... } do={ ... }`
    OnError {
        variable: String,
        body: Vec<Statement>,
        handler: Vec<Statement>,
    },
    Put(Value),
    /// `:serialize to=json value=...`
    Serialize(Value),
    Call(Call),
}

/// A command of a menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub place: Place,
    pub verb: Verb,
    pub named: Vec<(String, Value)>,
    pub positional: Vec<Value>,
    /// What `where` asks for.
    pub conditions: Vec<(String, Value)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Menu(Menu),
    Resource,
    Identity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Set,
    Remove,
    Print,
    Find,
    Get,
    Copy,
    MonitorTraffic,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Verb::Add => "add",
            Verb::Set => "set",
            Verb::Remove => "remove",
            Verb::Print => "print",
            Verb::Find => "find",
            Verb::Get => "get",
            Verb::Copy => "copy",
            Verb::MonitorTraffic => "monitor-traffic",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A bare word.
    Word(String),
    /// A string, with variables in it.
    Text(Vec<Piece>),
    Variable(String),
    /// `[ ... ]`
    Result(Box<Statement>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Literal(String),
    Variable(String),
}

/// Why a line was not understood; columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    #[error("syntax error (line {line} column {column})")]
    Syntax { line: usize, column: usize },
    #[error("expected end of command (line {line} column {column})")]
    ExpectedEnd { line: usize, column: usize },
    #[error("bad command name {name} (line {line} column {column})")]
    BadCommand { name: String, line: usize, column: usize },
}
