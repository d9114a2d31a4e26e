//! What pruning asks of Postgres: how many rows are older than a moment, and their removal in batches.

use std::time::Duration;

use licensing::time::Timestamp;
use secrecy::SecretString;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::StoreError;
use super::postgres_server::{connect, failure, unavailable};

/// How long one batch may take, before it counts as failed.
const BATCH_LIMIT: Duration = Duration::from_secs(60);

/// How long counting may take: it reads an index from its beginning.
const COUNT_LIMIT: Duration = Duration::from_secs(600);

/// The isolation level is said, since a stricter default of the server's would fail where somebody else has changed a row. Days
/// begin in UTC. What the server allows an application's queries is not meant for this.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL TimeZone = 'UTC'; \
     SET LOCAL statement_timeout = 0";

/// A table whose rows grow old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AgingTable {
    /// Usage by day.
    FeatureUsage,
    /// Limits whose period is over.
    UsageWindows,
    /// Denials.
    FeatureDenialEvents,
    /// Denials that would have been.
    ShadowDenialEvents,
    /// Clicks and upgrades.
    UpgradeMarks,
    /// What has been written already.
    UsageBatches,
}

/// A connection that removes rows.
pub(crate) struct Pruning(Client);

/// A batch that was removed.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    /// How many rows.
    pub rows: u64,
    /// How old the youngest was, as the column has it: the next batch begins there, and not among what has been removed.
    pub reached: Option<String>,
}

impl AgingTable {
    /// Every table, in the order in which they are pruned.
    pub(crate) const ALL: [Self; 6] = [
        Self::FeatureUsage,
        Self::UsageWindows,
        Self::FeatureDenialEvents,
        Self::ShadowDenialEvents,
        Self::UpgradeMarks,
        Self::UsageBatches,
    ];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FeatureUsage => "feature_usage",
            Self::UsageWindows => "usage_windows",
            Self::FeatureDenialEvents => "feature_denial_events",
            Self::ShadowDenialEvents => "shadow_denial_events",
            Self::UpgradeMarks => "upgrade_marks",
            Self::UsageBatches => "usage_batches",
        }
    }

    /// What says how old a row is, and its type.
    const fn age(self) -> (&'static str, &'static str) {
        match self {
            Self::FeatureUsage => ("usage_date", "date"),
            Self::UsageWindows => ("end_date", "date"),
            Self::FeatureDenialEvents | Self::ShadowDenialEvents => ("created_at", "timestamptz"),
            Self::UpgradeMarks => ("greatest(clicked_at, upgraded_at)", "timestamptz"),
            Self::UsageBatches => ("at", "timestamptz"),
        }
    }

    /// How many rows are older than $1.
    fn count_sql(self) -> String {
        let (age, ty) = self.age();
        format!("SELECT count(*) FROM {} WHERE {age} < $1::text::timestamptz::{ty}", self.name())
    }

    /// Remove at most $3 rows that are older than $1, the oldest first, beginning at $2. What somebody else has locked is
    /// passed over: he removes it perhaps. Locked rows stay where they are, so that their places name them.
    pub(super) fn remove_sql(self) -> String {
        let (table, (age, ty)) = (self.name(), self.age());
        format!(
            "WITH gone AS (DELETE FROM {table} WHERE ctid = ANY (ARRAY( \
               SELECT ctid FROM {table} WHERE {age} < $1::text::timestamptz::{ty} AND {age} >= $2::text::{ty} \
                ORDER BY {age} LIMIT $3 FOR UPDATE SKIP LOCKED)) RETURNING {age} AS age) \
             SELECT count(*), max(age)::text FROM gone"
        )
    }
}

impl Pruning {
    /// Connect.
    ///
    /// # Errors
    /// When the database can't be reached.
    pub(crate) async fn open(url: &SecretString) -> Result<Self, StoreError> {
        Ok(Self(connect(url).await?))
    }

    /// How many rows are older than `before`.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time.
    pub(crate) async fn count(&self, table: AgingTable, before: Timestamp) -> Result<u64, StoreError> {
        let before = before.to_string();
        let (count, parameters) = (table.count_sql(), [(&before as &(dyn ToSql + Sync), Type::TEXT)]);
        let work = async {
            let ((), row, ()) = tokio::try_join!(
                biased;
                self.0.batch_execute(BEGIN),
                self.0.query_typed_one(&count, &parameters),
                self.0.batch_execute("COMMIT"),
            )?;
            row.try_get::<_, i64>(0)
        };
        Ok(within(COUNT_LIMIT, work).await?.unsigned_abs())
    }

    /// Remove one batch of at most `rows` rows that are older than `before`, in a transaction of its own; `from` is where the
    /// batch before it ended. Fewer than `rows`: there are no more.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time: then this batch may be removed or not.
    pub(crate) async fn remove(
        &self,
        table: AgingTable,
        before: Timestamp,
        from: Option<&str>,
        rows: u32,
    ) -> Result<Removed, StoreError> {
        let (remove, before, from) = (table.remove_sql(), before.to_string(), from.unwrap_or("-infinity"));
        let rows = i64::from(rows);
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&before, Type::TEXT), (&from, Type::TEXT), (&rows, Type::INT8)];
        let work = async {
            let ((), row, ()) = tokio::try_join!(
                biased;
                self.0.batch_execute(BEGIN),
                self.0.query_typed_one(&remove, &parameters),
                self.0.batch_execute("COMMIT"),
            )?;
            Ok(Removed { rows: row.try_get::<_, i64>(0)?.unsigned_abs(), reached: row.try_get(1)? })
        };
        within(BATCH_LIMIT, work).await
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| failure(&error)),
        Err(_) => Err(unavailable(format!("no answer within {} s", limit.as_secs()))),
    }
}
