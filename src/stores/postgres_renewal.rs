//! What renewing asks of Postgres: licences that are due, locked in batches, and their new ends with the audit of each.

use std::time::Duration;

use licensing::license::MAX_FEATURES_BYTES;
use licensing::renewal::{Due, Renewed};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use secrecy::SecretString;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

use super::StoreError;
use super::postgres::Micros;
use super::postgres_server::{connect, failure, unavailable};

/// How long one batch may take, before it counts as failed.
const BATCH_LIMIT: Duration = Duration::from_secs(60);

/// How many licences a batch renews: as many as the triggers announce one by one, see `V004__change_notifications.sql`.
const BATCH: i64 = 500;

/// A connection that renews licences.
pub(crate) struct Renewals(Client);

/// A licence that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DueLicense {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its end.
    pub end: Timestamp,
}

/// A tenant that has something that ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WithEnds {
    /// Who.
    pub tenant: TenantId,
    /// Whether one of its add-ons has ended.
    pub has_ended_addon: bool,
    /// When features of its licence end, as JSON text; empty where that is too large to be read.
    pub features_until: Option<String>,
}

/// How many licences are due or past their grace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DueCounts {
    /// Due, and not past their grace.
    pub due: u64,
    /// Past their grace.
    pub lapsed: u64,
}

/// On whose behalf something is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RenewalAuthor<'a> {
    /// Who.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
    /// What was asked for, as the audit has it.
    pub command: &'a str,
}

/// The isolation level is said, since a stricter default of the server's would fail where somebody else has changed a row. A
/// time without a zone is UTC, whatever the columns' types.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL TimeZone = 'UTC'";

/// What somebody else has locked is being changed, perhaps renewed: it is passed over. A row that was changed before it could
/// be locked is looked at again by Postgres, in this isolation level.
const LOCK_DUE: &str = "SELECT tenant_id, valid_until FROM tenant_licenses \
     WHERE tenant_id > $1 AND coalesce(auto_renew, true) AND valid_until <= $2::timestamptz \
     AND valid_until > $3::timestamptz ORDER BY tenant_id LIMIT $4 FOR UPDATE SKIP LOCKED";

const RENEW: &str = "WITH renewed AS ( \
       UPDATE tenant_licenses AS l SET valid_until = later::timestamptz \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int8[]) AS list (id, former, later, periods) \
        WHERE l.tenant_id = id AND l.valid_until = former::timestamptz \
       RETURNING l.tenant_id, l.revision, former, later, periods) \
     INSERT INTO license_audit (tenant_id, action, actor, reason, outcome, command, before, after) \
     SELECT tenant_id, 'renew', $5, $6, 'applied', $7::jsonb || jsonb_build_object('periods', periods), \
            jsonb_build_object('license', jsonb_build_object('valid_until', former)), \
            jsonb_build_object('license', jsonb_build_object('valid_until', later, 'revision', revision)) \
       FROM renewed";

const COUNT: &str = "SELECT count(*) FILTER (WHERE valid_until > $2::timestamptz), \
     count(*) FILTER (WHERE valid_until <= $2::timestamptz) \
     FROM tenant_licenses WHERE coalesce(auto_renew, true) AND isfinite(valid_until) AND valid_until <= $1::timestamptz";

/// When features end is asked for as text: what is in there may be anything, and must not stop the others.
const WITH_ENDS: &str = "SELECT tenant_id, bool_or(has_ended_addon), max(ends) FROM ( \
       (SELECT tenant_id, true, NULL FROM tenant_addons \
         WHERE tenant_id > $1 AND valid_until <= $2::timestamptz ORDER BY tenant_id LIMIT $4) \
       UNION ALL \
       (SELECT tenant_id, false, CASE WHEN octet_length(features_until::text) <= $3 THEN features_until::text ELSE '' END \
          FROM tenant_licenses WHERE tenant_id > $1 AND features_until <> '{}' ORDER BY tenant_id LIMIT $4) \
     ) AS list (tenant_id, has_ended_addon, ends) GROUP BY tenant_id ORDER BY tenant_id LIMIT $4";

impl Renewals {
    /// Connect.
    ///
    /// # Errors
    /// When the database can't be reached.
    pub(crate) async fn open(url: &SecretString) -> Result<Self, StoreError> {
        Ok(Self(connect(url).await?))
    }

    /// How many licences are due, and how many have lapsed.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time.
    pub(crate) async fn count(&self, due: Due) -> Result<DueCounts, StoreError> {
        let (until, lapsed) = (due.until.to_string(), due.lapsed.to_string());
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&until, Type::TEXT), (&lapsed, Type::TEXT)];
        let rows = within_limit(self.in_utc(COUNT, &parameters)).await?;
        let row = rows.first().ok_or_else(|| unavailable("no answer".to_owned()))?;
        let count = |index| row.get::<_, i64>(index).unsigned_abs();
        Ok(DueCounts { due: count(0), lapsed: count(1) })
    }

    /// Renew one batch of what is due and has not lapsed, in a transaction of its own with the audit of each; in the order of
    /// the ids, those greater than `after`. `renew` says where an end goes, if anywhere. Answers what was due, none of it at
    /// the end, and how many were renewed.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time: then this batch may be renewed or not.
    pub(crate) async fn renew_batch(
        &self,
        after: Uuid,
        due: Due,
        renew: impl Fn(Timestamp) -> Option<Renewed>,
        author: RenewalAuthor<'_>,
    ) -> Result<(Vec<DueLicense>, u64), StoreError> {
        let (until, lapsed) = (due.until.to_string(), due.lapsed.to_string());
        let which: [(&(dyn ToSql + Sync), Type); 4] =
            [(&after, Type::UUID), (&until, Type::TEXT), (&lapsed, Type::TEXT), (&BATCH, Type::INT8)];
        let work = async {
            let ((), rows) =
                tokio::try_join!(biased; self.0.batch_execute(BEGIN), self.0.query_typed(LOCK_DUE, &which))?;
            let found: Vec<DueLicense> = rows
                .iter()
                .map(|row| {
                    let end = Timestamp::from_micros(row.try_get::<_, Micros>(1)?.0);
                    Ok(DueLicense { tenant: TenantId::new(row.try_get(0)?), end })
                })
                .collect::<Result<_, Error>>()?;
            let (mut ids, mut former, mut later, mut periods) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for license in &found {
                if let Some(renewed) = renew(license.end) {
                    ids.push(*license.tenant.as_uuid());
                    former.push(license.end.to_string());
                    later.push(renewed.end.to_string());
                    periods.push(i64::from(renewed.periods));
                }
            }
            let RenewalAuthor { actor, reason, command } = author;
            let what: [(&(dyn ToSql + Sync), Type); 7] = [
                (&ids, Type::UUID_ARRAY),
                (&former, Type::TEXT_ARRAY),
                (&later, Type::TEXT_ARRAY),
                (&periods, Type::INT8_ARRAY),
                (&actor, Type::TEXT),
                (&reason, Type::TEXT),
                (&command, Type::TEXT),
            ];
            let (renewed, ()) =
                tokio::try_join!(biased; self.0.execute_typed(RENEW, &what), self.0.batch_execute("COMMIT"))?;
            Ok((found, renewed))
        };
        within_limit(work).await
    }

    /// Some tenants with an add-on that has ended at `now`, or with features that end before their licence does; in the order
    /// of their ids, those greater than `after`; none at the end.
    ///
    /// # Errors
    /// When the database refuses or does not answer in time.
    pub(crate) async fn with_ends(&self, after: Uuid, now: Timestamp) -> Result<Vec<WithEnds>, StoreError> {
        let (now, bound) = (now.to_string(), i32::try_from(MAX_FEATURES_BYTES).unwrap_or(i32::MAX));
        let parameters: [(&(dyn ToSql + Sync), Type); 4] =
            [(&after, Type::UUID), (&now, Type::TEXT), (&bound, Type::INT4), (&BATCH, Type::INT8)];
        let rows = within_limit(self.in_utc(WITH_ENDS, &parameters)).await?;
        let read = |row: &Row| {
            Ok(WithEnds {
                tenant: TenantId::new(row.try_get(0)?),
                has_ended_addon: row.try_get(1)?,
                features_until: row.try_get(2)?,
            })
        };
        rows.iter().map(|row| read(row).map_err(|error| failure(&error))).collect()
    }

    /// One statement in a transaction of its own, for which times without a zone are UTC.
    async fn in_utc(&self, sql: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, Error> {
        let ((), rows, ()) = tokio::try_join!(
            biased;
            self.0.batch_execute(BEGIN),
            self.0.query_typed(sql, parameters),
            self.0.batch_execute("COMMIT"),
        )?;
        Ok(rows)
    }
}

async fn within_limit<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    match timeout(BATCH_LIMIT, work).await {
        Ok(done) => done.map_err(|error| failure(&error)),
        Err(_) => Err(unavailable(format!("no answer within {} s", BATCH_LIMIT.as_secs()))),
    }
}
