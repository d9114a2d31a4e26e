//! A YAML document as a tree in which every key and value knows its place.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::problem::Place;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a [`Node`] holds.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As it is written in the file.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Was found wrong and reported: readers pass it over, as if it were not there.
    Pruned,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

/// One step on the way from the root to a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(key: &'a str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Step<'_> {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// A path as it is written in messages: `routes.rules[3].prefix`.
pub(super) fn written(path: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// How deep mappings and lists may nest: no schema here is half as deep. Every level takes stack, and the reader's own default
/// of 64 is more than a thread of 2 MiB has in a build that is not optimised.
const MAX_DEPTH: usize = 16;

impl Node {
    /// Read a document.
    pub(super) fn parse(text: &str) -> Result<Self, (Place, String)> {
        // `off` is a mode and `no` a name: only `true` and `false` are booleans.
        let budget = serde_saphyr::budget! { max_depth: MAX_DEPTH };
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false, budget: budget };
        match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
            Ok(root) => Ok(Self::from_raw(root, text)),
            Err(error) => {
                let place = error.location().map_or(Place { line: 1, column: 1 }, place);
                Err((place, describe(error.without_snippet())))
            }
        }
    }

    fn from_raw(raw: Spanned<Raw>, text: &str) -> Self {
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Number(value) => {
                let span = raw.defined.span();
                let start = span.byte_offset().and_then(|n| usize::try_from(n).ok());
                let length = span.byte_len().and_then(|n| usize::try_from(n).ok());
                let written = start.zip(length).and_then(|(start, length)| text.get(start..start + length));
                Value::Number(written.map_or(value, |written| written.trim().to_owned()))
            }
            Raw::Text(value) => Value::Text(value),
            Raw::List(items) => Value::List(items.into_iter().map(|item| Self::from_raw(item, text)).collect()),
            Raw::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| Entry {
                        place: place(key.referenced),
                        key: key.value,
                        node: Self::from_raw(value, text),
                    })
                    .collect(),
            ),
        };
        Self { place: place(raw.referenced), value }
    }

    /// The value of `key`, if this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The value at `index`, if this is a list that is so long.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Where the value at the end of `path` stands, or the last on the way that is written in the file.
    pub(super) fn place_of(&self, path: &[Step<'_>]) -> Place {
        let mut node = self;
        for step in path {
            let next = match *step {
                Step::Key(key) => node.get(key),
                Step::Index(index) => node.items().get(index),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.place
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// Whether anything was cut out of it.
    pub(super) fn has_gaps(&self) -> bool {
        match &self.value {
            Value::Pruned => true,
            Value::List(items) => items.iter().any(Self::has_gaps),
            Value::Map(entries) => entries.iter().any(|entry| entry.node.has_gaps()),
            _ => false,
        }
    }

    /// The value at the end of a path of positions, and the path in words.
    pub(super) fn follow(&mut self, positions: &[usize]) -> Option<(&mut Self, String)> {
        let mut node = self;
        let mut words = String::new();
        for &position in positions {
            node = match &mut node.value {
                Value::Map(entries) => {
                    let entry = entries.get_mut(position)?;
                    if !words.is_empty() {
                        words.push('.');
                    }
                    words.push_str(&entry.key);
                    &mut entry.node
                }
                Value::List(items) => {
                    words.push_str(&format!("[{position}]"));
                    items.get_mut(position)?
                }
                _ => return None,
            };
        }
        Some((node, words))
    }
}

/// What is wrong with a text as YAML.
fn describe(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
            format!("the key `{}` stands here for the second time", key.as_deref().unwrap_or("?"))
        }
        serde_saphyr::Error::MultipleDocuments { .. } => "expected one document, found a second one".to_owned(),
        error => {
            let message = error.to_string();
            // The place is shown in front of the message, not behind it as well.
            let end = message.find(" at line ").or_else(|| message.find('\n')).unwrap_or(message.len());
            message[..end].to_owned()
        }
    }
}

fn place(location: serde_saphyr::Location) -> Place {
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: narrow(location.line()), column: narrow(location.column()) }
}

/// What the YAML reader says of a node, before places are taken over.
enum Raw {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

macro_rules! numbers {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E>(self, value: $type) -> Result<Raw, E> {
            Ok(Raw::Number(value.to_string()))
        })*
    };
}

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    numbers!(visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64);

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
