//! The schema in Postgres: `migrations/*.sql`, compiled in, applied one process at a time.

use anyhow::{Context, anyhow};
use refinery::Runner;
use secrecy::SecretString;
use tokio_postgres::Client;

use crate::stores::{RECREATED, connect_postgres};

mod embedded {
    #![allow(unreachable_pub, missing_docs)]
    refinery::embed_migrations!("migrations");
}

/// Processes that migrate at once wait for each other on this advisory lock: "dotmac" in ASCII.
const LOCK: i64 = 0x646f_746d_6163;

/// What migrations create: which one, and what. If something is gone although the history says that its migration was
/// applied, somebody has dropped it, or has put tables of the first migration in its place; then all of them run again: each
/// is written so that it may.
const CREATED: [(i32, &str); 19] = [
    (1, LICENSES),
    (1, "table feature_usage"),
    (3, "trigger tenant_licenses_first_revision"),
    (3, "trigger tenant_licenses_set_revision"),
    (4, "trigger tenant_licenses_announce_insert"),
    (4, "trigger tenant_licenses_announce_update"),
    (4, "trigger tenant_licenses_announce_old_id"),
    (4, "trigger tenant_licenses_announce_delete"),
    (4, "trigger tenant_licenses_announce_replicated"),
    (4, "trigger tenant_licenses_announce_truncate"),
    (5, "trigger tenant_licenses_clear_ends"),
    (5, "table tenant_addons"),
    (5, "table license_audit"),
    (6, "table usage_batches"),
    (6, "table usage_windows"),
    (6, "table usage_anchors"),
    (6, "table feature_denial_events"),
    (6, "table shadow_denial_events"),
    (6, "table upgrade_marks"),
];

const LICENSES: &str = "table tenant_licenses";

const HAS_TABLE: &str = "SELECT to_regclass($1::text) IS NOT NULL";
const HAS_TRIGGER: &str = "SELECT EXISTS (SELECT FROM pg_trigger \
     WHERE tgrelid = to_regclass('tenant_licenses') AND tgname = $1::text)";

const HISTORY: &str = "refinery_schema_history";

/// What has been applied and what has not.
pub(crate) struct Status {
    /// Every migration, and whether it has been applied.
    pub migrations: Vec<(String, bool)>,
    /// What is gone although its migration was applied.
    pub missing: Vec<&'static str>,
}

/// Apply what is pending; answers the names of what was applied.
///
/// # Errors
/// When the database can't be reached or a statement fails. Each migration is applied whole or not at all.
pub(crate) async fn migrate(url: &SecretString) -> anyhow::Result<Vec<String>> {
    let mut client = connect_postgres(url).await?;
    // Held until the connection ends.
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.context("the migration lock")?;
    let missing = missing(&client, &applied(&client).await?).await?;
    if !missing.is_empty() {
        tracing::warn!(?missing, "what was created is gone; all migrations run again");
        let mut again = format!("DELETE FROM {HISTORY};");
        if missing.contains(&LICENSES) {
            // In the same transaction, so that nobody ever sees the table without its comment.
            again += &format!("{} COMMENT ON TABLE tenant_licenses IS '{RECREATED}';", first_migration());
        }
        client.batch_execute(&again).await.context("what was created is gone, and creating it again")?;
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
    let applied = applied(&client).await?;
    let runner = runner();
    let mut migrations: Vec<_> = runner.get_migrations().iter().collect();
    migrations.sort_by_key(|migration| migration.version());
    let migrations =
        migrations.into_iter().map(|m| (name(m), applied.iter().any(|v| i64::from(*v) == i64::from(m.version()))));
    let migrations: Vec<_> = migrations.collect();
    let missing = missing(&client, &applied).await?;
    Ok(Status { migrations, missing })
}

fn runner() -> Runner {
    embedded::migrations::runner()
}

/// The statements that create the tables.
fn first_migration() -> String {
    let runner = runner();
    let first = runner.get_migrations().iter().find(|migration| i64::from(migration.version()) == 1);
    first.and_then(|migration| migration.sql()).expect("V001 is compiled in").to_owned()
}

/// The versions in the history.
async fn applied(client: &Client) -> anyhow::Result<Vec<i32>> {
    let has_history = client.query_one(HAS_TABLE, &[&HISTORY]).await?;
    if !has_history.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows = client.query(&format!("SELECT version::int FROM {HISTORY}"), &[]).await.context("the history")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What is gone although its migration was applied.
async fn missing(client: &Client, applied: &[i32]) -> anyhow::Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for (version, what) in CREATED {
        if !applied.contains(&version) {
            continue;
        }
        let (kind, name) = what.split_once(' ').unwrap_or(("", what));
        let is_there = if kind == "table" { HAS_TABLE } else { HAS_TRIGGER };
        if !client.query_one(is_there, &[&name]).await?.get::<_, bool>(0) {
            missing.push(what);
        }
    }
    Ok(missing)
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
