//! What the schema has and this version does not: refused with a sentence, never ignored.

use super::node::{Node, Value};
use super::problem::{Collector, Place};

/// A key whose part is not built yet. Whoever builds it deletes the line.
pub(super) struct NotBuilt {
    /// The key; `[]` stands for every item of a list.
    pub(super) key: &'static str,
    /// What it is for.
    pub(super) what: &'static str,
}

const fn key(key: &'static str, what: &'static str) -> NotBuilt {
    NotBuilt { key, what }
}

/// The one list of them.
pub(super) const NOT_BUILT: &[NotBuilt] =
    &[key("routes.rules[].meter", "counting requests"), key("usage", "counting requests")];

/// Report every key and value in `tree` that is not built.
pub(super) fn report(tree: &Node, problems: &mut Collector<'_>) {
    for NotBuilt { key, what } in NOT_BUILT {
        visit(tree, key, String::new(), tree.place, &mut |node, words, place| match &node.value {
            // A key without a value says nothing.
            Value::Null => {}
            _ => {
                let name = words.rsplit('.').next().unwrap_or(&words);
                let message = format!("`{name}` is not built in this version ({what}); remove the key");
                problems.error(place, words, message);
            }
        });
    }
}

/// Call `found` for each value that `pattern` leads to, with its path and the place of its key.
fn visit(node: &Node, pattern: &str, words: String, place: Place, found: &mut impl FnMut(&Node, String, Place)) {
    if let Some(rest) = pattern.strip_prefix("[]") {
        for (i, item) in node.items().iter().enumerate() {
            let rest = rest.strip_prefix('.').unwrap_or(rest);
            visit(item, rest, format!("{words}[{i}]"), item.place, found);
        }
        return;
    }
    if pattern.is_empty() {
        return found(node, words, place);
    }
    let end = pattern.find(['.', '[']).unwrap_or(pattern.len());
    let (key, rest) = pattern.split_at(end);
    if let Some(entry) = node.entry(key) {
        let words = if words.is_empty() { key.to_owned() } else { format!("{words}.{key}") };
        visit(&entry.node, rest.strip_prefix('.').unwrap_or(rest), words, entry.place, found);
    }
}
