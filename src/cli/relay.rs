//! `relay`: one change feed for a whole fleet.

use clap::Args;

use super::{ConfigFile, Failure};
use crate::server::Relay;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let settings = options.config.load_and_log()?;
    Relay::new(&settings).map_err(|error| Failure::Usage(format!("error: {error:#}")))?.run()?;
    Ok(())
}
