//! Limits in Postgres: leases, each by one conditional statement, and where their windows begin.

use async_trait::async_trait;
use jiff::civil::Date;
use licensing::config::Window;
use licensing::quota::Period;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::postgres_denials::Click;
use super::postgres_order::hold_alone;
use super::postgres_server::unavailable;
use super::transactions::{Interrupted, SHORT_LIMIT, TransactionMetrics, TransactionName, Transactions, Work};
use super::usage::{Batch, Lease, LeaseRequest, Posted, QuotaKey, Standing, UsageStore};
use super::{StoreError, UrlError};
use crate::secret::Secret;

/// What there is to grant, once what the request reports is taken into account.
macro_rules! available {
    () => {
        "($6 - used - $7 - greatest(reserved - $7 - $8, 0))"
    };
}

/// What is granted: far from the limit what is wished, near it only what is needed, and never more than there is.
macro_rules! granted {
    () => {
        concat!("greatest(0, least(", available!(), ", greatest($9, least($10, ", available!(), " / 8))))")
    };
}

/// A lease. All that it depends on are columns of the one row, so that Postgres works it out anew where another lease was
/// faster (READ COMMITTED). If the id is there already, the row is left alone and what was granted then is answered; if the
/// same request is under way on another connection, the second insert of the id fails, and undoes the whole.
const LEASE: &str = concat!(
    "WITH prior AS (SELECT granted FROM usage_batches WHERE id = $1), \
     taken AS ( \
       UPDATE usage_windows \
          SET used = used + $7, reserved = greatest(reserved - $7 - $8, 0) + ",
    granted!(),
    ", granted = ",
    granted!(),
    " WHERE tenant_id = $2 AND feature = $3 AND window_kind = $4 AND start_date = $5::text::date \
          AND NOT EXISTS (SELECT FROM prior) \
       RETURNING granted, used, reserved), \
     noted AS (INSERT INTO usage_batches (id, granted) SELECT $1, granted FROM taken) \
     SELECT granted, used, reserved FROM taken \
     UNION ALL \
     SELECT coalesce(prior.granted, 0), coalesce(w.used, 0), coalesce(w.reserved, 0) \
       FROM prior LEFT JOIN usage_windows AS w \
         ON w.tenant_id = $2 AND w.feature = $3 AND w.window_kind = $4 AND w.start_date = $5::text::date"
);

/// What has been used in the window before there was a limit counts.
const BEGIN_WINDOW: &str = "INSERT INTO usage_windows (tenant_id, feature, window_kind, start_date, end_date, used) \
     SELECT $1, $2, $3, $4::text::date, $5::text::date, greatest(coalesce(sum(usage_count), 0), 0)::bigint \
       FROM feature_usage \
      WHERE tenant_id = $1 AND feature_name = $2 AND usage_date >= $4::text::date AND usage_date < $5::text::date \
     ON CONFLICT DO NOTHING";

/// From the licence's begin, where that is a day of this age.
const PUT_ANCHOR: &str = "INSERT INTO usage_anchors (tenant_id, anchor) \
     SELECT $1, coalesce(min(valid_from::date), current_date) FROM tenant_licenses \
      WHERE tenant_id = $1 AND valid_from >= '1970-01-01' AND valid_from < '9999-01-01' \
     ON CONFLICT DO NOTHING";

const ANCHOR: &str = "SELECT anchor::text FROM usage_anchors WHERE tenant_id = $1";

/// A write, since a server that can be read and not be written (a standby, a full disk, a missing right) is of no use here. The
/// row is everybody's.
const PROBE: &str = "INSERT INTO usage_batches (id) VALUES ('00000000-0000-0000-0000-000000000000') \
     ON CONFLICT (id) DO UPDATE SET at = now()";

/// More than any process counts between two reports; so many of these can be added without an overflow that nobody does.
const MOST: u64 = 1 << 53;

/// [`UsageStore`] in the primary.
pub(crate) struct PostgresUsage {
    transactions: Transactions,
}

impl PostgresUsage {
    /// Prepare a pool. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used.
    pub(crate) fn new(url: &Secret, metrics: TransactionMetrics) -> Result<Self, UrlError> {
        Ok(Self { transactions: Transactions::new(url, SHORT_LIMIT, metrics)? })
    }
}

#[async_trait]
impl UsageStore for PostgresUsage {
    async fn post(&self, batch: &Batch) -> Result<Posted, StoreError> {
        if let Some(posted) = self.transactions.at_once(TransactionName::Usage, batch).await? {
            return Ok(posted);
        }
        // Somebody has dropped them, which turns licensing off: nobody has a licence. The rest has its tables.
        let without_counts = Batch { counts: Vec::new(), ..batch.clone() };
        let posted = self.transactions.at_once(TransactionName::Usage, &without_counts).await?.unwrap_or_default();
        let without_license = batch.counts.iter().map(|count| count.count).sum();
        tracing::warn!(uses = without_license, "usage is dropped: feature_usage or tenant_licenses is not there");
        Ok(Posted { without_license, ..posted })
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Lease, StoreError> {
        if let Some(lease) = self.transactions.at_once(TransactionName::Lease, request).await? {
            return Ok(lease);
        }
        let lease = self.transactions.at_once(TransactionName::Window, &Beginning(request)).await?;
        lease.ok_or_else(|| unavailable("the window of a limit was removed as soon as it was there".to_owned()))
    }

    async fn anchor(&self, tenant: TenantId) -> Result<Date, StoreError> {
        self.transactions.at_once(TransactionName::Window, &Anchoring(tenant)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.transactions.probe(PROBE).await
    }

    async fn clicked(&self, tenant: TenantId, feature: &str, at: Timestamp) -> Result<(), StoreError> {
        self.transactions.at_once(TransactionName::Click, &Click { tenant, feature, at }).await
    }

    fn close_idle(&self) {
        self.transactions.close_idle();
    }
}

#[async_trait]
impl Work for LeaseRequest {
    /// None: there is no such window yet.
    type Done = Option<Lease>;

    async fn work(&self, client: &Client) -> Result<Option<Lease>, Interrupted> {
        Ok(self.take(client).await?)
    }
}

impl LeaseRequest {
    async fn take(&self, client: &Client) -> Result<Option<Lease>, Error> {
        let Key { feature, kind, start, .. } = Key::of(&self.key);
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let [spent, returned, needed, wished] = [self.spent, self.returned, self.needed, self.wished].map(amount);
        let parameters: [(&(dyn ToSql + Sync), Type); 10] = [
            (&self.id, Type::UUID),
            (self.key.tenant.as_uuid(), Type::UUID),
            (&feature, Type::TEXT),
            (&kind, Type::TEXT),
            (&start, Type::TEXT),
            (&limit, Type::INT8),
            (&spent, Type::INT8),
            (&returned, Type::INT8),
            (&needed, Type::INT8),
            (&wished, Type::INT8),
        ];
        let rows = client.query_typed(LEASE, &parameters).await?;
        let read = |row: &Row| Ok(Lease { granted: number(row, 0)?, standing: standing(row, 1)? });
        rows.first().map(read).transpose()
    }
}

/// The first lease of a window, which begins with it.
struct Beginning<'a>(&'a LeaseRequest);

#[async_trait]
impl Work for Beginning<'_> {
    type Done = Option<Lease>;

    async fn work(&self, client: &Client) -> Result<Option<Lease>, Interrupted> {
        let Key { tenant, feature, kind, start, end } = Key::of(&self.0.key);
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (tenant.as_uuid(), Type::UUID),
            (&feature, Type::TEXT),
            (&kind, Type::TEXT),
            (&start, Type::TEXT),
            (&end, Type::TEXT),
        ];
        // The last looks for itself, and so sees the window whoever has begun it.
        let (_, _, lease) = tokio::try_join!(
            biased;
            hold_alone(client, tenant),
            client.execute_typed(BEGIN_WINDOW, &parameters),
            self.0.take(client),
        )?;
        Ok(lease)
    }
}

/// A tenant whose windows get their anchor, if they have none.
struct Anchoring(TenantId);

#[async_trait]
impl Work for Anchoring {
    type Done = Date;

    async fn work(&self, client: &Client) -> Result<Date, Interrupted> {
        let tenant: [(&(dyn ToSql + Sync), Type); 1] = [(self.0.as_uuid(), Type::UUID)];
        // The second looks for itself, and so sees what somebody else has put there meanwhile.
        let (_, row) = tokio::try_join!(
            biased;
            client.execute_typed(PUT_ANCHOR, &tenant),
            client.query_typed_one(ANCHOR, &tenant),
        )?;
        let anchor = row.try_get::<_, &str>(0)?.parse();
        Ok(anchor.map_err(|_| unavailable(format!("the anchor of tenant {} is no day", self.0)))?)
    }
}

/// A limit's place, as its columns have it.
pub(super) struct Key<'a> {
    pub(super) tenant: TenantId,
    pub(super) feature: &'a str,
    pub(super) kind: &'static str,
    pub(super) start: String,
    pub(super) end: String,
}

impl<'a> Key<'a> {
    pub(super) fn of(key: &'a QuotaKey) -> Self {
        let Period { window, start, end } = key.period;
        let kind = match window {
            Window::Day => "day",
            Window::Month => "month",
            Window::Anchored => "anchored",
            Window::Lifetime => "lifetime",
        };
        let end = end.map_or_else(|| "infinity".to_owned(), |end| end.to_string());
        Self { tenant: key.tenant, feature: &key.feature, kind, start: start.to_string(), end }
    }
}

/// As a column takes it.
pub(super) fn amount(count: u64) -> i64 {
    i64::try_from(count.min(MOST)).unwrap_or(i64::MAX)
}

/// `used` and `reserved`, beginning at a column.
pub(super) fn standing(row: &Row, index: usize) -> Result<Standing, Error> {
    Ok(Standing { used: number(row, index)?, reserved: number(row, index + 1)? })
}

/// A column that is not negative.
pub(super) fn number(row: &Row, index: usize) -> Result<u64, Error> {
    Ok(u64::try_from(row.try_get::<_, i64>(index)?).unwrap_or_default())
}

#[cfg(test)]
mod tests;
