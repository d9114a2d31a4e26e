//! `check-config`: whether a configuration can be used, what it amounts to, and what it means for a backend.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use licensing::config::LicenseSource;
use licensing::openapi;
use licensing::routes::{Access, Routes, Rule};

use super::{ConfigFile, Failure};
use crate::identity;
use crate::settings::Settings;
use crate::stores::FileSource;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Print the whole configuration as it takes effect, every default filled in
    #[arg(long)]
    print_effective: bool,
    /// Print each operation of the backend's OpenAPI document (JSON) with the rule it falls under
    #[arg(long, value_name = "FILE")]
    openapi: Option<PathBuf>,
    /// Fail if no rule matches some operation
    #[arg(long, requires = "openapi")]
    strict: bool,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let settings = options.config.load()?;
    let policy = crate::snapshot::policy(&settings.config).map_err(|error| Failure::Usage(format!("{error:#}")))?;
    for warning in &settings.warnings {
        eprintln!("{warning}");
    }
    for override_ in &settings.overrides {
        eprintln!("environment: {override_}");
    }
    check_license_file(&settings)?;
    check_keys(&settings)?;
    if options.print_effective {
        print!("{}", settings.config.to_yaml().context("the effective configuration")?);
    }
    match &options.openapi {
        Some(file) => check_backend(file, &policy.routes, options.strict)?,
        None if !options.print_effective => println!("{}", summary(&settings)),
        None => {}
    }
    Ok(())
}

/// Licences in a file are checked with the configuration, if the file is here: where a configuration is checked before it
/// goes out, it need not be.
fn check_license_file(settings: &Settings) -> Result<(), Failure> {
    let LicenseSource::File(file) = &settings.config.licenses.source else { return Ok(()) };
    let path = file.resolve(&settings.file);
    if path.exists() {
        FileSource::open(path, settings.config.plans.clone()).map_err(Failure::Usage)?;
    } else {
        eprintln!("{}: warning: the licence file {} is not here", settings.file.display(), path.display());
    }
    Ok(())
}

/// The same for the keys of tokens.
fn check_keys(settings: &Settings) -> Result<(), Failure> {
    for jwt in settings.config.tenant.tokens() {
        let path = jwt.keys_file(&settings.file);
        if path.exists() {
            identity::check_keys(&path).map_err(|error| Failure::Usage(error.to_string()))?;
        } else {
            eprintln!("{}: warning: the keys {} are not here", settings.file.display(), path.display());
        }
    }
    Ok(())
}

/// One line on what the configuration amounts to.
fn summary(settings: &Settings) -> String {
    let config = &settings.config;
    format!(
        "{}: ok ({} rules, {} plans, {}, config_hash {})",
        settings.file.display(),
        config.routes.rules.len(),
        config.plans.len(),
        config.enforcement.mode.as_str(),
        settings.config_hash()
    )
}

fn check_backend(file: &std::path::Path, routes: &Routes, strict: bool) -> Result<(), Failure> {
    let name = file.display();
    let text = std::fs::read(file).map_err(|error| Failure::Usage(format!("{name}: can't be read: {error}")))?;
    let document =
        serde_json::from_slice(&text).map_err(|error| Failure::Usage(format!("{name}: no JSON: {error}")))?;
    let report = openapi::Report::new(&document, |method, path| match routes.resolve(method, path.as_bytes()) {
        Ok(route) => route.rules().first().map_or(openapi::Match::Unmatched, |m| openapi::Match::Rule(m.index)),
        Err(_) => openapi::Match::Unmatched,
    })
    .map_err(|error| Failure::Usage(format!("{name}: {error}")))?;

    let width = report.operations.iter().map(|operation| operation.template.len()).max().unwrap_or_default();
    for operation in &report.operations {
        let rule = match operation.matched {
            openapi::Match::Rule(index) => routes.rules().nth(index).map(|m| describe(m.rule)).unwrap_or_default(),
            openapi::Match::Unmatched => "no rule".to_owned(),
        };
        println!("{:<7} {:<width$}  {rule}", operation.method, operation.template);
    }
    let unmatched = report.unmatched().count();
    println!("{} operations, {unmatched} without a rule", report.operations.len());
    if strict && unmatched > 0 {
        let all = report.operations.len();
        return Err(Failure::Failed(anyhow::anyhow!("{name}: {unmatched} of {all} operations fall under no rule")));
    }
    Ok(())
}

fn describe(rule: &Rule) -> String {
    match &rule.access {
        Access::Feature(feature) => format!("{feature} ({rule})"),
        Access::Always => format!("always ({rule})"),
        Access::Deny => format!("deny ({rule})"),
    }
}
