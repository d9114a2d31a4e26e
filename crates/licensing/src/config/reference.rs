//! The configuration reference, for people: docs/configuration.md, written from the JSON schema.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// One key.
struct Row {
    path: String,
    kind: String,
    default: String,
    meaning: String,
}

/// What every page of the reference begins with; the rest is the schema's.
const HEAD: &str = "# Configuration reference

Every key of the configuration file. This page is written from the same types as [config/schema.json](../config/schema.json), by which
editors complete the file, and a test keeps it equal: edit neither, but the types' comments, and run the tests of `licensing` once with
`UPDATE_SCHEMA=1`.
";

/// What stands in no schema, since it is never written into the file.
const ENVIRONMENT: &str = "
## The environment

Secrets, and what differs from place to place, come from the environment alone. Each name but the first also exists with `_FILE` at its
end: a file that holds the value; those of secrets are read again when they change.

| variable | or | |
|---|---|---|
| `DOTMAC_LICENSE_CONFIG` | `--config FILE` | The configuration file. |
| `DOTMAC_LICENSE_DATABASE_URL` | `DATABASE_URL` | Postgres, the primary: writes, migrations, the change feed. |
| `DOTMAC_LICENSE_LICENSE_DB_URL` | `LICENSE_DB_URL` | Postgres for reading licences: a replica will do. |
| `DOTMAC_LICENSE_REDIS_URL` | `REDIS_URL` | Redis: `redis://`, `rediss://` or `unix://`. |
| `DOTMAC_LICENSE_ADMIN_TOKEN` | `ADMIN_TOKEN` | What the admin API asks for. |
| `DOTMAC_LICENSE_CACHE_TTL` | `CACHE_TTL` | Stands in for `licenses.ttl`. |

What of all this waits for a restart, and what takes effect while the process runs, is said in [licences.md](licences.md).
";

/// The page.
pub(super) fn reference(schema: &Value) -> String {
    let mut page = HEAD.to_owned();
    let described = plain(description(schema));
    write!(page, "\n{described}\n\nIn the paths below `[]` is an item of a list, and `NAME` a name of your own.\n")
        .ok();
    let sections: Vec<_> = properties(schema).collect();
    page += "\n| section | | |\n|---|---|---|\n";
    for (name, section) in &sections {
        let needed = if is_required(schema, name) { "required" } else { "" };
        writeln!(page, "| [{name}](#{name}) | {} | {needed} |", without_default(description(section)).0).ok();
    }
    for (name, section) in &sections {
        let mut rows = Vec::new();
        add(&mut rows, name, section, is_required(schema, name), &[]);
        let own = rows.remove(0);
        write!(page, "\n## {name}\n\n{}\n", own.meaning).ok();
        if rows.is_empty() {
            write!(page, "\n{}; {}.\n", capital(&own.kind), spoken(&own.default)).ok();
            continue;
        }
        match own.kind.as_str() {
            "section" if ["none", "required"].contains(&own.default.as_str()) => {}
            "section" => writeln!(page, "\nDefault: {}.", own.default).unwrap_or_default(),
            other => writeln!(page, "\nA {other}; {}.", spoken(&own.default)).unwrap_or_default(),
        }
        page += "\n| key | type | default | |\n|---|---|---|---|\n";
        for Row { path, kind, default, meaning } in rows {
            let cells = [format!("`{path}`"), kind, default, meaning].map(|cell| cell.replace('|', "\\|"));
            writeln!(page, "| {} |", cells.join(" | ")).ok();
        }
    }
    page + ENVIRONMENT
}

/// Adds a key and all below it. `outer` are the descriptions that also speak of it, the nearest first.
fn add(rows: &mut Vec<Row>, path: &str, schema: &Value, required: bool, outer: &[&str]) {
    let inner = without_null(schema);
    let described = [description(schema), description(inner)].into_iter().chain(outer.iter().copied());
    let described = described.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let (mut meaning, documented) = without_default(described);
    let item = item_of(inner);
    let both = if std::ptr::eq(item, inner) { vec![inner] } else { vec![inner, item] };
    for (choice, explained) in both.iter().copied().flat_map(choices) {
        if !meaning.contains(&format!("{choice}: ")) && !explained.is_empty() {
            write!(meaning, " `{choice}`: {}", lower(&plain(&explained))).ok();
        }
    }
    for of in both {
        meaning += &exactly_one(of);
    }
    let is_section = !path.contains(['.', '[']) && inner.get("properties").is_some();
    let default = match (required, documented, schema.get("default").or(inner.get("default"))) {
        (true, ..) => "required".to_owned(),
        (_, Some(text), _) => marked(&text),
        (_, None, Some(_)) if !is_section => "as below".to_owned(),
        _ => "none".to_owned(),
    };
    let kind = if is_section { "section".to_owned() } else { kind(inner) };
    rows.push(Row { path: path.to_owned(), kind, default, meaning: meaning.trim().to_owned() });
    below(rows, path, inner);
    if !std::ptr::eq(item, inner) {
        below(rows, &format!("{path}[]"), item);
    }
}

/// The keys of an object, those of its variants, and those that have names of their own.
fn below(rows: &mut Vec<Row>, path: &str, schema: &Value) {
    for (name, property) in properties(schema) {
        add(rows, &format!("{path}.{name}"), property, is_required(schema, name), &[]);
    }
    for variant in variants(schema) {
        for (name, property) in properties(variant) {
            add(rows, &format!("{path}.{name}"), &of_variant(property, variant), false, &[]);
        }
    }
    for property in schema.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::values) {
        add(rows, &format!("{path}.NAME"), property, false, &[description(schema), "One of them."]);
    }
}

/// A variant's only key is explained where the variant is.
fn of_variant(property: &Value, variant: &Value) -> Value {
    let mut property = property.clone();
    if let (Some(members), Some(text)) = (property.as_object_mut(), variant.get("description")) {
        members.insert("description".to_owned(), text.clone());
    }
    property
}

/// What may stand there.
fn kind(schema: &Value) -> String {
    let item = item_of(schema);
    if !std::ptr::eq(item, schema) {
        return match kind(item).as_str() {
            "mapping" => "list of mappings".to_owned(),
            other => format!("list of {other}"),
        };
    }
    let choices = choices(schema);
    let variants: Vec<_> = variants(schema).collect();
    if !choices.is_empty() || !variants.is_empty() {
        let choices = choices.iter().map(|(choice, _)| format!("`{choice}`"));
        let variants =
            variants.iter().flat_map(|variant| properties(variant)).map(|(name, _)| format!("`{{ {name}: … }}`"));
        return choices.chain(variants).collect::<Vec<_>>().join(", ");
    }
    let number = |name: &str| schema.get(name).and_then(Value::as_i64);
    match schema.get("type").and_then(Value::as_str).or(first_type(schema)) {
        Some("integer" | "number") => match (number("minimum"), number("maximum")) {
            (Some(least), Some(most)) if least == most => format!("number, {least}"),
            (Some(least), Some(most)) => format!("number, {least} to {most}"),
            (Some(least), None) => format!("number, from {least}"),
            _ => "number".to_owned(),
        },
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("object") => "mapping".to_owned(),
        Some("string") => text_kind(schema),
        other => unreachable!("a kind of value that the reference has no word for: {other:?} in {schema}"),
    }
}

/// The words for texts of a certain form, which their patterns tell apart.
fn text_kind(schema: &Value) -> String {
    let pattern = schema.get("pattern").and_then(Value::as_str).unwrap_or_default();
    let example = schema.pointer("/examples/0").and_then(Value::as_str);
    match (pattern, example) {
        (pattern, _) if pattern.contains("(ms|s|m|h|d)") => "duration".to_owned(),
        (pattern, _) if pattern.contains("KiB") => "size".to_owned(),
        (_, Some(example)) => format!("text, such as `{example}`"),
        (_, None) => "text".to_owned(),
    }
}

fn first_type(schema: &Value) -> Option<&str> {
    let types = schema.get("type")?.as_array()?;
    types.iter().filter_map(Value::as_str).find(|name| *name != "null")
}

/// The schema of a list's items, or itself.
fn item_of(schema: &Value) -> &Value {
    schema.get("items").map_or(schema, without_null)
}

/// What is left of `null or something`.
fn without_null(schema: &Value) -> &Value {
    let some = schema.get("anyOf").and_then(Value::as_array);
    some.and_then(|any| any.iter().find(|one| one.get("type") != Some(&"null".into()))).unwrap_or(schema)
}

/// The words that may stand there, each with what it means.
fn choices(schema: &Value) -> Vec<(String, String)> {
    let of = |one: &Value| Some((one.get("const")?.as_str()?.to_owned(), description(one).to_owned()));
    one_of(schema).filter_map(of).collect()
}

/// The objects that may stand there.
fn variants(schema: &Value) -> impl Iterator<Item = &Value> {
    one_of(schema).filter(|one| one.get("properties").is_some())
}

fn one_of(schema: &Value) -> impl Iterator<Item = &Value> {
    schema.get("oneOf").and_then(Value::as_array).into_iter().flatten()
}

/// A sentence on keys of which one must be there.
fn exactly_one(schema: &Value) -> String {
    let all = schema.get("allOf").and_then(Value::as_array).into_iter().flatten();
    let mut said = String::new();
    for of in std::iter::once(schema).chain(all) {
        let keys =
            one_of(of).filter(|one| one.get("properties").is_none()).filter_map(|one| one.pointer("/required/0"));
        let keys: Vec<_> = keys.filter_map(Value::as_str).map(|key| format!("`{key}`")).collect();
        if !keys.is_empty() {
            write!(said, " Exactly one of {}.", keys.join(" and ")).ok();
        }
    }
    said
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn is_required(schema: &Value, name: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|names| names.iter().any(|required| required == name))
}

fn description(schema: &Value) -> &str {
    schema.get("description").and_then(Value::as_str).unwrap_or_default()
}

/// A description without its sentence on the default, and what that says, which has a column of its own.
fn without_default(text: &str) -> (String, Option<String>) {
    let text = plain(text);
    let Some((before, after)) = text.split_once("Default: ") else { return (text, None) };
    let (default, rest) = after.split_once(". ").unwrap_or((after.trim_end_matches('.'), ""));
    (format!("{before}{rest}").trim().to_owned(), Some(default.to_owned()))
}

/// On one line.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What is written in a file stands in backticks, what is only said does not.
fn marked(default: &str) -> String {
    let said = default.contains(' ') && !default.starts_with('[');
    let said = said || ["none", "all", "any", "empty", "unlimited"].contains(&default);
    if said { default.to_owned() } else { format!("`{default}`") }
}

fn spoken(default: &str) -> String {
    if default == "required" { default.to_owned() } else { format!("default: {default}") }
}

fn lower(text: &str) -> String {
    changed_first(text, |first| first.to_lowercase().collect())
}

fn capital(text: &str) -> String {
    changed_first(text, |first| first.to_uppercase().collect())
}

fn changed_first(text: &str, change: impl Fn(char) -> String) -> String {
    let mut chars = text.chars();
    chars.next().map(&change).unwrap_or_default() + chars.as_str()
}
