//! How commands print what they found: as a table for people, as JSON or YAML for programs.

use std::io::{Write, stdout};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

use super::Failure;

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

impl Format {
    /// Print one document.
    pub(super) fn print(self, document: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = match self {
            Self::Table => table(),
            Self::Json => serde_json::to_string_pretty(document).context("JSON")? + "\n",
            Self::Yaml => yaml(document)?,
        };
        write(&text)
    }
}

/// A document in YAML.
pub(super) fn yaml(document: &impl Serialize) -> anyhow::Result<String> {
    serde_saphyr::to_string(document).context("YAML")
}

/// Print a text as it is.
pub(super) fn write(text: &str) -> Result<(), Failure> {
    stdout().lock().write_all(text.as_bytes()).context("standard output").map_err(Failure::Failed)
}
