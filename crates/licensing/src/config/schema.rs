//! The JSON schema of the configuration, for editors.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Config;

/// The JSON schema of the configuration. It is what `config/schema.json` holds.
///
/// Draft 7, since that is what the YAML support of editors reads best.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}
