//! `serve`: the main job.

use clap::Args;

use super::{ConfigFile, Failure, start_log};
use crate::server::Assembly;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let settings = options.config.load()?;
    start_log(settings.config.log.level.as_str());
    for warning in &settings.warnings {
        tracing::warn!(%warning, "configuration");
    }
    for override_ in &settings.overrides {
        tracing::info!(environment = override_, "the environment overrides the configuration");
    }
    Assembly::new(settings).map_err(|error| Failure::Usage(format!("error: {error:#}")))?.run()?;
    Ok(())
}
