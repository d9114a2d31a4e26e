//! What a backfill asks of Postgres: the ids of a table of tenants as one stream, and licences for them in batches.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use licensing::time::Timestamp;
use secrecy::SecretString;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, RowStream};
use uuid::Uuid;

use super::StoreError;
use super::postgres_server::{connect, failure, unavailable};

/// How long one batch may take, before it counts as failed.
const BATCH_LIMIT: Duration = Duration::from_secs(60);

/// A table or view with a row for each tenant, and its column that holds the id. Names are taken letter by letter, as they
/// would stand in double quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TenantTable {
    schema: Option<String>,
    table: String,
    id: String,
}

/// The ids of a table of tenants, those that mean the same UUID one after the other.
pub(crate) struct TenantIds {
    /// Kept: dropping it would end the stream.
    _client: Client,
    rows: Pin<Box<RowStream>>,
    total: u64,
}

/// A licence as many tenants get it.
#[derive(Clone, Debug)]
pub(crate) struct NewLicense {
    /// `plan_tier`.
    pub plan: String,
    /// `features`, as JSON text.
    pub features: String,
    /// `usage_limits`, as JSON text.
    pub usage_limits: String,
    /// `valid_until`.
    pub valid_until: Timestamp,
    /// `auto_renew`.
    pub auto_renew: bool,
}

/// A connection that adds licences.
pub(crate) struct NewLicenses(Client);

/// A row of `license_audit` about many tenants.
pub(crate) struct BulkAudit<'a> {
    /// What was done.
    pub action: &'a str,
    /// Who did it.
    pub actor: &'a str,
    /// Why.
    pub reason: Option<&'a str>,
    /// What was asked for.
    pub command: serde_json::Value,
    /// What came of it.
    pub after: serde_json::Value,
}

/// What there is under the names of a [`TenantTable`]: whether the table, whether the column, and the table's columns.
const DESCRIBE: &str = "SELECT to_regclass($1) IS NOT NULL, coalesce(bool_or(attname = $2), false), \
     coalesce(string_agg(attname, ', ' ORDER BY attnum), '') \
     FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";

/// The stream takes as long as the writing does, so a time limit that is meant for an application's queries would end it.
const BEGIN_READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = 0";

/// The isolation level is said, since in a stricter one a licence that somebody adds meanwhile would be an error, and not one
/// that is there. A time without a zone is UTC, whatever the columns' types and their defaults.
const BEGIN_WRITING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL TimeZone = 'UTC'";

/// A table without a key on `tenant_id` is refused (by 42P10): nothing else keeps a second row of a tenant out.
///
/// Add-ons survive the rollback that drops the licences, so whoever has some that are in force gets them as well, as
/// `Command::Reapply` would work them in: their features, their ends where the plan has not got the feature, and their limits.
const ADD: &str = "INSERT INTO tenant_licenses \
     (tenant_id, plan_tier, features, features_until, usage_limits, valid_until, auto_renew) \
     SELECT id, $2, $3::jsonb || coalesce(added, '{}'), coalesce(ends, '{}'), $4::jsonb || coalesce(limits, '{}'), \
            $5::timestamptz, $6 \
       FROM unnest($1) AS list (id) LEFT JOIN LATERAL ( \
         SELECT jsonb_object_agg(feature, true) AS added, \
                jsonb_object_agg(feature, to_char(valid_until, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')) \
                  FILTER (WHERE valid_until < '10000-01-01' AND NOT $3::jsonb ? feature) AS ends, \
                jsonb_object_agg(feature, own_limit) FILTER (WHERE own_limit IS NOT NULL) AS limits \
           FROM (SELECT feature::text, valid_until, CASE \
                          WHEN $4::jsonb ? feature THEN greatest(($4::jsonb ->> feature)::numeric + coalesce(limit_delta, 0), 0) \
                          WHEN $3::jsonb ? feature THEN NULL \
                          WHEN limit_delta < 0 THEN 0 \
                          ELSE limit_delta END \
                   FROM tenant_addons \
                  WHERE tenant_id = id AND valid_until > timezone('utc', now())) AS addon (feature, valid_until, own_limit) \
       ) AS addons ON true \
     ON CONFLICT (tenant_id) DO NOTHING";

const COUNT_LICENSED: &str = "SELECT count(DISTINCT tenant_id) FROM tenant_licenses WHERE tenant_id = ANY($1)";

const AUDIT: &str = "INSERT INTO license_audit (action, actor, reason, outcome, command, after) \
     VALUES ($1, $2, $3, 'applied', $4::jsonb, $5::jsonb)";

impl TenantTable {
    /// `from` is `table` or `schema.table`; a part that holds a dot or a quote is written in double quotes, as in SQL.
    ///
    /// # Errors
    /// With a sentence, when it is neither.
    pub(crate) fn new(from: &str, id: &str) -> Result<Self, String> {
        let wrong = || format!("{from:?} is no table: expected NAME or SCHEMA.NAME");
        let mut names = split_names(from).ok_or_else(wrong)?;
        let (Some(table), schema, None) = (names.pop(), names.pop(), names.pop()) else { return Err(wrong()) };
        if id.is_empty() || id.contains('\0') || from.contains('\0') {
            return Err(format!("{id:?} is no column"));
        }
        Ok(Self { schema, table, id: id.to_owned() })
    }

    fn table_sql(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }

    /// The text of each id, ordered by the UUID that it stands for in whatever spelling: that brings duplicates together,
    /// and keeps the inserts in the order of the index.
    fn ids_sql(&self) -> String {
        let (table, id) = (self.table_sql(), quoted(&self.id));
        format!(
            "SELECT {id}::text FROM {table} \
             ORDER BY translate(replace(lower({id}::text), 'urn:uuid:', ''), E'{{-}} \\t\\n\\r\\f', '') COLLATE \"C\""
        )
    }
}

impl fmt::Display for TenantTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        write!(f, "{} ({})", self.table, self.id)
    }
}

impl TenantIds {
    /// Begin to read.
    ///
    /// # Errors
    /// When the database can't be reached, there is no such table or column, or it may not be read.
    pub(crate) async fn open(url: &SecretString, source: &TenantTable) -> Result<Self, StoreError> {
        let client = connect(url).await?;
        check(&client, source).await?;
        let failed = |error: Error| failure(&error);
        client.batch_execute(BEGIN_READING).await.map_err(failed)?;
        let count = format!("SELECT count(*) FROM {}", source.table_sql());
        let total: i64 = client.query_typed_one(&count, &[]).await.map_err(failed)?.get(0);
        let rows = client.query_typed_raw::<&str, _>(&source.ids_sql(), []).await.map_err(failed)?;
        Ok(Self { _client: client, rows: Box::pin(rows), total: total.unsigned_abs() })
    }

    /// How many rows the table has.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// The next id as text; the inner `None` is a NULL, the outer one the end. Safe to cancel.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn next(&mut self) -> Result<Option<Option<String>>, StoreError> {
        let Some(row) = self.rows.try_next().await.map_err(|error| failure(&error))? else { return Ok(None) };
        row.try_get(0).map(Some).map_err(|error| failure(&error))
    }
}

impl NewLicenses {
    /// Connect.
    ///
    /// # Errors
    /// When the database can't be reached.
    pub(crate) async fn open(url: &SecretString) -> Result<Self, StoreError> {
        Ok(Self(connect(url).await?))
    }

    /// Give these tenants a licence, but those that have one; in a transaction of its own. Answers how many were added.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time: then this batch may be there or not.
    pub(crate) async fn add(&self, tenants: &[Uuid], license: &NewLicense) -> Result<u64, StoreError> {
        let NewLicense { plan, features, usage_limits, valid_until, auto_renew } = license;
        let valid_until = valid_until.to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&tenants, Type::UUID_ARRAY),
            (plan, Type::TEXT),
            (features, Type::TEXT),
            (usage_limits, Type::TEXT),
            (&valid_until, Type::TEXT),
            (auto_renew, Type::BOOL),
        ];
        // All three are sent at once. If the second fails, the third rolls back.
        let batch = async {
            tokio::try_join!(
                biased;
                self.0.batch_execute(BEGIN_WRITING),
                self.0.execute_typed(ADD, &parameters),
                self.0.batch_execute("COMMIT"),
            )
        };
        let ((), added, ()) = within_limit(batch).await?;
        Ok(added)
    }

    /// How many of these tenants, each named once, have a licence.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time.
    pub(crate) async fn count_licensed(&self, tenants: &[Uuid]) -> Result<u64, StoreError> {
        let row = within_limit(self.0.query_typed_one(COUNT_LICENSED, &[(&tenants, Type::UUID_ARRAY)])).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// Write down what was done.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time.
    pub(crate) async fn audit(&self, audit: &BulkAudit<'_>) -> Result<(), StoreError> {
        let (command, after) = (audit.command.to_string(), audit.after.to_string());
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&audit.action, Type::TEXT),
            (&audit.actor, Type::TEXT),
            (&audit.reason, Type::TEXT),
            (&command, Type::TEXT),
            (&after, Type::TEXT),
        ];
        within_limit(self.0.execute_typed(AUDIT, &parameters)).await.map(drop)
    }
}

/// Say in a sentence what the server would say in a riddle.
async fn check(client: &Client, source: &TenantTable) -> Result<(), StoreError> {
    let (table, id) = (source.table_sql(), &source.id);
    let described = client.query_typed_one(DESCRIBE, &[(&table, Type::TEXT), (id, Type::TEXT)]).await;
    let row = described.map_err(|error| failure(&error))?;
    let (has_table, has_column, columns): (bool, bool, &str) = (row.get(0), row.get(1), row.get(2));
    if !has_table {
        let message = format!("there is no table {table}; names are taken letter by letter: name it with --from");
        return Err(unavailable(message));
    }
    if !has_column {
        let id = quoted(id);
        return Err(unavailable(format!("{table} has no column {id}, but {columns}: name it with --id")));
    }
    Ok(())
}

async fn within_limit<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    match timeout(BATCH_LIMIT, work).await {
        Ok(Err(error)) if error.code() == Some(&SqlState::INVALID_COLUMN_REFERENCE) => {
            Err(unavailable("tenant_licenses has no primary key on tenant_id, which keeps licences apart".to_owned()))
        }
        Ok(done) => done.map_err(|error| failure(&error)),
        Err(_) => Err(unavailable(format!("no answer within {} s", BATCH_LIMIT.as_secs()))),
    }
}

/// As an identifier in SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The parts of `a.b`, of which any may be in double quotes.
fn split_names(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text;
    loop {
        let mut name = String::new();
        if let Some(inside) = rest.strip_prefix('"') {
            rest = inside;
            loop {
                let (part, after) = rest.split_once('"')?;
                name.push_str(part);
                rest = after;
                let Some(after) = rest.strip_prefix('"') else { break };
                name.push('"');
                rest = after;
            }
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            name.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        if name.is_empty() {
            return None;
        }
        names.push(name);
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_whatever_they_are() {
        for (from, sql) in [
            ("tenants", r#""tenants""#),
            ("Tenants", r#""Tenants""#),
            ("billing.tenants", r#""billing"."tenants""#),
            (r#""my.schema"."the ""table""""#, r#""my.schema"."the ""table""""#),
            ("x; DROP TABLE y --", r#""x; DROP TABLE y --""#),
            (r#"a"b"#, r#""a""b""#),
        ] {
            let table = TenantTable::new(from, "id").unwrap_or_else(|error| panic!("{from}: {error}"));
            assert_eq!(table.table_sql(), sql);
        }
        for from in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"\"", "\"a\"b", "a\0"] {
            assert!(TenantTable::new(from, "id").is_err(), "{from}");
        }
        assert!(TenantTable::new("tenants", "").is_err());
    }
}
