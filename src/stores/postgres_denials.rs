//! Denials in Postgres: one row for each tenant, feature, reason and minute, and which of them led to a click or an upgrade.
//!
//! A click or an upgrade marks what is there, and leaves a mark of its own for what other replicas write later.

use async_trait::async_trait;
use licensing::license::{License, Validity};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};
use uuid::Uuid;

use super::postgres_order::hold_alone;
use super::postgres_usage::amount;
use super::transactions::{Interrupted, Work};
use super::usage::DenialCount;

/// In the order of their ids, as everybody who locks several of these rows takes them. The rows of one id are added up first,
/// since one statement may not write a row twice.
const ADD: &str = "INSERT INTO feature_denial_events AS e \
     (id, tenant_id, feature_name, reason, minute, count, clicked_upgrade, clicked_at, upgraded_at) \
     SELECT l.id, l.tenant_id, l.feature, l.reason, l.minute, l.amount, \
            coalesce(clicked, false), CASE WHEN clicked THEN m.clicked_at END, CASE WHEN upgraded THEN m.upgraded_at END \
       FROM (SELECT id, tenant_id, feature, reason, minute::timestamptz, sum(amount)::bigint \
               FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::int8[]) \
                 AS list (id, tenant_id, feature, reason, minute, amount) \
              GROUP BY 1, 2, 3, 4, 5) AS l (id, tenant_id, feature, reason, minute, amount) \
       LEFT JOIN upgrade_marks AS m ON m.tenant_id = l.tenant_id AND m.feature = l.feature \
      CROSS JOIN LATERAL (SELECT l.minute > m.clicked_at - INTERVAL '24 hours' AND l.minute <= m.clicked_at, \
                                 l.minute > m.upgraded_at - INTERVAL '30 days' AND l.minute <= m.upgraded_at) \
                      AS marks (clicked, upgraded) \
      ORDER BY l.id \
     ON CONFLICT (id) DO UPDATE SET count = e.count + EXCLUDED.count";

const ADD_SHADOW: &str = "INSERT INTO shadow_denial_events AS e (id, tenant_id, feature_name, reason, minute, count) \
     SELECT id, tenant_id, feature, reason, minute::timestamptz, sum(amount)::bigint \
       FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::int8[]) \
         AS list (id, tenant_id, feature, reason, minute, amount) \
      GROUP BY 1, 2, 3, 4, 5 ORDER BY id \
     ON CONFLICT (id) DO UPDATE SET count = e.count + EXCLUDED.count";

/// Of tenants that have neither a licence nor a denial nothing is put down: their ids may be made up, and others come to no end.
const NOTE_CLICK: &str = "INSERT INTO upgrade_marks AS m (tenant_id, feature, clicked_at) \
     SELECT $1, $2, $3::text::timestamptz \
      WHERE EXISTS (SELECT FROM tenant_licenses WHERE tenant_id = $1) \
         OR EXISTS (SELECT FROM feature_denial_events WHERE tenant_id = $1 AND feature_name = $2) \
     ON CONFLICT (tenant_id, feature) DO UPDATE SET clicked_at = greatest(m.clicked_at, EXCLUDED.clicked_at)";

/// The first click counts.
pub(super) const MARK_CLICKED: &str = "WITH due AS ( \
       SELECT id FROM feature_denial_events \
        WHERE tenant_id = $1 AND feature_name = $2 AND NOT clicked_upgrade \
          AND minute > $3::text::timestamptz - INTERVAL '24 hours' AND minute <= $3::text::timestamptz \
        ORDER BY id FOR UPDATE) \
     UPDATE feature_denial_events AS e SET clicked_upgrade = true, clicked_at = $3::text::timestamptz \
       FROM due WHERE e.id = due.id";

const NOTE_UPGRADE: &str = "INSERT INTO upgrade_marks AS m (tenant_id, feature, upgraded_at) \
     SELECT $1, feature, $3::text::timestamptz FROM unnest($2::text[]) AS list (feature) ORDER BY feature \
     ON CONFLICT (tenant_id, feature) DO UPDATE SET upgraded_at = greatest(m.upgraded_at, EXCLUDED.upgraded_at)";

/// The latest, up to a number that an upgrade can wait for.
pub(super) const MARK_UPGRADED: &str = "WITH latest AS ( \
       SELECT id FROM feature_denial_events \
        WHERE tenant_id = $1 AND feature_name = ANY($2::text[]) AND upgraded_at IS NULL \
          AND minute > $3::text::timestamptz - INTERVAL '30 days' AND minute <= $3::text::timestamptz \
        ORDER BY minute DESC LIMIT 10000), \
     due AS (SELECT e.id FROM feature_denial_events AS e JOIN latest USING (id) ORDER BY e.id FOR UPDATE OF e) \
     UPDATE feature_denial_events AS e SET upgraded_at = $3::text::timestamptz \
       FROM due WHERE e.id = due.id AND e.upgraded_at IS NULL";

/// Denials as columns.
#[derive(Default)]
pub(super) struct Denials<'a> {
    ids: Vec<Uuid>,
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    reasons: Vec<&'static str>,
    minutes: Vec<String>,
    amounts: Vec<i64>,
}

impl<'a> Denials<'a> {
    pub(super) fn of(denials: impl Iterator<Item = &'a DenialCount>) -> Self {
        let mut columns = Self::default();
        for denial in denials {
            let (reason, minute) = (denial.reason.name(), denial.minute.to_string());
            let name = format!("{}/{reason}/{minute}", denial.feature);
            columns.ids.push(Uuid::new_v5(denial.tenant.as_uuid(), name.as_bytes()));
            columns.tenants.push(*denial.tenant.as_uuid());
            columns.features.push(&denial.feature);
            columns.reasons.push(reason);
            columns.minutes.push(minute);
            columns.amounts.push(amount(denial.count));
        }
        columns
    }

    /// Add them to what there is. Whoever does so is one of those who write, see [`super::postgres_order`].
    pub(super) async fn add(&self, client: &Client) -> Result<(), Error> {
        self.insert(client, ADD).await
    }

    /// The same with those that would have been.
    pub(super) async fn add_shadow(&self, client: &Client) -> Result<(), Error> {
        self.insert(client, ADD_SHADOW).await
    }

    async fn insert(&self, client: &Client, sql: &str) -> Result<(), Error> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&self.ids, Type::UUID_ARRAY),
            (&self.tenants, Type::UUID_ARRAY),
            (&self.features, Type::TEXT_ARRAY),
            (&self.reasons, Type::TEXT_ARRAY),
            (&self.minutes, Type::TEXT_ARRAY),
            (&self.amounts, Type::INT8_ARRAY),
        ];
        client.execute_typed(sql, &parameters).await.map(drop)
    }
}

/// Somebody has followed the way to an upgrade.
pub(super) struct Click<'a> {
    pub(super) tenant: TenantId,
    pub(super) feature: &'a str,
    pub(super) at: Timestamp,
}

#[async_trait]
impl Work for Click<'_> {
    type Done = ();

    async fn work(&self, client: &Client) -> Result<(), Interrupted> {
        let at = self.at.to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(self.tenant.as_uuid(), Type::UUID), (&self.feature, Type::TEXT), (&at, Type::TEXT)];
        let marked = tokio::try_join!(
            biased;
            hold_alone(client, self.tenant),
            client.execute_typed(NOTE_CLICK, &parameters),
            client.execute_typed(MARK_CLICKED, &parameters),
        );
        match marked {
            // Somebody has dropped the licences' tables, which turns licensing off: nobody is denied anything, and nothing is sold.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(()),
            marked => Ok(marked.map(drop)?),
        }
    }
}

/// Mark the tenant's denials of the 30 days before `at` of those features that it has, or has more of, since then.
pub(super) async fn mark_upgraded(
    client: &Client,
    tenant: TenantId,
    features: &[&str],
    at: Timestamp,
) -> Result<(), Error> {
    if features.is_empty() {
        return Ok(());
    }
    let at = at.to_string();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(tenant.as_uuid(), Type::UUID), (&features, Type::TEXT_ARRAY), (&at, Type::TEXT)];
    let marked = tokio::try_join!(
        biased;
        hold_alone(client, tenant),
        client.execute_typed(NOTE_UPGRADE, &parameters),
        client.execute_typed(MARK_UPGRADED, &parameters),
    );
    marked.map(drop)
}

/// The features that can be used at `now` and could not before, or not as much.
pub(super) fn gained<'a>(before: Option<&License>, after: Option<&'a License>, now: Timestamp) -> Vec<&'a str> {
    let is_valid = |license: &License| license.validity(std::time::Duration::ZERO, now) == Validity::Valid;
    let Some(after) = after.filter(|license| is_valid(license)) else { return Vec::new() };
    let before = before.filter(|license| is_valid(license));
    let is_gain = |feature: &&str| {
        before
            .is_none_or(|before| !before.includes(feature, now) || limit_of(before, feature) < limit_of(after, feature))
    };
    after.features_at(now).filter(is_gain).collect()
}

/// How much a licence allows of a feature; what is no number limits nothing.
fn limit_of(license: &License, feature: &str) -> f64 {
    license.usage_limits.get(feature).and_then(Value::as_f64).filter(|limit| *limit >= 0.0).unwrap_or(f64::INFINITY)
}
