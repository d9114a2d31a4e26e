//! What is read of licences and their audit for people: in pages, so that neither side holds all of it.

use async_trait::async_trait;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde_json::Value;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::StoreError;
use super::ledger::{AuditEntry, Filter, Page};
use super::postgres::{Micros, Question, answers};
use super::postgres_server::failure;
use super::transactions::{Interrupted, Work};

/// The ids alone; the licences are then read as always. By its key, so that no cursor has to be kept open.
const PAGE: &str = "SELECT tenant_id FROM tenant_licenses WHERE ($1::uuid IS NULL OR tenant_id > $1) \
     AND ($2::text IS NULL OR plan_tier = $2) AND ($3::text IS NULL OR features::jsonb -> $3 = 'true') \
     AND ($4::text IS NULL OR valid_until >= $4::timestamptz) AND ($5::text IS NULL OR valid_until < $5::timestamptz) \
     ORDER BY tenant_id LIMIT $6";

const AUDIT_OF: &str = "SELECT at, action::text, actor, reason, outcome::text, command::text, before::text, after::text, \
     request_id, idempotency_key FROM license_audit WHERE tenant_id = $1 ORDER BY at DESC LIMIT $2";

/// How many licences a page has.
const PAGE_SIZE: i64 = 500;

/// A page that is to be read.
pub(super) struct Turning<'a> {
    pub(super) filter: &'a Filter,
    pub(super) after: Option<TenantId>,
}

/// In a transaction, since that knows the time zone of the tables.
#[async_trait]
impl Work for Turning<'_> {
    type Done = Page;

    async fn work(&self, client: &Client) -> Result<Page, Interrupted> {
        let Filter { plan, feature, ends_from, ends_before } = self.filter;
        let after = self.after.map(|tenant| *tenant.as_uuid());
        let time = |time: &Option<Timestamp>| time.map(|time| time.to_string());
        let (from, before) = (time(ends_from), time(ends_before));
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&after, Type::UUID),
            (plan, Type::TEXT),
            (feature, Type::TEXT),
            (&from, Type::TEXT),
            (&before, Type::TEXT),
            (&PAGE_SIZE, Type::INT8),
        ];
        let rows = client.query_typed(PAGE, &parameters).await?;
        let ids = rows.iter().map(|row| row.try_get::<_, Uuid>(0).map(TenantId::new)).collect::<Result<Vec<_>, _>>()?;
        let rows = Question::new(&ids).ask(client).await?;
        let is_last = i64::try_from(ids.len()).is_ok_and(|count| count < PAGE_SIZE);
        let answers = answers(&ids, &rows)?;
        Ok(Page { licenses: ids.into_iter().zip(answers).collect(), is_last })
    }
}

/// The latest `limit` entries of a tenant, the latest first.
///
/// # Errors
/// When they can't be read.
pub(super) async fn audit_of(client: &Client, tenant: TenantId, limit: i64) -> Result<Vec<Row>, tokio_postgres::Error> {
    client.query_typed(AUDIT_OF, &[(tenant.as_uuid(), Type::UUID), (&limit, Type::INT8)]).await
}

/// A row of [`audit_of`].
///
/// # Errors
/// When a column is of another type than this program has made it.
pub(super) fn audit_entry(row: &Row) -> Result<AuditEntry, StoreError> {
    let document = |index| -> Result<Value, tokio_postgres::Error> {
        let text: Option<&str> = row.try_get(index)?;
        Ok(text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
    };
    let read = || -> Result<AuditEntry, tokio_postgres::Error> {
        Ok(AuditEntry {
            at: Timestamp::from_micros(row.try_get::<_, Micros>(0)?.0),
            action: row.try_get(1)?,
            actor: row.try_get(2)?,
            reason: row.try_get(3)?,
            outcome: row.try_get(4)?,
            command: document(5)?,
            before: document(6)?,
            after: document(7)?,
            request_id: row.try_get(8)?,
            idempotency_key: row.try_get(9)?,
        })
    };
    read().map_err(|error| failure(&error))
}
