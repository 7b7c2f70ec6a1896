//! A request as one line of the console.
//!
//! Only two kinds of text get into a line: names, which are constants of this program, and
//! values, which go through [`quote`]. Inside a quoted string of the console a value can end
//! the string, begin a variable or an escape, and nothing else; what could is written as the
//! escape for its byte (MikroTik's manual, "Scripting", constant escape sequences).
//!
//! A line that fails prints an error and exits with 0 like any other, so all of it is wrapped
//! in `:onerror`, and ends with a word that nobody else can know.

use crate::routeros::wire::{Menu, Property, Request, Target};

/// What a line says when it is done: a word that occurs in no answer by chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinel(String);

impl Sentinel {
    /// A fresh one: 122 random bits.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("rds-{}", uuid::Uuid::new_v4().simple()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The line for a request.
#[must_use]
pub fn encode(request: &Request, sentinel: &Sentinel) -> String {
    let mark = sentinel.as_str();
    format!(
        ":onerror e in={{ {}; :put \"{mark} OK\" }} do={{ :put \"{mark} ERR $e\" }}",
        body(request, &format!(":put \"{mark} DID\""))
    )
}

/// `did` stands behind a change: an error after it was not raised by the change.
fn body(request: &Request, did: &str) -> String {
    match request {
        Request::Print { menu, filter, .. } => print(*menu, filter.as_ref()),
        Request::Add { menu, properties } => {
            format!("{}/add{}; {did}", path(*menu), pairs(properties))
        }
        // `set` on a list that is empty is no error to the console. So what is there
        // afterwards is printed in the same line: nothing means that there is no such item.
        Request::Set { menu, target, properties } => {
            let (items, pairs) = (items(*menu, target), pairs(properties));
            let set = format!("{}/set {items}{pairs}; {did}", path(*menu));
            match target {
                Target::Slot(volume) => {
                    format!("{set}; {}", print(*menu, Some(&Property::Slot(volume.clone()))))
                }
                Target::File(_) | Target::Subvolume(_) | Target::Id(_) => set,
            }
        }
        Request::Remove { menu, target } => {
            format!("{}/remove {}; {did}", path(*menu), items(*menu, target))
        }
        // The item goes last: it alone proves whose the file is. `did` stands behind the
        // first change, since after that an error says no more that nothing was done.
        Request::Discard { file, slot } => {
            let (file, slot) = (Target::File(file.clone()), Target::Slot(slot.clone()));
            let remove = |menu, target| format!("{}/remove {}", path(menu), items(menu, target));
            format!("{}; {did}; {}", remove(Menu::File, &file), remove(Menu::Disk, &slot))
        }
        // It prints its progress, which stands before the mark and is passed over.
        Request::Copy { from, to, part } => format!(
            "/{} src={} dst={} src-offset={} dst-offset={} size={}; {did}",
            request.name(),
            quote(&from.to_string()),
            quote(to.as_str()),
            part.offset,
            part.offset,
            part.size
        ),
    }
}

/// All properties, as JSON. Never `print` alone: it wraps lines and rounds numbers. Without
/// the option, texts that look like numbers would become numbers.
fn print(menu: Menu, filter: Option<&Property>) -> String {
    let value = match menu {
        Menu::Resource | Menu::Health => format!("{}/print as-value", path(menu)),
        Menu::Disk | Menu::File | Menu::Subvolume => {
            let filter = filter.map(|p| format!(" where{}", pair(p))).unwrap_or_default();
            format!("{}/print detail as-value{filter}", path(menu))
        }
    };
    format!(":put [:serialize to=json options=json.no-string-conversion value=[{value}]]")
}

fn items(menu: Menu, target: &Target) -> String {
    match target {
        Target::Slot(volume) => {
            format!("[{}/find where{}]", path(menu), pair(&Property::Slot(volume.clone())))
        }
        Target::File(file) => {
            format!("[{}/find where{}]", path(menu), pair(&Property::FileName(file.clone())))
        }
        Target::Subvolume(name) => {
            format!("[{}/find where{}]", path(menu), pair(&Property::SubvolumeName(name.clone())))
        }
        // An asterisk and hexadecimal digits, which is how the console writes it.
        Target::Id(id) => id.to_string(),
    }
}

fn path(menu: Menu) -> String {
    format!("/{}", menu.path())
}

fn pairs(properties: &[Property]) -> String {
    properties.iter().map(pair).collect()
}

fn pair(property: &Property) -> String {
    format!(" {}={}", property.name(), quote(&property.value()))
}

/// A string of the console that reads back as `text`, whatever is in it.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for byte in text.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b" -._/:=,+@%~*".contains(&b) => {
                out.push(char::from(b));
            }
            b => out.push_str(&format!("\\{b:02X}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
