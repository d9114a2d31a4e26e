//! Changes of licences in Postgres: the row, its add-ons and the audit in one transaction.

use async_trait::async_trait;
use licensing::amend::{Addon, Holding};
use licensing::license::License;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

use super::ledger::{AuditEntry, Entered, Filter, Ledger, LedgerError, Order, Outcome, Page};
use super::postgres::{LOAD, Micros, Question, answers};
use super::postgres_denials::{gained, mark_upgraded};
use super::postgres_feed::CHANGES;
use super::postgres_reports::{Turning, audit_entry, audit_of};
use super::postgres_server::{failure, unavailable};
use super::transactions::{
    Interrupted, LIMIT, TransactionError, TransactionMetrics, TransactionName, Transactions, Work,
};
use super::{Position, StoreError, StoreName, UrlError};
use crate::secret::Secret;

/// On which orders that are only written down are announced.
const REQUESTS: &str = "dotmac_license_requests";

/// Orders for one tenant wait for each other, whether or not there is a row to lock.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, 110429857472867))";

const ADDONS: &str = "SELECT feature::text, limit_delta, valid_until, reason FROM tenant_addons \
     WHERE tenant_id = $1 ORDER BY feature::text COLLATE \"C\"";

const DELETE_ADDON: &str = "DELETE FROM tenant_addons WHERE tenant_id = $1 AND feature = $2";

const PUT_ADDON: &str = "INSERT INTO tenant_addons (tenant_id, feature, limit_delta, valid_until, reason) \
     VALUES ($1, $2, $3, $4::timestamptz, $5) ON CONFLICT (tenant_id, feature) DO UPDATE \
     SET limit_delta = EXCLUDED.limit_delta, valid_until = EXCLUDED.valid_until, reason = EXCLUDED.reason";

const INSERT: &str = "INSERT INTO tenant_licenses (tenant_id, plan_tier, features, features_until, usage_limits, \
     valid_from, valid_until, auto_renew) \
     VALUES ($1, $2, $3::jsonb, $4::jsonb, $5::jsonb, $6::timestamptz, $7::timestamptz, $8) RETURNING revision";

/// Of this moment, and not of the transaction's begin: others may have been before it.
const AUDIT: &str = "INSERT INTO license_audit (id, at, tenant_id, action, actor, reason, outcome, command, before, after, \
     request_id, idempotency_key) \
     VALUES ($1, timezone('utc', clock_timestamp()), $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb, $9::jsonb, $10, $11)";

const EARLIER: &str = "SELECT command::text, outcome::text, before::text, after::text FROM license_audit \
     WHERE tenant_id = $1 AND idempotency_key = $2";

/// The write side of `tenant_licenses`.
pub(crate) struct PostgresLedger {
    transactions: Transactions,
}

impl PostgresLedger {
    /// Prepare a pool to the primary. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used.
    pub(crate) fn new(url: &Secret, metrics: TransactionMetrics) -> Result<Self, UrlError> {
        Ok(Self { transactions: Transactions::new(url, LIMIT, metrics)? })
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn enter(&self, order: &Order<'_>) -> Result<Entered, LedgerError> {
        let name = if order.apply { TransactionName::Amend } else { TransactionName::Request };
        let (entered, position) = self.transactions.run(name, order).await?;
        let entered = entered.ok_or(LedgerError::KeyReused)?;
        Ok(Entered { position, ..entered })
    }

    async fn holding(&self, tenant: TenantId) -> Result<Holding, StoreError> {
        let rows = self.transactions.ask(async |client| rows(client, tenant, LOAD).await).await?;
        holding(tenant, &rows)
    }

    async fn page(&self, filter: &Filter, after: Option<TenantId>) -> Result<Page, StoreError> {
        let page = self.transactions.run(TransactionName::Report, &Turning { filter, after }).await;
        page.map(|(page, _)| page).map_err(|error| match error {
            TransactionError::Failed(error) => error,
            TransactionError::Unknown(message) => unavailable(message),
        })
    }

    async fn audit(&self, tenant: TenantId, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = self.transactions.ask(async |client| audit_of(client, tenant, limit.into()).await).await?;
        rows.iter().map(audit_entry).collect()
    }

    async fn notify(&self, message: &str) -> Result<Option<Position>, LedgerError> {
        let ((), position) = self.transactions.run(TransactionName::Notify, &Notice(message)).await?;
        Ok(Some(position.unwrap_or_default()))
    }

    fn close_idle(&self) {
        self.transactions.close_idle();
    }
}

/// What listeners are told.
struct Notice<'a>(&'a str);

#[async_trait]
impl Work for Notice<'_> {
    type Done = ();

    async fn work(&self, client: &Client) -> Result<(), Interrupted> {
        Ok(notify(client, CHANGES, self.0).await?)
    }
}

#[async_trait]
impl Work for Order<'_> {
    /// None: its idempotency key stands for another order.
    type Done = Option<Entered>;

    async fn work(&self, client: &Client) -> Result<Option<Entered>, Interrupted> {
        enter(client, self).await
    }
}

/// The work of one transaction.
async fn enter(client: &Client, order: &Order<'_>) -> Result<Option<Entered>, Interrupted> {
    client.query_typed(LOCK, &[(&order.tenant.to_string(), Type::TEXT)]).await?;
    if let Some(key) = &order.author.idempotency_key {
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(order.tenant.as_uuid(), Type::UUID), (key, Type::TEXT)];
        if let Some(row) = client.query_typed(EARLIER, &parameters).await?.first() {
            let earlier = Earlier::read(row)?;
            if !order.repeats(&earlier.command, earlier.entered.outcome) {
                let none = Holding::default();
                let refusal =
                    Audited { outcome: "refused: idempotency_key_reused", key: None, before: &none, after: None };
                audit(client, Uuid::new_v4(), order, &refusal).await?;
                return Ok(None);
            }
            return Ok(Some(earlier.entered));
        }
    }
    // The key stays as it is: whoever counts usage, which refers to it, does not wait.
    let before = holding(order.tenant, &rows(client, order.tenant, &format!("{LOAD} FOR NO KEY UPDATE")).await?)?;
    let (mut after, outcome) = order.outcome(&before);
    if order.command.is_housekeeping() && after == before {
        return Ok(Some(Entered { before, after, outcome, repeated: false, position: None }));
    }
    if let Some(license) = &mut after.license
        && before.license.as_ref() != Some(license)
    {
        license.revision = put_license(client, before.license.as_ref(), license).await?;
    }
    put_addons(client, order.tenant, &before.addons, &after.addons).await?;
    let id = Uuid::new_v4();
    let written = Audited {
        outcome: &outcome.to_string(),
        key: order.author.idempotency_key.as_deref(),
        before: &before,
        after: (outcome == Outcome::Applied).then_some(&after),
    };
    audit(client, id, order, &written).await?;
    if outcome == Outcome::Requested {
        let from_plan = before.license.as_ref().map(|license| &*license.plan);
        let message = json!({ "id": id, "tenant_id": order.tenant, "command": order.command, "from_plan": from_plan });
        notify(client, REQUESTS, &message.to_string()).await?;
    } else if outcome == Outcome::Applied {
        // Last, since those who write denials wait from here on.
        let gained = gained(before.license.as_ref(), after.license.as_ref(), order.now);
        mark_upgraded(client, order.tenant, &gained, order.now).await?;
    }
    Ok(Some(Entered { before, after, outcome, repeated: false, position: None }))
}

async fn notify(client: &Client, channel: &str, message: &str) -> Result<(), Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&channel, Type::TEXT), (&message, Type::TEXT)];
    client.query_typed("SELECT pg_notify($1, $2)", &parameters).await.map(drop)
}

/// The rows of a holding: its licence by `load`, and its add-ons.
async fn rows(client: &Client, tenant: TenantId, load: &str) -> Result<(Vec<Row>, Vec<Row>), Error> {
    let question = Question::new(&[tenant]);
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(tenant.as_uuid(), Type::UUID)];
    tokio::try_join!(biased; question.ask_by(client, load), client.query_typed(ADDONS, &parameters))
}

fn holding(tenant: TenantId, (license, addons): &(Vec<Row>, Vec<Row>)) -> Result<Holding, StoreError> {
    let license = match answers(&[tenant], license)?.pop() {
        Some(Ok(license)) => license,
        None => None,
        Some(Err(cause)) => return Err(StoreError::Unreadable { store: StoreName::Postgres, tenant, cause }),
    };
    let addons = addons.iter().map(|row| addon(row).map_err(|error| failure(&error))).collect::<Result<_, _>>()?;
    Ok(Holding { license, addons })
}

fn addon(row: &Row) -> Result<Addon, Error> {
    Ok(Addon {
        feature: row.try_get::<_, &str>(0)?.into(),
        limit_delta: row.try_get(1)?,
        valid_until: Timestamp::from_micros(row.try_get::<_, Micros>(2)?.0),
        reason: row.try_get(3)?,
    })
}

/// Write a licence, or what is different about it, and answer its new revision.
async fn put_license(client: &Client, before: Option<&License>, after: &License) -> Result<i64, Interrupted> {
    let set = |feature: &str| (feature.to_owned(), Value::Bool(true));
    let features = Value::Object(after.features.iter().map(set).collect()).to_string();
    let ends = json!(after.features_until).to_string();
    let limits = json!(after.usage_limits).to_string();
    let (from, until) = (after.valid_from.to_string(), after.valid_until.to_string());
    let plan = &*after.plan;
    let tenant: (&(dyn ToSql + Sync), Type) = (after.tenant.as_uuid(), Type::UUID);
    let rows = match before {
        None => {
            let text = Type::TEXT;
            let parameters: [(&(dyn ToSql + Sync), Type); 8] = [
                tenant,
                (&plan, text.clone()),
                (&features, text.clone()),
                (&ends, text.clone()),
                (&limits, text.clone()),
                (&from, text.clone()),
                (&until, text),
                (&after.auto_renew, Type::BOOL),
            ];
            client.query_typed(INSERT, &parameters).await?
        }
        Some(before) => {
            // What is as it was stays as somebody has written it.
            let columns: [(bool, &str, &(dyn ToSql + Sync)); 5] = [
                (before.plan != after.plan, "plan_tier = $", &plan),
                (before.features != after.features, "features = $::jsonb", &features),
                (before.features_until != after.features_until, "features_until = $::jsonb", &ends),
                (before.usage_limits != after.usage_limits, "usage_limits = $::jsonb", &limits),
                (before.valid_until != after.valid_until, "valid_until = $::timestamptz", &until),
            ];
            let mut parameters = vec![tenant];
            let mut assignments = Vec::new();
            for (_, assignment, value) in columns.iter().filter(|(differs, ..)| *differs) {
                parameters.push((*value, Type::TEXT));
                assignments.push(assignment.replace('$', &format!("${}", parameters.len())));
            }
            let assignments = assignments.join(", ");
            let update = format!("UPDATE tenant_licenses SET {assignments} WHERE tenant_id = $1 RETURNING revision");
            client.query_typed(&update, &parameters).await?
        }
    };
    let row = rows.first().ok_or_else(|| unavailable("the licence is gone although it was locked".to_owned()))?;
    Ok(row.try_get(0)?)
}

async fn put_addons(client: &Client, tenant: TenantId, before: &[Addon], after: &[Addon]) -> Result<(), Error> {
    let tenant: (&(dyn ToSql + Sync), Type) = (tenant.as_uuid(), Type::UUID);
    for gone in before.iter().filter(|addon| !after.iter().any(|other| other.feature == addon.feature)) {
        client.query_typed(DELETE_ADDON, &[tenant.clone(), (&&*gone.feature, Type::TEXT)]).await?;
    }
    for addon in after.iter().filter(|addon| !before.contains(addon)) {
        let until = addon.valid_until.to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            tenant.clone(),
            (&&*addon.feature, Type::TEXT),
            (&addon.limit_delta, Type::INT8),
            (&until, Type::TEXT),
            (&addon.reason, Type::TEXT),
        ];
        client.query_typed(PUT_ADDON, &parameters).await?;
    }
    Ok(())
}

/// What a row of the audit says beside the order.
struct Audited<'a> {
    outcome: &'a str,
    key: Option<&'a str>,
    before: &'a Holding,
    after: Option<&'a Holding>,
}

async fn audit(client: &Client, id: Uuid, order: &Order<'_>, written: &Audited<'_>) -> Result<(), Error> {
    let nothing = Holding::default();
    let document = |holding: &Holding| (*holding != nothing).then(|| json!(holding).to_string());
    let (before, after) = (document(written.before), written.after.and_then(document));
    let (action, command) = (order.command.action(), json!(order.command).to_string());
    let text = Type::TEXT;
    let parameters: [(&(dyn ToSql + Sync), Type); 11] = [
        (&id, Type::UUID),
        (order.tenant.as_uuid(), Type::UUID),
        (&action, text.clone()),
        (&order.author.actor, text.clone()),
        (&order.author.reason, text.clone()),
        (&written.outcome, text.clone()),
        (&command, text.clone()),
        (&before, text.clone()),
        (&after, text.clone()),
        (&order.author.request_id, text.clone()),
        (&written.key, text),
    ];
    client.query_typed(AUDIT, &parameters).await.map(drop)
}

/// What an idempotency key has been used for.
struct Earlier {
    command: Value,
    entered: Entered,
}

impl Earlier {
    fn read(row: &Row) -> Result<Self, Interrupted> {
        let foreign = || unavailable("the audit holds what no version of this program has written".to_owned());
        let document = |index| -> Result<Value, Interrupted> {
            let text: Option<&str> = row.try_get(index)?;
            Ok(text.map_or(Ok(Value::Null), serde_json::from_str).map_err(|_| foreign())?)
        };
        let holding = |index| -> Result<Option<Holding>, Interrupted> {
            Ok(serde_json::from_value(document(index)?).map_err(|_| foreign())?)
        };
        let outcome = row.try_get::<_, &str>(1)?.parse().map_err(|()| foreign())?;
        let before = holding(2)?.unwrap_or_default();
        let after = holding(3)?.unwrap_or_else(|| before.clone());
        let entered = Entered { before, after, outcome, repeated: true, position: None };
        Ok(Self { command: document(0)?, entered })
    }
}

impl From<TransactionError> for LedgerError {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Failed(error) => Self::Store(error),
            TransactionError::Unknown(message) => Self::Unknown(message),
        }
    }
}
