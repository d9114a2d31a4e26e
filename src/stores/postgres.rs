//! Licences in Postgres: the source. They may be read from a replica, as long as it is not behind what is known to have
//! changed.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use licensing::license::{License, LicenseRow, MAX_FEATURES_BYTES, Unreadable};
use licensing::tenant::TenantId;
use licensing::view::Usage;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::position::InvalidPosition;
use super::postgres_server::{PoolOptions, Server, explain, failure, unavailable};
use super::{Answer, Breaker, Position, Since, Source, StoreError, StoreName, UrlError, UsageSource};
use crate::secret::Secret;

/// The Postgres that holds `tenant_licenses`: one server, or a read replica and its primary.
pub(crate) struct Postgres {
    /// Where licences are read.
    reads: Arc<Server>,
    /// Where that may be a replica: what it is held against.
    primary: Option<Primary>,
    options: PoolOptions,
}

/// The server that a replica follows.
struct Primary {
    server: Server,
    /// The latest [`Position`] that it is known to have had, in bytes; 0 while nothing is known.
    floor: AtomicU64,
    /// Of the replica: while that is down, the primary is asked at once.
    replica: Arc<Breaker>,
    lagging: IntCounter,
    /// When that position was last told to us, or asked for.
    known_at: Mutex<Option<Instant>>,
}

/// A document larger than what is read is not sent over the wire: its size alone says what is wrong.
pub(super) const LOAD: &str = "SELECT tenant_id, plan_tier::text, \
     CASE WHEN octet_length(features::text) <= $2 THEN features::text END, octet_length(features::text), \
     CASE WHEN octet_length(usage_limits::text) <= $2 THEN usage_limits::text END, octet_length(usage_limits::text), \
     CASE WHEN octet_length(features_until::text) <= $2 THEN features_until::text END, \
     octet_length(features_until::text), valid_from, valid_until, coalesce(auto_renew, true), revision \
     FROM tenant_licenses WHERE tenant_id = ANY($1)";

/// Whether there is a table with the columns that [`LOAD`] names, and a right to read them. Asking whether a document is null
/// does not fetch it.
const PROBE: &str = "SELECT tenant_id, plan_tier, features IS NULL, usage_limits IS NULL, \
     features_until IS NULL, valid_from, valid_until, auto_renew, revision FROM tenant_licenses LIMIT 1";

/// What a tenant has used since a day, by feature: as many as a licence could ever name. The second bound is for the index, which
/// knows no features.
pub(super) const USAGE: &str = "SELECT feature_name::text, coalesce(sum(usage_count), 0)::bigint FROM feature_usage \
     LEFT JOIN unnest($3::text[], $4::text[]) AS named (feature, since) ON named.feature = feature_name \
     WHERE tenant_id = $1 AND usage_date >= coalesce(named.since::date, $2::text::date) \
       AND usage_date >= (SELECT least($2::text::date, min(since::date)) FROM unnest($4::text[]) AS list (since)) \
     GROUP BY feature_name ORDER BY feature_name LIMIT 1000";

/// How far a server is, as [`Replayed::read`] reads it.
const REPLAYED: &str = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text";

/// The same for a probe, which needs a table to be there.
const PROBE_REPLICA: &str =
    "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, (SELECT 1 FROM tenant_licenses LIMIT 1)";

/// Where the next record will begin, and not how far the log has been written: a commit that is not waited for
/// (`synchronous_commit = off`) is seen before it is written.
pub(super) const PRIMARY_POSITION: &str =
    "SELECT lsn::text, (pg_walfile_name_offset(lsn)).file_offset FROM pg_current_wal_insert_lsn() AS lsn";

/// The share of the time that a replica may take: the rest is for asking the primary.
const REPLICA_SHARE: u32 = 2;

/// The share of the time that asking for the primary's position may take.
const LEARNING_SHARE: u32 = 4;

impl Postgres {
    /// Prepare pools. Nothing is connected yet. Licences are read from `reads`. If `primary` is another server, `reads` may
    /// be a replica of it: then each of its answers that is older than what [`Source::require`] says is counted by
    /// `lagging`, and the primary is asked instead.
    ///
    /// # Errors
    /// When a URL or its CA file can't be used.
    pub(crate) fn new(
        reads: &Secret,
        primary: Option<&Secret>,
        options: PoolOptions,
        lagging: IntCounter,
    ) -> Result<Self, UrlError> {
        let primary = primary.map(|url| {
            let server = Server::new(url, options)?;
            let replica = Breaker::named("postgres replica", options.timeout);
            Ok(Primary { server, floor: AtomicU64::new(0), replica, lagging, known_at: Mutex::default() })
        });
        Ok(Self { reads: Arc::new(Server::new(reads, options)?), primary: primary.transpose()?, options })
    }

    /// Where the primary's log is now: whatever a transaction that has been committed by now has changed is before it.
    ///
    /// # Errors
    /// When the primary can't be asked, or is a standby.
    async fn primary_position(&self, deadline: Instant) -> Result<Position, StoreError> {
        let server = self.primary.as_ref().map_or(&*self.reads, |primary| &primary.server);
        let row = server.run(deadline, async |client| client.query_typed_one(PRIMARY_POSITION, &[]).await).await?;
        position(&row)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.options.timeout
    }

    /// Ask the replica, and the primary where it is behind or does not answer.
    async fn load_from_replica(&self, primary: &Primary, question: &Question) -> Result<Vec<Row>, StoreError> {
        let deadline = self.deadline();
        self.learn_position(primary).await;
        let mut behind = None;
        if primary.replica.allows() {
            let share = deadline - self.options.timeout / REPLICA_SHARE;
            match self.reads.run(share, async |client| question.ask_replica(client).await).await {
                Ok((replayed, rows)) if replayed.reaches(primary.floor()) => return Ok(rows),
                Ok((replayed, rows)) => {
                    primary.lagging.inc();
                    behind = Some((replayed, rows));
                }
                Err(error) => self.report_replica(primary, &error),
            }
        }
        let error = match primary.server.run(deadline, async |client| question.ask(client).await).await {
            Ok(rows) => return Ok(rows),
            Err(error) => error,
        };
        match behind {
            None => Err(error),
            Some((_, rows)) if primary.floor() == Position::default() => Ok(rows),
            Some((replayed, _)) => Err(left_behind(&error, replayed, primary.floor())),
        }
    }

    /// A replica is held against where the primary was a moment ago. If no change feed says so, ask for it.
    async fn learn_position(&self, primary: &Primary) {
        const A_MOMENT: Duration = Duration::from_secs(2);
        let now = Instant::now();
        {
            let mut known_at = primary.known_at.lock();
            if known_at.is_some_and(|known_at| now < known_at + A_MOMENT) {
                return;
            }
            // Whoever comes meanwhile does not ask as well.
            *known_at = Some(now);
        }
        // If it does not answer, it commits nothing that we could know of; the time is wanted for the look-up.
        if let Ok(position) = self.primary_position(now + self.options.timeout / LEARNING_SHARE).await {
            self.require(position);
        }
    }

    fn report_replica(&self, primary: &Primary, error: &StoreError) {
        let reads = Arc::clone(&self.reads);
        let probe = move || {
            let reads = Arc::clone(&reads);
            async move { reads.probe(PROBE).await.map(drop) }
        };
        match error {
            StoreError::Late { .. } => primary.replica.look_into(&Handle::current(), probe),
            _ => primary.replica.report_failure(&Handle::current(), error, probe),
        }
    }

    /// As a look-up would find out: whether the replica counts, or else the primary answers.
    async fn probe_replica(&self, primary: &Primary) -> Result<(), StoreError> {
        let replica = match self.reads.probe(PROBE_REPLICA).await {
            Ok(rows) => rows.first().map(Replayed::read),
            Err(_) => None,
        };
        let floor = primary.floor();
        if replica.is_some_and(|replayed| replayed.reaches(floor)) {
            return Ok(());
        }
        match (primary.server.probe(PROBE).await, replica) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(_)) if floor == Position::default() => Ok(()),
            (Err(error), Some(replayed)) => Err(left_behind(&error, replayed, floor)),
            (Err(error), None) => Err(error),
        }
    }
}

/// The first two columns of a row that begins as [`PRIMARY_POSITION`]'s.
pub(super) fn position(row: &Row) -> Result<Position, StoreError> {
    let column = |error: tokio_postgres::Error| failure(&error);
    let (text, in_segment): (&str, i32) = (row.try_get(0).map_err(column)?, row.try_get(1).map_err(column)?);
    let position: Position = text.parse().map_err(|error: InvalidPosition| unavailable(error.to_string()))?;
    Ok(position.before_header(u64::from(in_segment.unsigned_abs())))
}

impl Primary {
    fn floor(&self) -> Position {
        Position::new(self.floor.load(Ordering::Acquire))
    }
}

/// What is asked: the licences of some tenants.
pub(super) struct Question {
    ids: Vec<Uuid>,
    bound: i32,
}

impl Question {
    pub(super) fn new(tenants: &[TenantId]) -> Self {
        let ids = tenants.iter().map(|tenant| *tenant.as_uuid()).collect();
        Self { ids, bound: i32::try_from(MAX_FEATURES_BYTES).unwrap_or(i32::MAX) }
    }

    /// One unnamed statement: one round trip, and nothing that a pooler in transaction mode would mix up.
    pub(super) async fn ask(&self, client: &Client) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.ask_by(client, LOAD).await
    }

    /// The same by a statement that says more than [`LOAD`].
    pub(super) async fn ask_by(&self, client: &Client, load: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
        client.query_typed(load, &[(&self.ids, Type::UUID_ARRAY), (&self.bound, Type::INT4)]).await
    }

    /// The rows, and before them how far the replica was. Two statements, since a single one looks at the rows as they were
    /// before it asks for the position; in one transaction, so that no pooler sends them to two servers; in this isolation
    /// level each looks for itself. All are sent at once: one round trip.
    async fn ask_replica(&self, client: &Client) -> Result<(Replayed, Vec<Row>), tokio_postgres::Error> {
        let ((), replayed, rows, ()) = tokio::try_join!(
            biased;
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"),
            client.query_typed_one(REPLAYED, &[]),
            self.ask(client),
            client.batch_execute("COMMIT"),
        )?;
        Ok((Replayed::read(&replayed), rows))
    }
}

/// How far a server is that may be a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replayed {
    /// It is no replica: what it says is so.
    Everything,
    /// It has replayed the primary's log up to here.
    UpTo(Position),
    /// It is a replica and does not say how far it is.
    Unknown,
}

impl Replayed {
    fn read(row: &Row) -> Self {
        let position = || row.try_get::<_, Option<&str>>(1).ok()??.parse().ok();
        match row.try_get::<_, bool>(0) {
            Ok(false) => Self::Everything,
            _ => position().map_or(Self::Unknown, Self::UpTo),
        }
    }

    fn reaches(self, floor: Position) -> bool {
        match self {
            Self::Everything => true,
            Self::UpTo(position) => position >= floor,
            Self::Unknown => false,
        }
    }
}

/// The primary's failure, where a replica did answer.
fn left_behind(error: &StoreError, replayed: Replayed, floor: Position) -> StoreError {
    let replayed = match replayed {
        Replayed::UpTo(position) => position.to_string(),
        _ => "an unknown position".to_owned(),
    };
    let message = format!(
        "the read replica lags behind the primary and the primary does not answer: {error} (replayed {replayed}, \
         required {floor})"
    );
    match error {
        StoreError::Late { .. } => StoreError::late(StoreName::Postgres, message),
        _ => unavailable(message),
    }
}

#[async_trait]
impl Source for Postgres {
    async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError> {
        let question = Question::new(tenants);
        let rows = match &self.primary {
            None => self.reads.run(self.deadline(), async |client| question.ask(client).await).await?,
            Some(primary) => self.load_from_replica(primary, &question).await?,
        };
        answers(tenants, &rows)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        match &self.primary {
            None => self.reads.probe(PROBE).await.map(drop),
            Some(primary) => self.probe_replica(primary).await,
        }
    }

    async fn warm_up(&self) -> Result<(), StoreError> {
        let opened = self.reads.run(self.deadline(), async |client| client.query_typed(PROBE, &[]).await).await;
        match (opened, &self.primary) {
            (Err(_), Some(primary)) => self.probe_replica(primary).await,
            (opened, _) => opened.map(drop),
        }
    }

    fn queries_at_once(&self) -> usize {
        self.options.max_connections
    }

    fn name(&self) -> StoreName {
        StoreName::Postgres
    }

    fn close_idle(&self) {
        self.reads.close_idle();
        if let Some(primary) = &self.primary {
            primary.server.close_idle();
        }
    }

    fn require(&self, position: Position) {
        if let Some(primary) = &self.primary {
            primary.floor.fetch_max(position.bytes(), Ordering::AcqRel);
            *primary.known_at.lock() = Some(Instant::now());
        }
    }

    fn restart_from(&self, position: Position) {
        if let Some(primary) = &self.primary {
            primary.floor.store(position.bytes(), Ordering::Release);
            *primary.known_at.lock() = Some(Instant::now());
        }
    }

    fn reads_replica(&self) -> bool {
        self.primary.is_some()
    }
}

#[async_trait]
impl UsageSource for Postgres {
    async fn usage(&self, tenant: TenantId, since: &Since) -> Result<Usage, StoreError> {
        let day = since.day.to_string();
        let features: Vec<&str> = since.of.iter().map(|(feature, _)| &**feature).collect();
        let days: Vec<String> = since.of.iter().map(|(_, day)| day.to_string()).collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (tenant.as_uuid(), Type::UUID),
            (&day, Type::TEXT),
            (&features, Type::TEXT_ARRAY),
            (&days, Type::TEXT_ARRAY),
        ];
        let rows = self.reads.run(self.deadline(), async |client| client.query_typed(USAGE, &parameters).await).await?;
        let read = |row: &Row| Ok((Box::from(row.try_get::<_, &str>(0)?), row.try_get(1)?));
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|error| failure(&error))
    }
}

/// Microseconds since the Unix epoch, from `TIMESTAMP` (taken as UTC) or `TIMESTAMPTZ`; both infinities are extreme values.
pub(super) struct Micros(pub(super) i64);

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        /// From 1970-01-01, the Unix epoch, to 2000-01-01, Postgres's.
        const BETWEEN_EPOCHS: i64 = 946_684_800_000_000;
        let since_2000 = i64::from_be_bytes(raw.try_into()?);
        Ok(Self(match since_2000 {
            i64::MAX | i64::MIN => since_2000,
            finite => finite.saturating_add(BETWEEN_EPOCHS),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TIMESTAMP | Type::TIMESTAMPTZ)
    }
}

/// The rows of [`LOAD`] as answers in the order of `tenants`.
pub(super) fn answers(tenants: &[TenantId], rows: &[Row]) -> Result<Vec<Answer>, StoreError> {
    let mut found: HashMap<Uuid, Answer> = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: Uuid = row.try_get(0).map_err(|error| failure(&error))?;
        let answer = match found.contains_key(&id) {
            false => read(TenantId::new(id), row).map(Some),
            // A table made by hand has no primary key perhaps. Which of the two is meant is not for us to guess.
            true => Err(Unreadable::Foreign("the tenant has two rows".to_owned())),
        };
        found.insert(id, answer);
    }
    Ok(tenants.iter().map(|tenant| found.get(tenant.as_uuid()).cloned().unwrap_or(Ok(None))).collect())
}

/// Read a row of [`LOAD`]. Tables made by hand may lack constraints: a column that is null or of another type is a fault of
/// the row.
fn read(tenant: TenantId, row: &Row) -> Result<License, Unreadable> {
    fn get<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, Unreadable> {
        row.try_get(index).map_err(|error| Unreadable::Foreign(explain(&error)))
    }
    let document = |column, index| match get::<Option<String>>(row, index)? {
        Some(document) => Ok(document),
        None => match get::<Option<i32>>(row, index + 1)? {
            Some(bytes) => Err(Unreadable::TooLarge { column, bytes: usize::try_from(bytes).unwrap_or_default() }),
            None => Err(Unreadable::NotAnObject { column }),
        },
    };
    let row = LicenseRow {
        plan: get(row, 1)?,
        features: document("features", 2)?,
        usage_limits: document("usage_limits", 4)?,
        features_until: document("features_until", 6)?,
        valid_from: get::<Micros>(row, 8)?.0,
        valid_until: get::<Micros>(row, 9)?.0,
        auto_renew: get(row, 10)?,
        revision: get(row, 11)?,
    };
    License::from_row(tenant, &row)
}

#[cfg(test)]
mod tests;
