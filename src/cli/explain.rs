//! `explain`: what becomes of a request, and why.

use anyhow::Context;
use clap::{Args, ValueEnum};
use licensing::tenant::TenantId;

use super::{ConfigFile, Failure, start_log};
use crate::explain::Asked;
use crate::server::Assembly;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// The tenant that sends the request; without it, one that names none
    #[arg(long, value_name = "UUID")]
    tenant: Option<TenantId>,
    /// The request's method
    #[arg(long, default_value = "GET")]
    method: String,
    /// The request's target as it is sent, such as /api/v1/crm/customers?page=2
    path: String,
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
    /// For both
    Yaml,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let settings = options.config.load()?;
    start_log("error");
    let assembly = Assembly::new(settings).map_err(|error| Failure::Usage(format!("error: {error:#}")))?;
    let asked = Asked { tenant: options.tenant, method: options.method.clone(), path: options.path.clone() };
    let explanation = assembly.runtime().block_on(assembly.explainer().explain(asked));
    assembly.give_back();
    match options.output {
        Output::Text => println!("{explanation}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&explanation).context("JSON")?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&explanation).context("YAML")?),
    }
    if explanation.is_denial() { Err(Failure::Denied) } else { Ok(()) }
}
