//! The JSON schema of the configuration, for editors.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::Config;
use super::not_built::{NOT_BUILT, NotBuilt};

/// The JSON schema of the configuration. It is what `config/schema.json` holds.
///
/// Draft 7, since that is what the YAML support of editors reads best.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    for NotBuilt { key, .. } in NOT_BUILT {
        if let Some(found) = find(&mut schema, &key.replace("[]", "")) {
            let description = found.get("description").and_then(Value::as_str).unwrap_or_default();
            found["description"] = json!(format!("{description} Not built in this version.").trim());
        }
    }
    schema
}

/// The schema of the value that `path` leads to, through lists and choices.
fn find<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
    // In two steps, since the borrow checker can't follow an early return of a mutable borrow.
    if schema.pointer(&format!("/properties/{key}")).is_some() {
        let found = &mut schema["properties"][key];
        return if rest.is_empty() { Some(found) } else { find(found, rest) };
    }
    if schema.get("items").is_some() {
        return find(&mut schema["items"], path);
    }
    let choice = ["anyOf", "oneOf"].into_iter().find(|choice| schema.get(choice).is_some())?;
    schema[choice].as_array_mut()?.iter_mut().find_map(|option| find(option, path))
}
