//! Why a node can't be read as a type, in words for people.

use std::fmt;

use serde::de;

use super::node::{Node, Value};
use super::problem::Place;

/// Why a node can't be read.
#[derive(Debug)]
pub(super) struct ReadError {
    pub(super) message: String,
    pub(super) place: Option<Place>,
    /// Positions from the node up to the root.
    pub(super) path: Vec<usize>,
    /// The key that is missing, if that is why.
    pub(super) missing: Option<&'static str>,
}

impl ReadError {
    pub(super) fn new(message: String) -> Self {
        Self { message, place: None, path: Vec::new(), missing: None }
    }

    pub(super) fn expected(expected: &str, node: &Node) -> Self {
        let found = match &node.value {
            Value::Null | Value::Pruned => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.clone(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(entries) if entries.is_empty() => "an empty mapping".to_owned(),
            Value::Map(entries) => {
                let keys = entries.iter().take(5).map(|entry| entry.key.as_str()).collect::<Vec<_>>();
                format!("a mapping with {}", keys.join(", "))
            }
        };
        Self { place: Some(node.place), ..Self::new(format!("expected {expected}, found {found}")) }
    }

    pub(super) fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    pub(super) fn under(mut self, position: usize) -> Self {
        self.path.push(position);
        self
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("unknown key `{field}`; {}", known(field, expected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("`{variant}` is not known here; {}", known(variant, expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: Some(field), ..Self::new(format!("the key `{field}` is missing")) }
    }
}

/// What may stand there instead.
fn known(found: &str, expected: &[&str]) -> String {
    let near = expected.iter().map(|name| (distance(found, name), name)).min();
    let list = expected.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match near {
        Some((edits, name)) if edits <= 2 && edits < name.len() / 2 && expected.len() > 3 => {
            format!("did you mean `{name}`?")
        }
        Some(_) => format!("expected {}{list}", if expected.len() > 1 { "one of " } else { "" }),
        None => "none may stand here".to_owned(),
    }
}

/// How many letters must be inserted, deleted or replaced to turn `a` into `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
