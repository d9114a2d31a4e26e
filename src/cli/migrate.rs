//! `migrate`: the tables in Postgres.

use anyhow::anyhow;
use clap::Args;
use secrecy::SecretString;

use super::{Failure, start_log};
use crate::migrations;
use crate::settings::{environment, secrets_from_environment};

#[derive(Args)]
pub(super) struct Options {
    /// Only say what has been applied and what has not
    #[arg(long)]
    status: bool,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    start_log("warn");
    let secrets = secrets_from_environment(&environment)?;
    let url = secrets.database_url.ok_or_else(|| {
        Failure::Usage("migrate needs DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL: the database to work on".to_owned())
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| anyhow!(e))?;
    runtime.block_on(async { if options.status { status(url.first()).await } else { migrate(url.first()).await } })
}

async fn migrate(url: &SecretString) -> Result<(), Failure> {
    let applied = migrations::migrate(url).await?;
    for name in &applied {
        println!("applied {name}");
    }
    match applied.len() {
        0 => println!("nothing to do: the schema is up to date"),
        n => println!("{n} applied: the schema is up to date"),
    }
    Ok(())
}

async fn status(url: &SecretString) -> Result<(), Failure> {
    let status = migrations::status(url).await?;
    for (name, applied) in &status.migrations {
        println!("{:<9} {name}", if *applied { "applied" } else { "pending" });
    }
    for what in &status.missing {
        println!("missing   {what}: `migrate` creates it again");
    }
    Ok(())
}
