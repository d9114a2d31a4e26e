//! The schema in Postgres: `migrations/*.sql`, compiled in, applied one process at a time.

use anyhow::{Context, anyhow};
use refinery::Runner;
use secrecy::SecretString;
use tokio_postgres::Client;

use crate::stores::connect_postgres;

mod embedded {
    #![allow(unreachable_pub, missing_docs)]
    refinery::embed_migrations!("migrations");
}

/// Processes that migrate at once wait for each other on this advisory lock: "dotmac" in ASCII.
const LOCK: i64 = 0x646f_746d_6163;

/// The tables that migrations create. If one is gone although the history says that everything was applied, somebody has
/// dropped it, and all of them run again: each is written so that it may.
const TABLES: [&str; 2] = ["tenant_licenses", "feature_usage"];

const HISTORY: &str = "refinery_schema_history";

/// What has been applied and what has not.
pub(crate) struct Status {
    /// Every migration, and whether it has been applied.
    pub migrations: Vec<(String, bool)>,
    /// Tables that are gone although their migration was applied.
    pub missing_tables: Vec<&'static str>,
}

/// Apply what is pending; answers the names of what was applied.
///
/// # Errors
/// When the database can't be reached or a statement fails. Each migration is applied whole or not at all.
pub(crate) async fn migrate(url: &SecretString) -> anyhow::Result<Vec<String>> {
    let mut client = connect_postgres(url).await?;
    // Held until the connection ends.
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.context("the migration lock")?;
    let missing = missing_tables(&client).await?;
    if !missing.is_empty() && exists(&client, HISTORY).await? {
        tracing::warn!(tables = ?missing, "tables are gone; all migrations run again");
        client.batch_execute(&format!("DELETE FROM {HISTORY}")).await.context("the migration history")?;
    }
    let report = runner().run_async(&mut client).await.map_err(|error| anyhow!("{}", describe(&error)))?;
    Ok(report.applied_migrations().iter().map(name).collect())
}

/// Look, and change nothing.
///
/// # Errors
/// When the database can't be reached.
pub(crate) async fn status(url: &SecretString) -> anyhow::Result<Status> {
    let client = connect_postgres(url).await?;
    let applied: Vec<i32> = match exists(&client, HISTORY).await? {
        true => client
            .query(&format!("SELECT version::int FROM {HISTORY}"), &[])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect(),
        false => Vec::new(),
    };
    let runner = runner();
    let mut migrations: Vec<_> = runner.get_migrations().iter().collect();
    migrations.sort_by_key(|migration| migration.version());
    let migrations =
        migrations.into_iter().map(|m| (name(m), applied.iter().any(|v| i64::from(*v) == i64::from(m.version()))));
    let migrations: Vec<_> = migrations.collect();
    let missing_tables = if applied.is_empty() { Vec::new() } else { missing_tables(&client).await? };
    Ok(Status { migrations, missing_tables })
}

fn runner() -> Runner {
    embedded::migrations::runner()
}

async fn missing_tables(client: &Client) -> anyhow::Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for table in TABLES {
        if !exists(client, table).await? {
            missing.push(table);
        }
    }
    Ok(missing)
}

async fn exists(client: &Client, table: &str) -> anyhow::Result<bool> {
    Ok(client.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&table]).await?.get(0))
}

fn name(migration: &refinery::Migration) -> String {
    format!("V{:03}__{}", migration.version(), migration.name())
}

/// The error with all that lies beneath it: the statement's own words are at the bottom.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
